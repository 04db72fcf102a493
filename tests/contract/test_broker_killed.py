"""A broker killed with SIGKILL under a stream of transactions: after every unknown commit the log itself says what
came of it, and in the end each value is there once, in order."""

from __future__ import annotations

import asyncio
import os

import pytest

from postlane.eventlog.errors import Aborted, CommitUnknown, Fenced, LogError, Retriable
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.ports import Partition, Transactor
from postlane.eventlog.topics import TopicSpec
from postlane.local.kafka import KafkaCluster
from tests.contract.log_benches import unique, values, writes

pytestmark = [
    pytest.mark.kafka,
    # Whether a kill hits a commit is up to the machine: not every run of it can say something.
    pytest.mark.skipif(not os.environ.get("POSTLANE_LONG_TESTS"), reason="set POSTLANE_LONG_TESTS=1"),
]
KILLS = 2


async def test_every_value_once_and_in_order(broker: KafkaCluster) -> None:
    log = KafkaLog(broker.bootstrap_servers)
    topic = unique("killed")
    await log.admin.create_topics([TopicSpec(topic, 1, {"cleanup.policy": "delete"}, (), ())], replication=1)
    partition = Partition(topic, 0)
    transactor = await log.transactor("writer")
    built = 1
    build = transactor._build

    def counted() -> None:
        nonlocal built
        built += 1
        build()

    transactor._build = counted  # type: ignore[method-assign]
    stop = asyncio.Event()
    written = asyncio.create_task(_write(log, transactor, partition, stop))
    for _ in range(KILLS):
        await _progress(written, 1.0)
        await asyncio.to_thread(broker.kill)
        await asyncio.to_thread(broker.start_broker, 0)
    await _progress(written, 1.0)
    stop.set()
    count = await asyncio.wait_for(written, 90)
    found = await values(log, partition)
    assert found == [b"%d" % i for i in range(count)]
    await log.close()
    if built == 1:  # a disconnect in a commit, however it ends, is followed by a new producer
        pytest.skip("neither kill hit a commit: this run says nothing")


async def _progress(written: asyncio.Task[int], seconds: float) -> None:
    await asyncio.wait([written], timeout=seconds)
    if written.done():
        written.result()


async def _write(log: KafkaLog, transactor: Transactor, partition: Partition, stop: asyncio.Event) -> int:
    """Write 0, 1, 2, ...; returns how many."""
    count = 0
    while not stop.is_set():
        try:
            await transactor.commit(writes(partition, b"%d" % count, b"%d" % (count + 1)))
            count += 2
        except Aborted:
            continue
        except (CommitUnknown, Fenced):
            # Fenced: there is no other process here. A broker that is away for longer than transaction.timeout.ms ends
            # the transaction when it is back, and bumps the epoch; a service would end, and be started again.
            count = await _settled(log, transactor, partition)
    return count


async def _settled(log: KafkaLog, transactor: Transactor, partition: Partition) -> int:
    last: LogError | None = None
    for _ in range(40):
        try:
            await transactor.rebuild()
            return len(await values(log, partition))
        except Retriable as error:
            last = error
            await asyncio.sleep(0.25)
    raise AssertionError("the log did not come back") from last
