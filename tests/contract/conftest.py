"""The adapters that the contract is run against: real Kafka, and the log in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from postlane.local.kafka import KafkaCluster
from tests.contract.log_benches import Bench, KafkaBench, MemoryBench


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    of_kafka = request.param == "kafka"
    made: Bench = KafkaBench(request.getfixturevalue("kafka").bootstrap_servers) if of_kafka else MemoryBench()
    yield made
    await made.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[KafkaCluster]:
    """A broker of its own for the test, which may kill it."""
    cluster = KafkaCluster(tmp_path, port=0, tied=True)
    cluster.start()
    yield cluster
    cluster.stop(grace_s=2.0)
