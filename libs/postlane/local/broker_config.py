"""What one node of the local cluster is told: server.properties and the JVM's flags.

A pure description. Figures that are not Kafka's defaults say why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from postlane.local.java import Java
from postlane.local.ports import HOST

HEAP_MAX_MB = 512
INTERNAL_TOPIC_PARTITIONS = 12
MESSAGE_MAX_BYTES = 2 * 1024 * 1024
OFFSETS_RETENTION_MINUTES = 21 * 24 * 60
TRANSACTION_MAX_TIMEOUT_MS = 300_000
LOG4J = Path(__file__).with_name("log4j2.properties")


@dataclass(frozen=True, slots=True)
class Node:
    """One combined broker and controller; `id` counts from 0."""

    id: int
    broker_port: int
    controller_port: int


def server_properties(node: Node, nodes: Sequence[Node], data: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """The node's server.properties; `extra` has the last word.

    `data` is the folder of the node's logs. With three nodes everything is kept three times and needs two in sync.
    """
    replicas = str(len(nodes))
    in_sync = "2" if len(nodes) >= 3 else "1"
    few = str(INTERNAL_TOPIC_PARTITIONS)
    properties = {
        "process.roles": "broker,controller",
        "node.id": str(node.id),
        "controller.quorum.voters": ",".join(f"{n.id}@{HOST}:{n.controller_port}" for n in nodes),
        "listeners": f"BROKER://{HOST}:{node.broker_port},CONTROLLER://{HOST}:{node.controller_port}",
        "advertised.listeners": f"BROKER://{HOST}:{node.broker_port}",
        "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "BROKER",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        "num.partitions": "12",
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        # 50 partitions each by default: made at first use, that is most of the wait of a fresh cluster's first group.
        "offsets.topic.num.partitions": few,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.num.partitions": few,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": few,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
        # Offsets outlive the dispatch records (7 days) that they speak of, even while a group is empty.
        "offsets.retention.minutes": str(OFFSETS_RETENTION_MINUTES),
        "transaction.max.timeout.ms": str(TRANSACTION_MAX_TIMEOUT_MS),
        "group.coordinator.rebalance.protocols": "classic,consumer,streams",
        # There is nobody to wait for on one machine, and drills want to see a lost member quickly.
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        # A killed broker may not come back before its session ends; 9 s by default, longer than its start takes.
        "broker.session.timeout.ms": "4000",
        "broker.heartbeat.interval.ms": "500",
        # A request is at most 900 KB; headroom for headers and dead letters, which carry a record untouched.
        "message.max.bytes": str(MESSAGE_MAX_BYTES),
        "replica.fetch.max.bytes": str(MESSAGE_MAX_BYTES),
        "log.cleaner.enable": "true",
        "num.network.threads": "2",
        "num.io.threads": "4",
    }
    return {**properties, **extra}


def render(properties: Mapping[str, str]) -> str:
    """Java's .properties format; backslashes are its escape character."""
    lines = [f"{key}={value}".replace("\\", "\\\\") for key, value in properties.items()]
    return "\n".join(lines) + "\n"


def broker_argv(java: Java, jars: Path, properties: Path, log: Path, archive_flags: Sequence[str]) -> list[str]:
    """The command of a broker.

    The full JIT and G1 stay on: C1 alone would be ready a second earlier and cost throughput for the rest of its
    life. `archive_flags` are the class archive's (see `class_archive`).
    """
    return [
        *_jvm(java, jars, f"-Xmx{HEAP_MAX_MB}m"),
        "-XX:+UseG1GC",
        "-XX:MaxGCPauseMillis=20",
        "-XX:+ExitOnOutOfMemoryError",
        *archive_flags,
        f"-Dpostlane.log={log}",
        f"-Dlog4j2.configurationFile={LOG4J.as_uri()}",
        "kafka.Kafka",
        str(properties),
    ]


def format_argv(java: Java, jars: Path, properties: Path, cluster_id: str, archive_flags: Sequence[str]) -> list[str]:
    """The command that writes a node's empty storage; short-lived, so it takes the quick JIT."""
    return [
        *_jvm(java, jars, "-Xmx128m"),
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        *archive_flags,
        "kafka.tools.StorageTool",
        "format",
        "--ignore-formatted",
        "--cluster-id",
        cluster_id,
        "--config",
        str(properties),
    ]


def _jvm(java: Java, jars: Path, heap: str) -> list[str]:
    flags = ["-Djava.awt.headless=true", "-XX:-UsePerfData"]
    return [str(java.program), heap, *flags, "-cp", f"{jars}/*"]
