"""The ledger process over the log in memory: placing, rebalances, gaps, a database that goes away, rebuilds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, update
from tests.ledger_corpus import TOPIC, assert_is_fold_of, corpus, dump

from postlane.clock import SystemClock
from postlane.config import ConfigurationError
from postlane.eventlog.errors import Fatal
from postlane.eventlog.memory import MemoryCluster, MemoryLog
from postlane.eventlog.ports import Outgoing, Partition, Received
from postlane.ops import books as queries
from postlane.ops.books_database import open_database
from postlane.ops.books_schema import books
from postlane.telemetry.metrics import Metrics
from postlane_ledger.ledger import Ledger, LedgerSettings
from postlane_ledger.rebuild import PREFIX, WouldForget, rebuild

PARTITIONS = 3


class World:
    """A cluster in memory with the events topic, and a SQLite file."""

    def __init__(self, folder: Path) -> None:
        self.cluster = MemoryCluster(session_timeout_s=2.0)
        self.cluster.create_topic(TOPIC, PARTITIONS)
        self.url = f"sqlite:///{folder}/ledger.db"
        self.written: list[Received] = []

    async def write(self, records: Sequence[Received]) -> None:
        appender = MemoryLog(self.cluster, "writer").appender()
        for item in records:
            out = Outgoing(TOPIC, item.partition, item.key, item.value, item.headers)
            _, offset = await appender.append(out)
            self.written.append(
                Received(TOPIC, item.partition, offset, item.timestamp_ms, item.key, item.value, item.headers)
            )

    def ledger(self, engine: Engine, name: str = "a", **settings: Any) -> Ledger:
        chosen = LedgerSettings(TOPIC, "ledger", name, poll_wait_s=0.02, **settings)
        return Ledger(MemoryLog(self.cluster, name), engine, chosen, Metrics("ledger").ledger, SystemClock())

    def ends(self) -> dict[int, int]:
        return {n: self.cluster.log(Partition(TOPIC, n)).end for n in range(PARTITIONS)}

    async def folded(self) -> None:
        """Once everything that is in the log is in the database."""
        await until(lambda: self._lag() == 0)

    def _lag(self) -> int:
        try:
            return sum(queries.lag(self.url, TOPIC, self.ends()).values())
        except ConfigurationError:
            return 1


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - another process or task moves it
            await asyncio.sleep(0.01)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@asynccontextmanager
async def running(ledger: Ledger) -> AsyncIterator[asyncio.Task[None]]:
    await ledger.start()
    task = asyncio.create_task(ledger.run())
    try:
        yield task
    finally:
        await asyncio.wait_for(ledger.stop(), 60)
        if not task.cancelled() and task.exception() is None:
            task.result()


async def test_it_follows_the_log_and_goes_on_after_a_restart(world: World) -> None:
    records = corpus(1, 30)
    await world.write(records[:100])
    engine = open_database(world.url)
    async with running(world.ledger(engine)) as task:
        await world.folded()
        await world.write(records[100:150])
        await world.folded()
        assert not task.done()
    await world.write(records[150:])
    engine = open_database(world.url)
    ledger = world.ledger(engine)
    async with running(ledger):
        await world.folded()
        await until(lambda: ledger.not_ready() is None)
        assert_is_fold_of(engine, world.written)


async def test_ledgers_share_the_partitions_and_take_over(world: World) -> None:
    records = corpus(2, 60)
    engines = [open_database(world.url) for _ in range(3)]
    await world.write(records[:50])
    async with running(world.ledger(engines[0], "a")):
        async with running(world.ledger(engines[1], "b")):
            await world.write(records[50:200])
            await world.folded()
        await world.write(records[200:])
        await world.folded()
    assert_is_fold_of(engines[2], world.written)


async def test_a_database_that_goes_away_is_waited_for(world: World) -> None:
    engine = open_database(world.url)
    ledger = world.ledger(engine)
    away = asyncio.Event()

    def gone(*_: Any) -> None:
        if away.is_set():
            from sqlite3 import OperationalError

            from sqlalchemy.exc import OperationalError as Wrapped

            raise Wrapped("x", {}, OperationalError("disk I/O error"))

    event.listen(engine, "before_cursor_execute", gone)
    async with running(ledger) as task:
        await world.write(corpus(3, 10))
        await world.folded()
        away.set()
        await world.write(corpus(4, 10))
        await until(lambda: "disk I/O error" in (ledger.not_ready() or ""))
        assert not task.done()
        away.clear()
        await world.folded()
        await until(lambda: ledger.not_ready() is None)
        assert_is_fold_of(engine, world.written)


async def test_offsets_that_another_moved_are_read_again(world: World) -> None:
    """As after a swapped rebuild: the stored offset went back together with the rows."""
    records = corpus(5, 40)
    engine, other = open_database(world.url), open_database(world.url)
    await world.write(records[:80])
    async with running(world.ledger(engine)):
        await world.folded()
        with other.begin() as connection:
            for table in books().tables:
                if table.name != "offsets":
                    connection.execute(table.delete())
            connection.execute(update(books().offsets).values(next_offset=0))
        await world.write(records[80:])
        await world.folded()
        assert_is_fold_of(engine, world.written)


async def test_a_rebuild_beside_a_running_ledger_loses_and_doubles_nothing(world: World) -> None:
    records = corpus(6, 60)
    engine, other = open_database(world.url), open_database(world.url)
    await world.write(records[:150])
    async with running(world.ledger(engine, batch_events_max=20)) as task:
        await world.folded()
        with other.begin() as connection:
            connection.execute(update(books().deliveries).values(state="delivered"))  # the damage
        rebuilding = asyncio.create_task(rebuild(MemoryLog(world.cluster, "r"), other, TOPIC, SystemClock()))
        await world.write(records[150:])
        await rebuilding
        await world.folded()
        assert not task.done()
    assert_is_fold_of(other, world.written)


async def test_a_rebuild_that_was_killed_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.write(corpus(8, 40))
    engine = open_database(world.url)
    monkeypatch.setattr("postlane_ledger.rebuild.BATCH_EVENTS_MAX", 10)
    seen: list[int] = []

    class Killed(BaseException):
        pass

    def kill(done: int, known: int) -> None:
        seen.append(known)
        if done >= 60:
            raise Killed

    with pytest.raises(Killed):
        await rebuild(MemoryLog(world.cluster, "r"), engine, TOPIC, SystemClock(), progress=kill)
    left = []
    done = await rebuild(
        MemoryLog(world.cluster, "r2"), engine, TOPIC, SystemClock(), progress=lambda done, known: left.append(known)
    )
    assert left[0] <= seen[0] - 60
    assert done.events + done.unreadable == len(world.written)
    assert_is_fold_of(engine, world.written)
    with engine.connect() as connection:
        assert not engine.dialect.has_table(connection, f"{PREFIX}events")


async def test_a_rebuild_that_would_forget_is_refused(world: World) -> None:
    await world.write(corpus(9, 20, poison=False))
    engine = open_database(world.url)
    async with running(world.ledger(engine)):
        await world.folded()
    engine = open_database(world.url)
    before = dump(engine)
    world.cluster.trim(Partition(TOPIC, 0), 5)
    with pytest.raises(WouldForget):
        await rebuild(MemoryLog(world.cluster, "r"), engine, TOPIC, SystemClock())
    assert dump(engine) == before
    await rebuild(MemoryLog(world.cluster, "r"), engine, TOPIC, SystemClock(), forget=True)
    kept = [item for item in world.written if item.partition != 0 or item.offset >= 5]
    assert_is_fold_of(engine, kept)


async def test_what_retention_took_is_a_gap_in_the_books_not_a_standstill(world: World) -> None:
    engine = open_database(world.url)
    async with running(world.ledger(engine)):
        await world.write(corpus(10, 5, poison=False))
        await world.folded()
    folded = world.ends()[1]
    await world.write(corpus(11, 20, poison=False))
    world.cluster.trim(Partition(TOPIC, 1), folded + 3)
    async with running(world.ledger(open_database(world.url))):
        await world.folded()
    (gap,) = queries.unreadable(world.url)
    assert (gap["partition_number"], gap["log_offset"]) == (1, folded)
    assert "retention" in gap["reason"]


async def test_a_topic_that_was_made_anew_is_refused(world: World) -> None:
    async with running(world.ledger(open_database(world.url))):
        await world.write(corpus(12, 5))
        await world.folded()
    world.cluster.topics.clear()
    world.cluster.create_topic(TOPIC, PARTITIONS)
    ledger = world.ledger(open_database(world.url))
    await ledger.start()
    with pytest.raises(Fatal, match="rebuild"):
        await asyncio.wait_for(ledger.run(), 60)
    await ledger.stop()


async def test_another_installation_s_database_is_refused(world: World) -> None:
    async with running(world.ledger(open_database(world.url))):
        await world.write(corpus(13, 2))
        await world.folded()
    world.cluster.create_topic("other.mail.events", 1)
    engine = open_database(world.url)
    settings = LedgerSettings("other.mail.events", "other.ledger", "a")
    ledger = Ledger(MemoryLog(world.cluster), engine, settings, Metrics("ledger").ledger, SystemClock())
    with pytest.raises(ConfigurationError, match=r"mail\.events"):
        await ledger.start()
    await ledger.stop()


async def test_the_timeline_is_pruned_beside_the_fold(world: World) -> None:
    engine = open_database(world.url)
    await world.write(corpus(14, 10, poison=False))
    nothing_kept = -36_500  # days: even what is dated ahead of this machine's clock is past its time
    async with running(world.ledger(engine, timeline_days=nothing_kept, prune_every_s=0.01)):
        await world.folded()
        await until(lambda: not dump(engine)["events"])
        assert dump(engine)["deliveries"]
