"""What this process owns: partitions, where each goes on, and how one is taken over.

Taking over partition p (each step is there because leaving it out loses or doubles a mail):
  1. stable committed positions first: an earlier owner's open transaction is settled by then;
  2. then the real ends of `mail.seen`, so that they cover what that transaction wrote;
  3. the memory of keys catches up from what the store has applied to that end;
  4. only then the partition starts, at the committed position.
A partition that cannot be taken over stays still, and `problem` says why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from postlane.core.events import Seen
from postlane.eventlog.codec import Unreadable, decode
from postlane.eventlog.errors import Retriable
from postlane.eventlog.ports import Committed, Log, Member, Membership, Partition, Received
from postlane.eventlog.topics import TopicNames
from postlane_router.store import DAY_S, Applied, Entry, SeenStore, StoreBroken

log = logging.getLogger("postlane.router")

POSITION_MARK = "R1"  # metadata of the positions that a router commits; one that a tool has reset has none
CLOSED_AGAIN_FACTOR = 10  # how much longer than for a passing failure one waits where a person has to act


class FailClosed(Exception):
    """This partition must not move before a person has looked; the message says at what."""


@dataclass(slots=True)
class Book:
    """One owned partition: where reading goes on, and what is committed; None until it was taken over."""

    next: int | None = None
    committed: int = 0


class Listening(Protocol):
    """What ownership asks of the loop."""

    async def settle(self) -> bool:
        """Wait for the transaction that is under way."""

    def forget_wakes(self, partitions: Collection[Partition]) -> None:
        """These are no longer ours, or start again."""


class Ownership:
    """Fills `ports.Listener`; `membership` and `books` are those of the latest assignment."""

    def __init__(
        self,
        cluster: Log,
        names: TopicNames,
        store: SeenStore,
        listening: Listening,
        timeout_s: float,
        retry_wait_s: float,
    ) -> None:
        self._cluster = cluster
        self._names = names
        self._store = store
        self._listening = listening
        self._timeout_s = timeout_s
        self._retry_wait_s = retry_wait_s
        self._task: asyncio.Task[None] | None = None
        self.member: Member | None = None
        self.membership: Membership | None = None
        self.books: dict[Partition, Book] = {}
        self.unopened: set[Partition] = set()  # read from, but without a committed position yet
        self.oldest_day = 0  # entries of earlier days are not restored
        self.epoch = 0  # raised whenever what was read before is to be read again
        self.problem: str | None = None
        self.failure: BaseException | None = None

    # -------------------------------------------------------------------------------------------------- Listener

    async def assigned(self, membership: Membership, added: frozenset[Partition]) -> None:
        """`added` are ours now."""
        self.membership = membership
        for partition in sorted(added):  # one order in every process: a simulation's run can be repeated
            self.books[partition] = Book()
        log.info("assigned", extra={"generation": membership.generation, "partitions": len(added)})
        self.take_over()

    async def revoked(self, removed: frozenset[Partition]) -> None:
        """What is under way is settled first: then it is another's."""
        await self._listening.settle()
        self._drop(removed)

    async def lost(self, removed: frozenset[Partition]) -> None:
        """Another owns them already; the broker refuses what is under way, and that has to be known too."""
        log.warning("lost partitions", extra={"partitions": len(removed)})
        await self._listening.settle()
        self._drop(removed)

    def _drop(self, removed: frozenset[Partition]) -> None:
        for partition in removed:
            self.books.pop(partition, None)
            self.unopened.discard(partition)
        self._listening.forget_wakes(removed)
        if not self.books:
            self.membership = None
        self.take_over()

    # ------------------------------------------------------------------------------------------------- positions

    def next(self, partition: Partition) -> int | None:
        """Where a partition goes on; None while it may not move."""
        book = self.books.get(partition)
        return None if book is None else book.next

    def read(self, offsets: Mapping[Partition, int]) -> None:
        """A transaction with these positions is under way."""
        for partition, offset in offsets.items():
            book = self.books.get(partition)
            if book is not None and book.next is not None:
                book.next = offset

    def committed(self, offsets: Mapping[Partition, int]) -> None:
        """It was committed."""
        for partition, offset in offsets.items():
            book = self.books.get(partition)
            if book is not None and book.next is not None:
                book.committed = offset
            self.unopened.discard(partition)

    def rewind(self) -> None:
        """Nothing of it happened: read again from the committed positions."""
        self.epoch += 1
        self._listening.forget_wakes(self.books.keys())
        for partition, book in self.books.items():
            if book.next is not None and self.member is not None:
                book.next = book.committed
                self.member.start(partition, book.next)

    def stand_still(self) -> None:
        """Nobody knows what was committed: every partition has to be taken over again."""
        self.epoch += 1
        if self.member is not None:
            self.member.pause(self.books.keys())
        self._listening.forget_wakes(self.books.keys())
        for book in self.books.values():
            book.next = None

    def unready(self) -> list[Partition]:
        """What is ours and may not move yet."""
        return [partition for partition, book in self.books.items() if book.next is None]

    # ------------------------------------------------------------------------------------------------- take-over

    def take_over(self) -> None:
        """Begin (again) to take over what may not move yet."""
        self.cancel()
        self.problem = None
        if self.unready():
            self._task = asyncio.get_running_loop().create_task(self._take_over(), name="take over")

    def cancel(self) -> None:
        """Stop taking over."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _take_over(self) -> None:
        while unready := self.unready():
            wait_s = self._retry_wait_s
            try:
                await self._take(unready)
                self.problem = None
                continue
            except Retriable as error:
                self.problem = f"taking over: {error}"
            except StoreBroken as error:
                log.warning("the store is damaged and is rebuilt from the log", extra={"error": str(error)})
                self.stand_still()
                # Positions are asked for, and the store is emptied, only when no transaction can still change them.
                await self._listening.settle()
                self._store.reset()
                continue
            except FailClosed as error:
                self.problem = str(error)
                wait_s *= CLOSED_AGAIN_FACTOR
            except Exception as error:  # nothing that waiting mends: the loop raises it and the process ends
                self.failure = error
                return
            log.error("cannot take over yet", extra={"reason": self.problem, "again_in_s": wait_s})
            await asyncio.sleep(wait_s)

    async def _take(self, unready: list[Partition]) -> None:
        assert self.member is not None
        committed = await self.member.committed(unready)
        seen = [Partition(self._names.seen, p.number) for p in unready if p.topic == self._names.requests]
        ends = await self._cluster.high_watermarks([*seen, *unready])
        begins = await self._cluster.low_watermarks([*seen, *unready])
        if seen:
            await self._same_topic()
        for partition in seen:
            await self._catch_up(partition, begins[partition], ends[partition])
        closed = []
        for partition in unready:
            try:
                offset = self._position(partition, committed.get(partition), begins[partition], ends[partition])
            except FailClosed as error:
                closed.append(str(error))
                continue
            if committed.get(partition) is None:
                self.unopened.add(partition)
            book = self.books[partition]
            book.next = book.committed = offset
            self.member.start(partition, offset)
        if closed:
            raise FailClosed("; ".join(closed))

    def _position(self, partition: Partition, committed: Committed | None, begin: int, end: int) -> int:
        """Where to start: the committed position; the beginning where nothing was ever read. Raises FailClosed."""
        where = f"{partition.topic}[{partition.number}]"
        if committed is not None:
            # One record of difference, with nothing left, is the control record after the last one read.
            if committed.offset < begin and not (begin == end and begin - committed.offset == 1):
                raise FailClosed(
                    f"{where}: committed position {committed.offset} lies below the start of the log ({begin}): "
                    "records were deleted before they were read; run `postlane doctor`"
                )
            self._check_not_reset(partition, committed, begin, end)
            return max(committed.offset, begin)
        applied = self._store.applied(partition.number)
        if applied is not None and applied.entries > 0 and end > begin:
            raise FailClosed(
                f"{where}: there is no committed position, but {self._names.seen}[{partition.number}] shows that it "
                "was read before (consumer offsets expired or deleted?): starting over could mail again; "
                "run `postlane doctor`"
            )
        return begin

    async def _same_topic(self) -> None:
        """The store's positions mean something only in the topic that they were made in. Raises FailClosed."""
        topic = self._names.seen
        current, known = await self._cluster.topic_id(topic), self._store.origin()
        if known is None:
            self._store.adopt(current)
        elif known != current:
            raise FailClosed(
                f"{topic} was deleted and made anew (its id is {current}, {known} was applied): the keys that it held "
                "are known here only; run `postlane doctor`, see docs/disaster.md"
            )

    def _check_not_reset(self, partition: Partition, committed: Committed, begin: int, end: int) -> None:
        """Raises FailClosed for a position at the beginning that no router committed, where one has worked before.

        Routers of earlier versions committed no mark: their positions are taken, unless they say "from the beginning",
        which is what a reset by mistake says. For requests the memory of keys would stop most of it, but only as far
        back as it reaches; what is read again from a delay topic nothing else would stop.
        """
        if committed.metadata == POSITION_MARK or committed.offset > begin or end <= begin:
            return
        applied = self._store.applied(partition.number)
        if applied is not None and applied.entries > 0:
            raise FailClosed(
                f"{partition.topic}[{partition.number}]: the committed position {committed.offset} is the beginning of "
                f"the log and is not a router's, but {self._names.seen}[{partition.number}] shows that it was read "
                "before (offsets reset by another tool?): starting over could mail again; run `postlane doctor`"
            )

    async def _catch_up(self, partition: Partition, begin: int, end: int) -> None:
        """Apply `mail.seen` of one partition to the store, up to `end`. What was applied stays when this fails."""
        applied = self._store.applied(partition.number)
        start, count = (begin, 0) if applied is None else applied
        if start > end:
            raise FailClosed(
                f"{partition.topic}[{partition.number}] ends at {end}, but {start} was applied before: the topic was "
                "truncated or made anew; run `postlane doctor`"
            )
        if applied is None or start < begin:
            log.info("rebuilding the memory of keys", extra={"partition": partition.number, "records": end - begin})
        start = max(start, begin)
        async for records in self._cluster.read(partition, start, end, deadline_s=self._timeout_s):
            if not records:
                continue
            entries = [entry for entry in map(_entry, records) if entry is not None]
            count += len(entries)
            kept = [entry for entry in entries if entry.day >= self.oldest_day]
            self._store.add(partition.number, kept, Applied(records[-1].offset + 1, count))
        self._store.add(partition.number, [], Applied(end, count))


def _entry(record: Received) -> Entry | None:
    """One record of the changelog, None where it holds nothing; an unreadable one still says that its key was seen."""
    if record.key is None or record.value is None:
        return None
    try:
        seen = decode(Seen, record.value)
        return Entry(record.key, bytes.fromhex(seen.digest), int(seen.at.timestamp()) // DAY_S)
    except (Unreadable, ValueError):
        return Entry(record.key, b"", record.timestamp_ms // 1000 // DAY_S)
