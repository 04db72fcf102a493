"""The ledger as a process on real Kafka: SIGKILL in the middle of the fold, two at once, rebuild by one command."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from sqlalchemy import update
from tests.ledger_corpus import assert_is_fold_of, corpus

from postlane.core.errors import ConfigurationError
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.ports import Outgoing, Partition, Received, Transaction
from postlane.eventlog.topics import TopicNames, TopicSpec
from postlane.local.kafka import KafkaCluster
from postlane.ops import books as queries
from postlane.ops.books_database import open_database
from postlane.ops.books_schema import books

pytestmark = pytest.mark.kafka
PARTITIONS = 3


class Stage:
    """The events topic of an installation of its own, and the ledger processes beside it."""

    def __init__(self, kafka: KafkaCluster, folder: Path, prefix: str) -> None:
        self.names = TopicNames(prefix)
        self.url = f"sqlite:///{folder}/ledger.db"
        self.log = KafkaLog(kafka.bootstrap_servers)
        self.written: list[Received] = []
        self._folder = folder
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("POSTLANE_", "OTEL_"))}
        self._env = {
            **clean,
            "POSTLANE_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "POSTLANE_TOPIC_PREFIX": prefix,
            "POSTLANE_DATABASE_URL": self.url,
            "POSTLANE_DATA_DIR": str(folder),
            "POSTLANE_HTTP_PORT": "0",
        }
        self._processes: list[subprocess.Popen[bytes]] = []

    async def create(self) -> None:
        await self.log.admin.create_topics([TopicSpec(self.names.events, PARTITIONS, {}, (), ())], 1)

    async def write(self, records: Sequence[Received]) -> None:
        """In transactions, as the router and the senders do: control records take offsets too."""
        transactor = await self.log.transactor(f"{self.names.prefix}writer")
        topic = self.names.events
        for start in range(0, len(records), 500):
            chunk = records[start : start + 500]
            out = [Outgoing(topic, item.partition, item.key, item.value, item.headers) for item in chunk]
            await transactor.commit(Transaction(out, {}, None))
        await transactor.close()

    async def read_back(self) -> list[Received]:
        """Everything in the topic, with the offsets that it got."""
        partitions = [Partition(self.names.events, n) for n in range(PARTITIONS)]
        ends = await self.log.high_watermarks(partitions)
        found: list[Received] = []
        for partition in partitions:
            async for batch in self.log.read(partition, 0, ends[partition], deadline_s=60):
                found.extend(batch)
        return found

    def ledger(self, instance: str = "l-1") -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "postlane_ledger"],
            env={**self._env, "POSTLANE_INSTANCE_ID": instance},
            cwd=self._folder,
            stderr=(self._folder / f"{instance}.log").open("ab"),
        )
        self._processes.append(process)
        return process

    def rebuild(self) -> dict[str, int]:
        done = subprocess.run(
            [sys.executable, "-m", "postlane_ledger", "rebuild", "--json"],
            env=self._env,
            cwd=self._folder,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode()
        body: dict[str, int] = json.loads(done.stdout)
        return body

    def offsets(self) -> dict[int, int]:
        try:
            return queries.offsets(self.url, self.names.events)
        except ConfigurationError:  # the ledger has not made its tables yet
            return {}

    def events_folded(self) -> int:
        return sum(self.offsets().values())

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in self._folder.glob("*.log"))

    async def until(self, true: Callable[[], bool], timeout_s: float = 90) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not true():  # noqa: ASYNC110 - another process moves it
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"it never came to that; {self.logs()[-5_000:]}") from None

    async def until_folded(self, records: Sequence[Received]) -> None:
        last = {item.partition: item.offset + 1 for item in sorted(records, key=lambda item: item.offset)}
        await self.until(lambda: self.offsets() == last)

    async def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait(60)
        await self.log.close()


@pytest.fixture
async def stage(kafka: KafkaCluster, tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(kafka, tmp_path, f"ledger{random.randrange(10**9)}.")
    await made.create()
    yield made
    await made.close()


async def test_killed_in_the_middle_of_the_fold_it_loses_and_doubles_nothing(stage: Stage) -> None:
    killed = asyncio.Event()

    async def keep_writing() -> None:
        for seed in range(30, 90):
            await stage.write(corpus(seed, 100, PARTITIONS))
            if killed.is_set():
                return

    writing = asyncio.create_task(keep_writing())
    for _ in range(3):
        process, folded = stage.ledger(), stage.events_folded()
        await stage.until(lambda before=folded: stage.events_folded() > before)
        assert not writing.done()  # so there is more to fold than what the database has
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    killed.set()
    await writing
    records = await stage.read_back()
    before = stage.logs().count('"started"')
    last = stage.ledger()
    await stage.until_folded(records)
    await stage.until(lambda: stage.logs().count('"started"') > before)
    last.send_signal(signal.SIGTERM)
    assert last.wait(60) == 0
    assert_is_fold_of(open_database(stage.url), records)


async def test_two_ledgers_share_one_database(stage: Stage) -> None:
    one, two = stage.ledger("l-1"), stage.ledger("l-2")
    for seed in range(41, 44):
        await stage.write(corpus(seed, 150, PARTITIONS))
    records = await stage.read_back()
    await stage.until_folded(records)
    one.send_signal(signal.SIGTERM)
    assert one.wait(60) == 0
    await stage.write(corpus(45, 150, PARTITIONS))
    records = await stage.read_back()
    await stage.until_folded(records)  # the static member that left is given up after its session
    two.send_signal(signal.SIGTERM)
    assert two.wait(60) == 0
    assert_is_fold_of(open_database(stage.url), records)


async def test_rebuild_is_one_command_beside_a_running_ledger(stage: Stage) -> None:
    await stage.write(corpus(51, 300, PARTITIONS))
    records = await stage.read_back()
    process = stage.ledger()
    await stage.until(lambda: stage.events_folded() > 0)
    await stage.until_folded(records)
    engine = open_database(stage.url)
    with engine.begin() as connection:
        connection.execute(update(books().deliveries).values(state="delivered", attempt=99))
    done = await asyncio.to_thread(stage.rebuild)
    assert done["events"] + done["unreadable"] == len(records)
    assert_is_fold_of(engine, records)
    await stage.write(corpus(52, 100, PARTITIONS))
    records = await stage.read_back()
    await stage.until_folded(records)
    assert process.poll() is None, stage.logs()
    assert_is_fold_of(engine, records)
