"""Fleet-wide provider health on real Kafka: kill -9 of a worker, 1 to 3 to 1 workers, a service that stopped, one that
lies. POSTLANE_LONG_TESTS=1 adds five kills in a row under load."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.integration.health_fleet import PARTITIONS, Fleet

from postlane.core.health_state import HealthState
from postlane.eventlog.ports import Outgoing
from postlane.local.kafka import KafkaCluster
from postlane.local.practice import PracticeProcess

pytest.importorskip("faust", reason="the extra [health] is not installed")
pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]
UP, DOWN, UNKNOWN = HealthState.UP, HealthState.DOWN, HealthState.UNKNOWN
PROVIDERS = tuple(f"p{n}" for n in range(6))


@pytest.fixture
async def fleet(kafka: KafkaCluster, practice: PracticeProcess, tmp_path: Path) -> AsyncIterator[Fleet]:
    made = Fleet(kafka, tmp_path, practice)
    await made.create()
    yield made
    await made.close()


@asynccontextmanager
async def going_on(*work: Any) -> AsyncIterator[None]:
    """These coroutines run beside the block."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def last(fleet: Fleet, provider: str) -> HealthState | None:
    words = fleet.words[provider]
    return words[-1].state if words else None


def up_since(fleet: Fleet, provider: str, since: datetime) -> bool:
    word = fleet.words[provider][-1]
    return word.state is UP and word.at > since


def orderly(fleet: Fleet, *instances: str) -> None:
    for instance in instances:
        fleet.processes[instance].send_signal(signal.SIGTERM)
    for instance in instances:
        assert fleet.processes[instance].wait(60) == 0, (fleet.folder / f"{instance}.log").read_text()[-2000:]


async def test_workers_come_and_go_and_each_provider_has_one_that_says_what_the_fleet_sees(fleet: Fleet) -> None:
    def owned(*instances: str) -> list[float]:
        return [fleet.metric(instance, "postlane_health_partitions") or 0 for instance in instances]

    fleet.start("health", "h1")
    await fleet.ready("h1")
    async with going_on(fleet.observing(*PROVIDERS)):
        await fleet.until(lambda: all(last(fleet, p) is UP for p in PROVIDERS))
        # What cannot be read stops nobody.
        for value in (b"{", b"", None):
            await fleet.appender.append(Outgoing(fleet.names.observations, 0, b"p0", value))
        fleet.start("health", "h2")
        fleet.start("health", "h3")
        await fleet.until(lambda: owned("h1", "h2", "h3") == [1, 1, 1])
        assert PARTITIONS == 3
        marks = {p: len(fleet.words[p]) for p in PROVIDERS}

        def said_by_owners() -> bool:
            return all(any(w.state is UP for w in fleet.words[p][marks[p] :]) for p in PROVIDERS)

        await fleet.until(said_by_owners)
        speakers = {fleet.words[p][-1].instance for p in PROVIDERS}
        assert len(speakers) > 1
        orderly(fleet, "h2", "h3")
        await fleet.until(lambda: owned("h1") == [3])
        await fleet.until(lambda: all(fleet.words[p][-1].instance == "h1" and last(fleet, p) is UP for p in PROVIDERS))
        assert fleet.metric("h1", 'postlane_provider_state{provider="p0"}') == 1
    async with going_on(fleet.observing("p0", unreached=3), fleet.observing(*PROVIDERS[1:])):
        await fleet.until(lambda: last(fleet, "p0") is DOWN)
        assert last(fleet, "p1") is UP
    orderly(fleet, "h1")
    fleet.never_early()


async def test_senders_go_on_when_the_service_is_killed_and_when_it_lies(fleet: Fleet) -> None:
    assert fleet.practice is not None
    published: list[str] = []

    async def publishing() -> None:
        while True:
            for _ in range(5):
                published.append(fleet.mail(f"k{len(published)}"))
            await asyncio.sleep(0.25)

    def hint() -> float | None:
        return fleet.metric("s1", 'postlane_sender_provider_hint{provider="primary"}')

    def delivered_since(count: int) -> bool:
        taken = fleet.taken()
        return all(delivery in taken for delivery in published[count : count + 20]) and len(published) >= count + 20

    fleet.start("sender", "s1")
    fleet.start("health", "h1")
    async with going_on(publishing()):
        await fleet.until(lambda: last(fleet, "primary") is UP)
        word = fleet.words["primary"][-1]
        assert (word.senders, word.senders_open, set(word.domains)) == (1, 0, {"example.com"})
        assert word.answer_p95_s is not None
        await fleet.until(lambda: hint() == 1)
        # Killed: its word expires, and nothing else happens to a mail.
        mark = len(fleet.words["primary"])
        fleet.processes["h1"].kill()
        fleet.start("health", "h2")  # it is given nothing before the session of the dead one is over
        await fleet.until(lambda: hint() == 0)
        count = len(published)
        await fleet.until(lambda: delivered_since(count))
        # Lied to: every mail of its own is answered, so `down` changes nothing.
        async with going_on(fleet.lying("primary", DOWN)):
            await fleet.until(lambda: hint() == 3)
            count = len(published)
            await fleet.until(lambda: delivered_since(count))
        # Another worker takes over, and begins with what it knows: nothing.
        await fleet.until(lambda: any(w.instance == "h2" and w.state is UP for w in fleet.words["primary"][mark:]))
    await fleet.until(lambda: set(published) <= set(fleet.taken()))
    assert fleet.taken() == {delivery: ["primary"] for delivery in published}
    assert fleet.metric("s1", 'postlane_sender_breaker_state{lane="transactional",provider="primary"}') == 0
    orderly(fleet, "h2", "s1")
    fleet.never_early()


@pytest.mark.skipif(os.environ.get("POSTLANE_LONG_TESTS") != "1", reason="POSTLANE_LONG_TESTS=1 runs it")
async def test_five_kills_in_a_row_and_it_finds_its_word_again_each_time(fleet: Fleet) -> None:
    fleet.start("health", "a0")
    fleet.start("health", "b0")
    await fleet.ready("a0", "b0")
    async with going_on(fleet.observing(*PROVIDERS)):
        await fleet.until(lambda: all(last(fleet, p) is UP for p in PROVIDERS))
        for kill in range(5):
            fleet.processes[f"a{kill}"].kill()
            at = datetime.now(UTC)
            fleet.start("health", f"a{kill + 1}")
            # Longer than the session: whoever says it owns what the killed one had.
            await fleet.until(lambda since=at + timedelta(seconds=8): all(up_since(fleet, p, since) for p in PROVIDERS))
    assert all(word.state in (UP, UNKNOWN) for words in fleet.words.values() for word in words)
    orderly(fleet, "a5", "b0")
    fleet.never_early()
