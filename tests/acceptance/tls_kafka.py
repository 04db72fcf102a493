"""A broker on which a client is who its certificate says, and may what the rules of its identity allow: what the
component `strimzi` of the manifests makes, on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from postlane.local import ports
from tests.hostile.secured import GuardedKafka


class TlsKafka(GuardedKafka):
    """`with TlsKafka(folder, identities) as kafka:` — the first listener is plain, for setting up and checking."""

    def __init__(self, folder: Path, identities: Iterable[str]) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(str(folder / "ca.crt"))
        for name in identities:
            self._issue(name)
        self._issue("broker", ports.HOST)
        settings = {
            "listener.name.clients.ssl.client.auth": "required",
            "listener.name.clients.ssl.keystore.type": "PEM",
            "listener.name.clients.ssl.keystore.location": str(folder / "broker.pem"),
            "listener.name.clients.ssl.truststore.type": "PEM",
            "listener.name.clients.ssl.truststore.location": str(folder / "ca.crt"),
            "ssl.principal.mapping.rules": "RULE:^.*CN=([a-z-]+).*$/$1/,DEFAULT",
        }
        super().__init__(folder / "kafka", "SSL", settings)

    def environment(self, identity: str) -> dict[str, str]:
        """The variables with which a process is this identity: those of the manifests."""
        return {
            "POSTLANE_BOOTSTRAP_SERVERS": self.client_servers,
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
