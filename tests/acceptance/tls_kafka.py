"""A broker on which a client is who its certificate says, and may what the rules of its identity allow: what the
component `strimzi` of the manifests makes, on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import trustme
from confluent_kafka.admin import AdminClient
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from postlane.local import ports
from postlane.local.kafka import KafkaCluster
from postlane.ops.acls import Acl
from tests.hostile.secured import bindings

TIMEOUT_S = 30.0


class TlsKafka:
    """`with TlsKafka(folder, identities) as kafka:` — the first listener is plain, for setting up and checking."""

    def __init__(self, folder: Path, identities: Iterable[str]) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(str(folder / "ca.crt"))
        for name in identities:
            self._issue(name)
        self._issue("broker", ports.HOST)
        while True:
            port, tls = ports.free_ports(2)
            if ports.is_free(port + ports.CONTROLLER_OFFSET) and tls != port + ports.CONTROLLER_OFFSET:
                break
        self.tls_servers = f"{ports.HOST}:{tls}"
        plain = f"BROKER://{ports.HOST}:{port}"
        controller = f"CONTROLLER://{ports.HOST}:{port + ports.CONTROLLER_OFFSET}"
        settings = {
            "listeners": f"{plain},{controller},CLIENTS://{self.tls_servers}",
            "advertised.listeners": f"{plain},CLIENTS://{self.tls_servers}",
            "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,CLIENTS:SSL",
            "listener.name.clients.ssl.client.auth": "required",
            "listener.name.clients.ssl.keystore.type": "PEM",
            "listener.name.clients.ssl.keystore.location": str(folder / "broker.pem"),
            "listener.name.clients.ssl.truststore.type": "PEM",
            "listener.name.clients.ssl.truststore.location": str(folder / "ca.crt"),
            "ssl.principal.mapping.rules": "RULE:^.*CN=([a-z-]+).*$/$1/,DEFAULT",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }
        self._cluster = KafkaCluster(folder / "kafka", brokers=1, port=port, settings=settings, tied=True)

    def __enter__(self) -> TlsKafka:
        self._cluster.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.stop()

    @property
    def plain_servers(self) -> str:
        return self._cluster.bootstrap_servers

    def allow(self, acls: Iterable[Acl]) -> None:
        """Grant exactly these."""
        admin = AdminClient({"bootstrap.servers": self.plain_servers})
        for future in admin.create_acls(bindings(acls)).values():
            future.result(TIMEOUT_S)

    def environment(self, identity: str) -> dict[str, str]:
        """The variables with which a process is this identity: those of the manifests."""
        return {
            "POSTLANE_BOOTSTRAP_SERVERS": self.tls_servers,
            "POSTLANE_KAFKA_SECURITY_PROTOCOL": "SSL",
            "POSTLANE_KAFKA_SSL_CA_LOCATION": str(self._folder / "ca.crt"),
            "POSTLANE_KAFKA_SSL_CERTIFICATE_LOCATION": str(self._folder / f"{identity}.crt"),
            "POSTLANE_KAFKA_SSL_KEY_LOCATION": str(self._folder / f"{identity}.key"),
        }

    def _issue(self, name: str, *hosts: str) -> None:
        leaf = self._authority.issue_cert(*(hosts or (f"{name}.example",)), common_name=name)
        key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
        text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # the form that Java reads
        chain = b"".join(part.bytes() for part in leaf.cert_chain_pems)
        (self._folder / f"{name}.key").write_bytes(text)
        (self._folder / f"{name}.crt").write_bytes(chain)
        (self._folder / f"{name}.pem").write_bytes(text + chain)
