"""The leader of a partition dies and stays dead: who asks for an end of the log is answered by the next leader."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from postlane.eventlog.errors import Retriable
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.ports import Partition
from postlane.eventlog.topics import TopicSpec
from postlane.local.kafka import KafkaCluster
from tests.contract.log_benches import unique, writes


@pytest.mark.kafka
async def test_an_end_is_told_while_its_former_leader_is_dead(tmp_path: Path) -> None:
    """A sender that asks what came of its last commit waited for the dead broker, and its lane with it.

    Without a new client (`_renewed_at` set far ahead) it is not answered within the minute.
    """
    cluster = KafkaCluster(tmp_path, brokers=3, port=0, tied=True)
    await asyncio.to_thread(cluster.start)
    log = KafkaLog(cluster.bootstrap_servers)
    try:
        topic = unique("ends")
        partitions = [Partition(topic, n) for n in range(3)]  # one is led by each broker
        await log.admin.create_topics([TopicSpec(topic, 3, {"cleanup.policy": "delete"}, (), ())], replication=3)
        transactor = await log.transactor("writer")
        for partition in partitions:
            await transactor.commit(writes(partition, b"0", b"1"))
        ends = await log.high_watermarks(partitions)
        await transactor.close()

        await asyncio.to_thread(cluster.kill, 1)
        async with asyncio.timeout(60):
            while True:
                try:
                    found = await log.high_watermarks(partitions)
                    assert all(found[partition] >= end for partition, end in ends.items())
                    break
                except Retriable:
                    await asyncio.sleep(0.25)
    finally:
        await log.close()
        await asyncio.to_thread(cluster.stop, 2.0)
