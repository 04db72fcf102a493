"""Fold the whole log again, into fresh tables beside the ones in use, and swap them in one transaction.

Until the swap, status and a running ledger see the old tables; after it, the ledger finds that its stored offsets are
others and goes on from them. A rebuild that was killed goes on where its own offsets say.

  1. make the fresh tables, or take up those of a rebuild that was interrupted
  2. fold every partition to the end that it had, and again until little is left
  3. in one transaction: lock the offsets, replace the content of every table
  4. drop the fresh tables
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, delete, func, insert, inspect, select, text

from postlane.clock import Clock
from postlane.eventlog.ports import Log, Partition, Received
from postlane.ops.books_database import database_errors
from postlane.ops.books_schema import Books, books
from postlane_ledger.batch import prepare
from postlane_ledger.fold import Fold
from postlane_ledger.migrate import upgrade

PREFIX = "rebuild_"
BATCH_EVENTS_MAX = 10_000
LEFT_MAX_EVENTS = 5_000  # that the running ledger may catch up with after the swap
ROUNDS_MAX = 5
READ_TIMEOUT_S = 600.0

Progress = Callable[[int, int], None]  # events folded, events known to be there


class WouldForget(Exception):
    """The log no longer has everything that these tables were folded from: a rebuild would lose what is older."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What the new tables hold."""

    events: int
    unreadable: int
    messages: int
    deliveries: int
    next_offsets: dict[int, int]


async def rebuild(
    cluster: Log,
    engine: Engine,
    topic: str,
    clock: Clock,
    *,
    forget: bool = False,
    fresh: bool = False,
    progress: Progress = lambda done, known: None,
) -> Rebuilt:
    """Rebuild the ledger of `topic`. `fresh` throws an interrupted rebuild away.

    Raises WouldForget unless `forget`; DatabaseUnavailable, Retriable, EndNotReached, OffsetGone: run it again.
    """
    count = await cluster.partition_count(topic)
    partitions = [Partition(topic, number) for number in range(count)]
    low = await cluster.low_watermarks(partitions)
    await asyncio.to_thread(upgrade, engine)
    if not forget and any(low.values()) and await asyncio.to_thread(_knows_anything, engine):
        raise WouldForget(
            "the log begins after offset 0 (retention), so mails that it no longer has would be forgotten"
        )
    shadow = books(PREFIX)
    fold = Fold(engine, shadow, topic, lambda: int(clock.now().timestamp() * 1000))
    await asyncio.to_thread(_prepare, engine, shadow, fresh)
    stored = await asyncio.to_thread(fold.begin, {partition.number: low[partition] for partition in partitions})
    if any(stored[partition.number] < low[partition] for partition in partitions):  # interrupted too long ago
        await asyncio.to_thread(_prepare, engine, shadow, True)
        stored = await asyncio.to_thread(fold.begin, {partition.number: low[partition] for partition in partitions})
    for _ in range(ROUNDS_MAX):
        if await _round(cluster, fold, partitions, stored, progress) <= LEFT_MAX_EVENTS:
            break
    return await asyncio.to_thread(_swap, engine, shadow, stored)


async def _round(
    cluster: Log, fold: Fold, partitions: list[Partition], stored: dict[int, int], progress: Progress
) -> int:
    """Fold to the ends as they are now; returns how many there were to fold."""
    ends = await cluster.high_watermarks(partitions)
    known = sum(max(0, ends[partition] - stored[partition.number]) for partition in partitions)
    left = known
    for partition in partitions:
        number, end = partition.number, ends[partition]
        gathered: list[Received] = []
        async for records in cluster.read(partition, stored[number], end, deadline_s=READ_TIMEOUT_S):
            gathered.extend(records)
            if len(gathered) >= BATCH_EVENTS_MAX:
                left -= await _take(fold, gathered, stored)
                gathered = []
                progress(known - left, known)
        if gathered:
            left -= await _take(fold, gathered, stored)
        progress(known - left, known)
    return known


async def _take(fold: Fold, records: list[Received], stored: dict[int, int]) -> int:
    folded = await asyncio.to_thread(lambda: fold.apply(prepare(records), dict(stored)))
    stored.update(folded.next_offsets)
    return len(records)


def _knows_anything(engine: Engine) -> bool:
    with database_errors(), engine.connect() as connection:
        return connection.execute(select(books().messages.c.message_id).limit(1)).first() is not None


def _prepare(engine: Engine, shadow: Books, fresh: bool) -> None:
    with database_errors(), engine.begin() as connection:
        there = set(inspect(connection).get_table_names())
        complete = all(table.name in there for table in shadow.tables)
        if fresh or not complete:
            shadow.metadata.drop_all(connection)
            shadow.metadata.create_all(connection)


def _swap(engine: Engine, shadow: Books, stored: dict[int, int]) -> Rebuilt:
    live = books()
    with database_errors(), engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text(f"LOCK TABLE {live.offsets.name} IN EXCLUSIVE MODE"))
        for new, old in zip(shadow.tables, live.tables, strict=True):
            connection.execute(delete(old))
            columns = [column.name for column in old.columns]
            connection.execute(insert(old).from_select(columns, select(*(new.c[name] for name in columns))))
        rebuilt = Rebuilt(
            _count(connection, live, "events"),
            _count(connection, live, "unreadable"),
            _count(connection, live, "messages"),
            _count(connection, live, "deliveries"),
            dict(stored),
        )
        shadow.metadata.drop_all(connection)
    return rebuilt


def _count(connection: Connection, made: Books, name: str) -> int:
    return connection.execute(select(func.count()).select_from(getattr(made, name))).scalar_one()
