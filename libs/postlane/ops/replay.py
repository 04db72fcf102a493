"""Replay: plan from the topics, then write the new generations, exactly once each.

1. A transactional producer of the run's own id is begun first: that settles what a killed run of this id left open.
2. The plan is made from the topics, one partition at a time (postlane.ops.replay_reading, postlane.core.replay).
3. It is carried out in batches. One batch is one transaction: the requests of the new generations, on the partition
   number that the mails have everywhere, and the events that say so.
Killed between two batches, a run that is started again plans from the topics again and finds what was written: the
event is there if and only if the request is. Two runs at once ask for the same new deliveries, and the router drops
what it has seen. A commit of unknown outcome is looked up in the log before anything else is said.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from postlane.core.events import MailRequested
from postlane.core.replay import Choices, Counts, Replay, plan
from postlane.eventlog.codec import decode_record, header
from postlane.eventlog.errors import Aborted, CommitUnknown, LogError, Retriable
from postlane.eventlog.ports import Log, Outgoing, Partition, Received, Transaction, Transactor
from postlane.eventlog.topics import TopicNames
from postlane.ops.letters import Filters, read_letter
from postlane.ops.replay_reading import READ_DEADLINE_S, Reading, Told
from postlane.ops.replay_requests import Manner, Order, Scribe

BATCH_MAX = 250  # candidates in one transaction
BATCH_MAX_BYTES = 4_000_000
CHUNK_MAX = 1_000  # candidates read in one go
GAP_MAX = 5_000  # offsets that are read over rather than sought over
PACED_BATCHES_PER_S = 5
TRIES_MAX = 20
RETRY_S = 0.25

What = Literal["dead letters", "requests"]
_FORCED, _RECORD = 1, 2


class ReplayFailed(LogError):
    """A run could not go on; what was written is on record, and starting it again goes on from there."""


@dataclass(slots=True)
class Items:
    """What will be written for one partition, in columns: some 30 bytes each, so that millions fit."""

    offsets: array[int] = field(default_factory=lambda: array("q"))
    digests: array[int] = field(default_factory=lambda: array("Q"))
    generations: array[int] = field(default_factory=lambda: array("l"))
    replays: array[int] = field(default_factory=lambda: array("l"))
    flags: array[int] = field(default_factory=lambda: array("B"))

    def add(self, verdict: Replay) -> None:
        """Items are added by offset."""
        candidate = verdict.candidate
        self.offsets.append(candidate.offset)
        self.digests.append(int(candidate.digest or "0", 16))
        self.generations.append(verdict.generation)
        self.replays.append(verdict.replays)
        self.flags.append(_FORCED * verdict.forced | _RECORD * (candidate.source in ("poison", "conflict")))

    def __len__(self) -> int:
        return len(self.offsets)

    def at(self, index: int) -> tuple[str, Order, bool]:
        """(digest of the recipient, what is asked for, whether it is a record rather than a delivery)."""
        order = Order(self.generations[index], self.replays[index], bool(self.flags[index] & _FORCED))
        return f"{self.digests[index]:016x}", order, bool(self.flags[index] & _RECORD)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """[first, next) indices of what is read in one go."""
        first = 0
        for index in range(1, len(self) + 1):
            if (
                index == len(self)
                or index - first >= CHUNK_MAX
                or self.offsets[index] - self.offsets[index - 1] > GAP_MAX
            ):
                yield first, index
                first = index


@dataclass(slots=True)
class Plan:
    """What a run would do; `counts` says it in numbers."""

    what: What
    items: dict[int, Items] = field(default_factory=dict)  # by partition
    counts: Counts = field(default_factory=Counts)

    @property
    def total(self) -> int:
        return self.counts.total


async def make_plan(
    reading: Reading, names: TopicNames, what: What, filters: Filters, choices: Choices, manner: Manner
) -> Plan:
    """The plan of a replay, from what the topics say now. Writes nothing. Raises TooMany, Retriable, UnknownTopic."""
    made = Plan(what)
    standing = await reading.standing()
    topic = names.dead_letters if what == "dead letters" else names.requests
    for number in range(await reading.partitions(topic)):
        find = reading.found_letters if what == "dead letters" else reading.found_requests
        found = await find(number, filters, standing, manner)
        room = None if choices.limit is None else max(0, choices.limit - made.total)
        items = Items()
        for verdict in plan(found.candidates, found.facts, choices, room):
            made.counts.add(verdict)
            if isinstance(verdict, Replay):
                items.add(verdict)
        if items:
            made.items[number] = items
    return made


@dataclass(slots=True)
class Pace:
    """At most `rate_per_s`, evenly; None is as fast as it goes."""

    rate_per_s: float | None
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _due: float | None = None

    @property
    def batch_max(self) -> int:
        if self.rate_per_s is None:
            return BATCH_MAX
        return max(1, min(BATCH_MAX, int(self.rate_per_s / PACED_BATCHES_PER_S)))

    async def wait(self, count: int) -> None:
        """Returns when `count` more may be written."""
        if self.rate_per_s is None:
            return
        now = self.clock()
        due = now if self._due is None else max(self._due, now)
        if due > now:
            await self.sleep(due - now)
        self._due = due + count / self.rate_per_s

    def seconds_for(self, count: int) -> float:
        return 0.0 if self.rate_per_s is None else count / self.rate_per_s


@dataclass(slots=True)
class _Batch:
    records: list[Outgoing] = field(default_factory=list)
    count: int = 0
    bytes: int = 0

    def add(self, written: Sequence[Outgoing]) -> None:
        self.records += written
        self.count += 1
        self.bytes += sum(len(record.value or b"") for record in written)


class Runner:
    """Carries out one plan. `token` is unlike that of any other run; `now` is the time that records carry."""

    def __init__(
        self,
        log: Log,
        names: TopicNames,
        transactor: Transactor,
        scribe: Scribe,
        pace: Pace,
        told: Told,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._log = log
        self._names = names
        self._writer = Writer(log, names, transactor)
        self._scribe = scribe
        self._pace = pace
        self._told = told
        self._now = now
        self.written = 0

    async def run(self, made: Plan) -> int:
        """Write everything that was planned; how many. Raises ReplayFailed, Fenced, Fatal: run again to go on."""
        topic = self._names.dead_letters if made.what == "dead letters" else self._names.requests
        for number, items in sorted(made.items.items()):
            partition = Partition(topic, number)
            await self._writer.begin(number)
            for first, after in items.chunks():
                await self._chunk(partition, items, first, after, made.total)
        return self.written

    async def _chunk(self, partition: Partition, items: Items, first: int, after: int, total: int) -> None:
        batch, index = _Batch(), first
        async for record in self._records(partition, items, first, after):
            while index < after and items.offsets[index] <= record.offset:
                if items.offsets[index] == record.offset:
                    batch.add(self._written(record, *items.at(index)))
                index += 1
                if batch.count >= self._pace.batch_max or batch.bytes >= BATCH_MAX_BYTES:
                    await self._commit(partition.number, batch, total)
                    batch = _Batch()
        if batch.count:
            await self._commit(partition.number, batch, total)

    async def _records(self, partition: Partition, items: Items, first: int, after: int) -> AsyncIterator[Received]:
        start, end = items.offsets[first], items.offsets[after - 1] + 1
        deadline_s = READ_DEADLINE_S + 2 * self._pace.seconds_for(after - first)
        async for batch in self._log.read(partition, start, end, deadline_s=deadline_s):
            for record in batch:
                yield record

    def _written(self, record: Received, digest: str, order: Order, is_record: bool) -> list[Outgoing]:
        now = self._now()
        if record.topic == self._names.requests:
            return self._scribe.replay_request(record, decode_record(MailRequested, record), digest, order, now)
        letter = read_letter(record, self._names)
        if is_record:
            return self._scribe.redrive(letter, now)
        return self._scribe.replay_dispatch(letter, order, digest, now)

    async def _commit(self, number: int, batch: _Batch, total: int) -> None:
        await self._pace.wait(batch.count)
        await self._writer.write(number, batch.records)
        self.written += batch.count
        self._told("replayed", self.written, total)


class Writer:
    """Writes batches whose events are all in one partition, each exactly once, whatever a commit says."""

    def __init__(self, log: Log, names: TopicNames, transactor: Transactor) -> None:
        self._log = log
        self._events = names.events
        self._transactor = transactor
        self._marks: dict[int, int] = {}  # by partition: an offset that our next event is not below

    async def begin(self, number: int) -> None:
        """Must be called for a partition before the first batch that has events in it."""
        partition = Partition(self._events, number)
        self._marks[number] = (await self._log.high_watermarks([partition]))[partition]

    async def write(self, number: int, records: Sequence[Outgoing]) -> None:
        """One transaction. Raises ReplayFailed when it cannot be written, Fenced, Fatal."""
        for _ in range(TRIES_MAX):
            try:
                ends = await self._transactor.commit(Transaction(records, {}, None))
            except Aborted:
                await asyncio.sleep(RETRY_S)
                continue
            except (CommitUnknown, Retriable):
                if await self._happened(number, records):
                    return
                continue
            self._marks[number] = ends.get(Partition(self._events, number), self._marks[number])
            return
        raise ReplayFailed(f"a batch could not be written in {TRIES_MAX} tries; start again to go on")

    async def _happened(self, number: int, records: Sequence[Outgoing]) -> bool:
        """Settle what was left open, then look whether the batch is in the log: all of it is, or nothing."""
        ident = next(header(r.headers, "ce_id") for r in records if r.topic == self._events)
        for _ in range(TRIES_MAX):
            try:
                await self._transactor.rebuild()
                return await self._is_there(Partition(self._events, number), ident)
            except Retriable:
                await asyncio.sleep(RETRY_S)
        raise ReplayFailed("nobody knows whether the last batch was written; start again, which finds out")

    async def _is_there(self, partition: Partition, ident: bytes | None) -> bool:
        start, end = self._marks[partition.number], (await self._log.high_watermarks([partition]))[partition]
        if start >= end:
            return False
        async for batch in self._log.read(partition, start, end, deadline_s=READ_DEADLINE_S):
            if any(header(record.headers, "ce_id") == ident for record in batch):
                return True
        return False
