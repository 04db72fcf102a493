"""Router processes on real Kafka: SIGKILL mid-stream, volume kept and lost, a key published twice, two replicas."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from postlane.core.events import MailRequested
from postlane.core.identity import message_id_from_key
from postlane.core.policy import Topics
from postlane.eventlog.codec import decode_event, encode, headers
from postlane.eventlog.dead_letters import origin_of
from postlane.eventlog.errors import Retriable
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.ports import Outgoing, Partition, Received
from postlane.eventlog.topics import TopicNames, declare
from postlane.local.kafka import KafkaCluster

pytestmark = pytest.mark.kafka
PARTITIONS = 3


class Stage:
    """An installation of its own on the session's Kafka, and its router processes."""

    def __init__(self, kafka: KafkaCluster, folder: Path) -> None:
        self.names = TopicNames(f"r{uuid4().hex[:8]}.")
        self.log = KafkaLog(kafka.bootstrap_servers)
        self.appender = self.log.appender()
        self.folder = folder
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("POSTLANE_", "OTEL_"))}
        self._env = {
            **clean,
            "POSTLANE_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "POSTLANE_TOPIC_PREFIX": self.names.prefix,
            "POSTLANE_DATA_DIR": str(folder),
            "POSTLANE_HTTP_PORT": "0",
        }
        self._processes: list[subprocess.Popen[bytes]] = []

    async def create(self) -> None:
        specs = declare(self.names, ("transactional", "bulk"), Topics(partitions=PARTITIONS))
        await self.log.admin.create_topics(specs, 1)

    def start(self, instance: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{instance}.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", "postlane_router"], env={**self._env, "POSTLANE_INSTANCE_ID": instance}, stderr=log
        )
        self._processes.append(process)
        return process

    def publish_soon(self, key: str, **changes: Any) -> str:
        message = MailRequested.model_validate(
            {
                "message_id": message_id_from_key("default", key),
                "key": key,
                "sender": "shop@example.org",
                "to": ["ada@example.com"],
                "subject": f"Order {key}",
                "text": "On its way.",
                "requested_at": datetime.now(UTC),
                **changes,
            }
        )
        ident = message.message_id
        wire_headers = headers(MailRequested, "test", ident, message.requested_at)
        self.appender.append_soon(Outgoing(self.names.requests, None, ident.encode(), encode(message), wire_headers))
        return ident

    async def records(self, topic: str) -> list[Received]:
        """All that a read_committed reader sees."""
        ends = await self.log.high_watermarks([Partition(topic, n) for n in range(PARTITIONS)])
        found: list[Received] = []
        for partition, end in ends.items():
            async for batch in self.log.read(partition, 0, end, deadline_s=30):
                found += batch
        return found

    async def keys(self, topic: str) -> Counter[str]:
        return Counter(record.key.decode() for record in await self.records(topic) if record.key)

    async def lag(self) -> int:
        """Requests that no committed position covers."""
        partitions = [Partition(self.names.requests, n) for n in range(PARTITIONS)]
        ends = await self.log.high_watermarks(partitions)
        committed = await self.log.admin.group_offsets(self.names.router_group, partitions)
        return sum(end - (committed[p].offset if p in committed else 0) for p, end in ends.items())

    async def until(self, condition: Callable[[], Any], timeout_s: float = 60) -> None:
        async with asyncio.timeout(timeout_s):
            while not await self._holds(condition):  # noqa: ASYNC110 - the broker tells nobody
                await asyncio.sleep(0.05)

    async def _holds(self, condition: Callable[[], Any]) -> bool:
        try:
            return bool(await condition())
        except Retriable:  # e.g. a topic made a moment ago has no leader yet
            return False

    async def all_routed(self) -> None:
        async def done() -> bool:
            return await self.lag() == 0

        await self.until(done)

    async def routed_some(self, count: int) -> None:
        partitions = [Partition(self.names.seen, n) for n in range(PARTITIONS)]

        async def done() -> bool:
            return sum((await self.log.high_watermarks(partitions)).values()) >= count

        await self.until(done)

    async def exactly_once(self, messages: set[str]) -> None:
        dispatched = await self.keys(self.names.dispatch("transactional"))
        assert dispatched == Counter(messages)
        assert await self.keys(self.names.seen) == Counter(messages)
        events: dict[str, list[str]] = {}
        for record in await self.records(self.names.events):
            event = decode_event(record.value)
            events.setdefault(event.message_id or "", []).append(event.type)
        assert events == {message: ["Requested", "Routed"] for message in messages}

    async def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait(10)
        await self.log.close()


@pytest.fixture
async def stage(kafka: KafkaCluster, tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(kafka, tmp_path)
    await made.create()
    yield made
    await made.close()


@pytest.mark.parametrize("volume", ["kept", "lost"])
async def test_killed_mid_stream(stage: Stage, volume: str) -> None:
    count = 20_000
    messages = {stage.publish_soon(f"k{n}") for n in range(count // 2)}
    await stage.appender.flush(30)
    process = stage.start("one")
    for kill in range(3):
        messages |= {stage.publish_soon(f"l{kill}-{n}") for n in range(count // 6)}
        for n in range(0, count // 2, 7):
            stage.publish_soon(f"k{n}")  # again
        await stage.routed_some(2_000 * (kill + 1))
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        if volume == "lost":
            shutil.rmtree(stage.folder / "router-one")
        process = stage.start("one")
    await stage.appender.flush(30)
    await stage.all_routed()
    await stage.exactly_once(messages)
    process.terminate()
    assert process.wait(30) == 0


async def test_two_replicas_one_dies(stage: Stage) -> None:
    first, second = stage.start("one"), stage.start("two")
    messages = {stage.publish_soon(f"k{n}") for n in range(3_000)}
    await stage.appender.flush(30)
    await stage.routed_some(500)
    first.kill()
    first.wait(10)
    messages |= {stage.publish_soon(f"l{n}") for n in range(3_000)}
    for n in range(3_000):
        stage.publish_soon(f"k{n}")
    await stage.appender.flush(30)
    await stage.all_routed()
    await stage.exactly_once(messages)
    second.terminate()
    assert second.wait(30) == 0


async def test_send_at_and_poison(stage: Stage) -> None:
    process = stage.start("one")
    due = datetime.now(UTC) + timedelta(seconds=4)
    message = stage.publish_soon("later", send_at=due)
    bad = [b"", b"\xff", b"{", b'{"message_id":"x"}']
    for value in bad:
        stage.appender.append_soon(Outgoing(stage.names.requests, 0, b"poison", value, [("x", b"1")]))
    good = stage.publish_soon("now")
    await stage.appender.flush(30)

    async def dispatched() -> bool:
        return len(await stage.records(stage.names.dispatch("transactional"))) == 2

    await stage.until(dispatched)
    times = {r.key: r.timestamp_ms for r in await stage.records(stage.names.dispatch("transactional"))}
    assert set(times) == {message.encode(), good.encode()}
    assert times[message.encode()] >= due.timestamp() * 1000 - 1
    letters = await stage.records(stage.names.dead_letters)
    assert sorted(letter.value or b"" for letter in letters) == sorted(bad)
    assert {origin_of(letter.headers).topic for letter in letters} == {stage.names.requests}
    process.terminate()
    assert process.wait(30) == 0
