"""A broker that asks who you are (SASL/SCRAM) and lets nobody do what no ACL allows, on a second listener.

The first listener is plain, for the checker and for setting up: its clients are super users, and no service is told of
it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from postlane.local import ports
from postlane.local.kafka import KafkaCluster
from postlane.ops.acls import IDENTITIES, Acl

TIMEOUT_S = 30.0
ITERATIONS = 4096  # the least that Kafka takes
_OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Create": AclOperation.CREATE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
    "AlterConfigs": AclOperation.ALTER_CONFIGS,
}
_RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional_id": ResourceType.TRANSACTIONAL_ID,
    "cluster": ResourceType.BROKER,  # the library's name for it
}
_PATTERNS = {"literal": ResourcePatternType.LITERAL, "prefixed": ResourcePatternType.PREFIXED}


def _bindings(acls: Iterable[Acl]) -> list[AclBinding]:
    """As Kafka's admin API takes them; the user has the name of the identity."""
    return [
        AclBinding(
            _RESOURCES[acl.resource],
            acl.name,
            _PATTERNS[acl.pattern],
            f"User:{acl.identity}",
            "*",
            _OPERATIONS[operation],
            AclPermissionType.ALLOW,
        )
        for acl in acls
        for operation in acl.operations
    ]


class GuardedKafka:
    """A broker that lets nobody do what no ACL allows; to clients it speaks as `security` says. No ACL is there yet."""

    def __init__(self, folder: Path, security: str, settings: Mapping[str, str]) -> None:
        while True:
            port, clients = ports.free_ports(2)
            if ports.is_free(port + ports.CONTROLLER_OFFSET) and clients != port + ports.CONTROLLER_OFFSET:
                break
        self.client_servers = f"{ports.HOST}:{clients}"
        plain = f"BROKER://{ports.HOST}:{port}"
        controller = f"CONTROLLER://{ports.HOST}:{port + ports.CONTROLLER_OFFSET}"
        guarded = {
            "listeners": f"{plain},{controller},CLIENTS://{self.client_servers}",
            "advertised.listeners": f"{plain},CLIENTS://{self.client_servers}",
            "listener.security.protocol.map": f"BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,CLIENTS:{security}",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }
        self._cluster = KafkaCluster(folder, brokers=1, port=port, settings={**guarded, **settings}, tied=True)

    def __enter__(self) -> Self:
        self._cluster.start()
        self.admin = AdminClient({"bootstrap.servers": self.plain_servers})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.stop()

    @property
    def plain_servers(self) -> str:
        """For whoever sets up and checks."""
        return self._cluster.bootstrap_servers

    def allow(self, acls: Iterable[Acl]) -> None:
        """Grant exactly these."""
        for future in self.admin.create_acls(_bindings(acls)).values():
            future.result(TIMEOUT_S)


class SecuredKafka(GuardedKafka):
    """`with SecuredKafka(folder) as kafka:` — with one SCRAM user for each identity."""

    def __init__(self, folder: Path) -> None:
        self.passwords = {identity: f"{identity}-{secrets.token_urlsafe(12)}" for identity in IDENTITIES}
        login = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        settings = {
            "sasl.enabled.mechanisms": "SCRAM-SHA-256",
            "listener.name.clients.scram-sha-256.sasl.jaas.config": login,
        }
        super().__init__(folder, "SASL_PLAINTEXT", settings)
        self.sasl_servers = self.client_servers

    def __enter__(self) -> Self:
        super().__enter__()
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, ITERATIONS)
        users = [
            UserScramCredentialUpsertion(identity, info, password.encode())
            for identity, password in self.passwords.items()
        ]
        for future in self.admin.alter_user_scram_credentials(users).values():
            future.result(TIMEOUT_S)
        return self

    def options(self, identity: str) -> dict[str, str]:
        """librdkafka's options with which a client is this identity."""
        return {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "SCRAM-SHA-256",
            "sasl.username": identity,
            "sasl.password": self.passwords[identity],
        }

    def environment(self, identity: str) -> dict[str, str]:
        """The variables with which a process is this identity."""
        options = self.options(identity).items()
        named = {f"POSTLANE_KAFKA_{name.upper().replace('.', '_')}": value for name, value in options}
        return {"POSTLANE_BOOTSTRAP_SERVERS": self.sasl_servers, **named}
