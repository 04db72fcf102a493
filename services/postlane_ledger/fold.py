"""One batch, one database transaction: the rows and the offsets that they were folded from, or neither.

Steps, in this order:
  1. decode, outside the transaction (`batch.prepare`)
  2. move the offsets of the batch's partitions, each only from where we believe it stands; this takes the row locks,
     so another ledger on the same database waits here, then finds that it was overtaken
  3. read the rows that the batch touches
  4. fold, in memory
  5. write rows, timeline, counts and unreadable records
  6. commit
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, bindparam, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from postlane.core.rules import ALL_RULES, Rules
from postlane.ops.books_database import DatabaseRefused, database_errors
from postlane.ops.books_schema import Books
from postlane_ledger.batch import Batch, Changes, fold, prepare
from postlane_ledger.writer import writer

PRUNE_MAX_ROWS = 5_000
GARBAGE_MAX = 20_000  # objects since the last collection: the database library leaves some in cycles for each batch


class Overtaken(Exception):
    """The stored offset is not the one we started from: another ledger folded this partition. Read it again."""


@dataclass(frozen=True, slots=True)
class Folded:
    """What a batch came to: the next offset of each partition, events by type, records passed over."""

    next_offsets: Mapping[int, int]
    types: Mapping[str, int]
    unreadable: int


class Fold:
    """Folds batches of one topic into one set of tables. Not thread-safe: one caller at a time."""

    def __init__(
        self, engine: Engine, books: Books, topic: str, clock_ms: Callable[[], int], rules: Rules = ALL_RULES
    ) -> None:
        """`clock_ms` is milliseconds since 1970; it only says when an offset was moved last."""
        self._engine = engine
        self._books = books
        self._topic = topic
        self._clock_ms = clock_ms
        self._rules = rules
        self._writer = writer(engine, books)
        o = books.offsets
        self._move = (
            update(o)
            .where(o.c.topic == topic, o.c.partition_number == bindparam("p"), o.c.next_offset == bindparam("expected"))
            .values(next_offset=bindparam("next"), updated_at_ms=bindparam("now"))
        )

    def offsets(self) -> dict[int, int]:
        """The next offset of every partition that was ever begun. Raises DatabaseUnavailable."""
        o = self._books.offsets
        with database_errors(), self._engine.connect() as connection:
            found = connection.execute(select(o.c.partition_number, o.c.next_offset).where(o.c.topic == self._topic))
            return {row.partition_number: row.next_offset for row in found}

    def other_topics(self) -> tuple[str, ...]:
        """Topics other than ours that these tables were folded from; they must stay apart."""
        o = self._books.offsets
        with database_errors(), self._engine.connect() as connection:
            found = connection.execute(select(o.c.topic).where(o.c.topic != self._topic).distinct())
            return tuple(sorted(found.scalars()))

    def begin(self, starts: Mapping[int, int]) -> dict[int, int]:
        """Make sure that each partition has an offset: `starts` where there is none yet. Returns what is stored."""
        o = self._books.offsets
        make = (postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert)(o)
        rows = [
            {"topic": self._topic, "partition_number": p, "next_offset": start, "updated_at_ms": self._clock_ms()}
            for p, start in sorted(starts.items())
        ]
        if rows:
            with database_errors(), self._engine.begin() as connection:
                connection.execute(make.on_conflict_do_nothing(), rows)
        stored = self.offsets()
        return {p: stored[p] for p in starts}

    def skip(self, partition: int, expected: int, to: int, reason: str) -> None:
        """Move an offset over records that the log no longer has; the gap is written down. Raises Overtaken."""
        with database_errors(), self._engine.begin() as connection:
            self._move_offsets(connection, {partition: (expected, to)}, {partition: expected})
            connection.execute(
                self._books.unreadable.insert(),
                [{"partition_number": partition, "log_offset": expected, "at_ms": self._clock_ms(), "reason": reason}],
            )

    def apply(self, batch: Batch, expected: Mapping[int, int]) -> Folded:
        """Fold a batch. `expected` is the next offset of each of its partitions, as this caller knows it.

        Raises Overtaken, DatabaseUnavailable: what happened is what `offsets` says. A record that the database refuses
        is found by halving, kept as unreadable and passed over, so that nothing ever blocks a partition.
        """
        try:
            changes = self._transaction(batch, expected)
        except DatabaseRefused as refusal:
            return self._around(batch, expected, refusal)
        if gc.get_count()[0] > GARBAGE_MAX:
            gc.collect(1)
        following = {p: following for p, (_, following) in batch.spans.items()}
        return Folded(following, changes.types, len(changes.unreadable))

    def _transaction(self, batch: Batch, expected: Mapping[int, int]) -> Changes:
        b = self._books
        with database_errors(), self._engine.begin() as connection:
            if self._rules.ledger_offsets_with_rows:
                self._move_offsets(connection, batch.spans, expected)
            messages = self._writer.read(connection, b.messages, b.messages.c.message_id, batch.message_ids)
            deliveries = self._writer.read(connection, b.deliveries, b.deliveries.c.delivery_id, batch.delivery_ids)
            changes = fold(batch, messages, deliveries)
            self._writer.write(connection, changes)
        if not self._rules.ledger_offsets_with_rows:
            with database_errors(), self._engine.begin() as connection:
                self._move_offsets(connection, batch.spans, expected)
        return changes

    def _around(self, batch: Batch, expected: Mapping[int, int], refusal: DatabaseRefused) -> Folded:
        if len(batch.records) == 1:
            if batch.unreadable:
                raise refusal  # it is not this record's content
            (record,) = batch.records
            kept = prepare(batch.records, {(record.partition, record.offset): f"the database refused it: {refusal}"})
            return self.apply(kept, expected)
        first, second = batch.halves()
        one = self.apply(first, expected)
        two = self.apply(second, {**expected, **one.next_offsets})
        types = {kind: one.types.get(kind, 0) + two.types.get(kind, 0) for kind in {*one.types, *two.types}}
        return Folded({**one.next_offsets, **two.next_offsets}, types, one.unreadable + two.unreadable)

    def _move_offsets(
        self, connection: Connection, spans: Mapping[int, tuple[int, int]], expected: Mapping[int, int]
    ) -> None:
        """In the order of the partitions, so that two ledgers never wait for each other in a circle."""
        for partition, (first, following) in sorted(spans.items()):
            if first < expected[partition]:
                raise ValueError(f"partition {partition}: offset {first} was folded already, at {expected[partition]}")
            moved = connection.execute(
                self._move,
                {"p": partition, "expected": expected[partition], "next": following, "now": self._clock_ms()},
            )
            if moved.rowcount != 1:
                raise Overtaken(f"partition {partition}: the stored offset is no longer {expected[partition]}")

    def prune(self, partitions: Collection[int], before_ms: int) -> int:
        """Forget timeline rows older than `before_ms`, at most PRUNE_MAX_ROWS of each partition. Returns how many.

        Rows of a partition are nearly in the order of time, so the oldest are found by the primary key; a row that is
        younger than its followers only delays them.
        """
        e = self._books.events
        gone = 0
        for partition in sorted(partitions):
            oldest = (
                select(e.c.log_offset, e.c.at_ms)
                .where(e.c.partition_number == partition)
                .order_by(e.c.log_offset)
                .limit(PRUNE_MAX_ROWS)
                .subquery()
            )
            with database_errors(), self._engine.begin() as connection:
                kept = select(oldest.c.log_offset).where(oldest.c.at_ms >= before_ms).order_by(oldest.c.log_offset)
                first_kept = connection.execute(kept.limit(1)).scalar()
                last = connection.execute(
                    select(oldest.c.log_offset).order_by(oldest.c.log_offset.desc()).limit(1)
                ).scalar()
                if last is None:
                    continue
                end = last + 1 if first_kept is None else first_kept
                done = connection.execute(delete(e).where(e.c.partition_number == partition, e.c.log_offset < end))
                gone += done.rowcount
        return gone
