"""What one request for metadata tells of a cluster, and on whose client it is asked."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from prometheus_client import CollectorRegistry

from postlane.broker_watch import watch_brokers
from postlane.eventlog import admin
from postlane.eventlog.admin import ClusterHealth, KafkaAdmin
from postlane.eventlog.errors import Unreachable
from postlane.eventlog.kafka_config import ClientConfig
from postlane.telemetry.metrics import KafkaMetrics


def partition(leader: int, replicas: int, in_sync: int) -> Any:
    return SimpleNamespace(leader=leader, replicas=list(range(replicas)), isrs=list(range(in_sync)))


FOUND = SimpleNamespace(
    brokers={1: None, 2: None, 3: None},
    topics={
        "a": SimpleNamespace(partitions={0: partition(1, 3, 3), 1: partition(2, 3, 2)}),
        "b": SimpleNamespace(partitions={0: partition(-1, 3, 0)}),
    },
)


class Client:
    """librdkafka's, as far as it is asked here."""

    made: ClassVar[list[str]] = []

    def __init__(self, config: object) -> None:
        Client.made.append(threading.current_thread().name)

    def list_topics(self, timeout: float) -> Any:
        return FOUND


async def test_brokers_and_partitions_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin._api, "AdminClient", Client)
    asked = KafkaAdmin(ClientConfig("127.0.0.1:1"))
    assert await asked.health() == ClusterHealth(brokers=3, under_replicated=2, offline=1)


async def test_the_client_is_made_by_the_event_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second client would take the first one's place, with the answers that are awaited on that."""
    monkeypatch.setattr(admin._api, "AdminClient", Client)
    Client.made.clear()
    asked = KafkaAdmin(ClientConfig("127.0.0.1:1"))
    await asyncio.gather(*(asked.health() for _ in range(5)))
    assert Client.made == [threading.current_thread().name]


class Cluster:
    def __init__(self, *answers: ClusterHealth | Exception) -> None:
        self.answers = list(answers)

    async def health(self) -> ClusterHealth:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_a_cluster_that_does_not_answer_has_no_broker() -> None:
    registry = CollectorRegistry()
    metrics = KafkaMetrics(registry)
    cluster = Cluster(ClusterHealth(3, 2, 1), Unreachable("gone"))
    with pytest.raises(IndexError):  # asked a third time
        await watch_brokers(cluster, metrics, every_s=0.0)
    assert registry.get_sample_value("postlane_kafka_brokers") == 0
    assert registry.get_sample_value("postlane_kafka_under_replicated_partitions") == 2
    assert registry.get_sample_value("postlane_kafka_offline_partitions") == 1
