"""The connection to the transaction coordinator is cut: the next transaction begins on a producer of its own."""

from __future__ import annotations

import asyncio
import logging

import pytest

from postlane.eventlog.coordinator import CoordinatorWatch
from postlane.eventlog.errors import Aborted
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.ports import Partition
from postlane.eventlog.topics import TopicSpec
from postlane.local.kafka import KafkaCluster
from tests.contract.log_benches import unique, values, writes


@pytest.mark.kafka
async def test_a_lost_coordinator_is_heard_of_and_the_next_commit_is_by_a_new_producer(broker: KafkaCluster) -> None:
    """The library would mend the connection by itself and say nothing: only its log tells (librdkafka#5423)."""
    log = KafkaLog(broker.bootstrap_servers)
    topic = unique("coordinator")
    await log.admin.create_topics([TopicSpec(topic, 1, {"cleanup.policy": "delete"}, (), ())], replication=1)
    partition = Partition(topic, 0)
    transactor = await log.transactor("writer")
    await transactor.commit(writes(partition, b"0", b"1"))
    first = transactor._producer
    transactor._producer.poll(0)
    assert not transactor._coordinator.lost, "an orderly commit is not a loss"

    await asyncio.to_thread(broker.kill)
    await asyncio.to_thread(broker.start_broker, 0)
    for _ in range(100):
        try:
            await transactor.commit(writes(partition, b"2", b"3"))
            break
        except Aborted:  # not begun: the broker is still finding its feet
            await asyncio.sleep(0.1)

    assert transactor._producer is not first
    assert not transactor._coordinator.lost
    assert await values(log, partition) == [b"0", b"1", b"2", b"3"]
    await log.close()


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ("FAIL [writer#producer-1] [thrd:TxnCoordinator]: TxnCoordinator: 127.0.0.1:9092: Disconnected", True),
        ("FAIL [writer#producer-1] [thrd:127.0.0.1:9092/2]: 127.0.0.1:9092/2: Disconnected: receive 0", False),
        ("GETPID [writer#producer-1] [thrd:main]: TxnCoordinator/0: Coordinator load in progress: retrying", False),
    ],
)
def test_only_the_coordinators_connection_counts(line: str, lost: bool) -> None:
    watch = CoordinatorWatch()
    watch.logger.log(logging.INFO, "%s", line)
    assert watch.lost is lost
