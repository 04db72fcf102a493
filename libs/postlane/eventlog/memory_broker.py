"""The brokers of the in-memory log: partitions, transactions and their coordinator, on the loop's own clock.

It models what matters to the books: control records take offsets, an open transaction holds the last stable offset
back, a producer of an older epoch is refused, a transaction of a dead process dangles until its time-out or until the
next InitProducerId of its id. Nothing here awaits; every step is one atomic event at the broker.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from postlane.eventlog.errors import OffsetGone, TooLarge, UnknownTopic
from postlane.eventlog.memory_group import Group, Token
from postlane.eventlog.murmur2 import partition_of
from postlane.eventlog.ports import Committed, Outgoing, Partition, Received
from postlane.eventlog.topics import RECORD_MAX_BYTES, TopicSpec

EPOCH_MS = 1_767_225_600_000  # 2026-01-01: what the loop's time 0 is on record timestamps


class ProducerFenced(Exception):
    """The producer's epoch is not the latest of its transactional id."""


class NoTransaction(Exception):
    """The coordinator knows of no open transaction to end."""


class Fate(Enum):
    """What became of a record."""

    OPEN = "open"
    COMMITTED = "committed"
    ABORTED = "aborted"
    CONTROL = "control"  # a marker, never delivered


@dataclass(slots=True)
class Entry:
    """One offset of a partition."""

    offset: int
    fate: Fate
    record: Received | None


@dataclass(slots=True)
class PartitionLog:
    """The log of one partition: entries by offset, with gaps where compaction took some."""

    partition: Partition
    start: int = 0
    end: int = 0  # the high watermark: there is one replica, in sync with itself
    entries: list[Entry] = field(default_factory=list)
    open: dict[int, int] = field(default_factory=dict)  # producer id -> first offset of its open transaction

    @property
    def last_stable(self) -> int:
        return min(self.open.values(), default=self.end)

    def append(self, record: Received | None, fate: Fate) -> Entry:
        entry = Entry(self.end, fate, record)
        self.entries.append(entry)
        self.end += 1
        return entry

    def fetch(self, position: int, limit: int, *, committed: bool) -> tuple[list[Received], int]:
        """(records, position after them); control records, aborted ones and gaps only move the position.

        Raises OffsetGone when the position is not within the log.
        """
        if not self.start <= position <= self.end:
            raise OffsetGone(f"{self.partition}: position {position}, the log is [{self.start}, {self.end}]")
        bound = self.last_stable if committed else self.end
        found: list[Received] = []
        at = bisect_left(self.entries, position, key=_offset)
        while at < len(self.entries) and self.entries[at].offset < bound:
            if len(found) == limit:
                return found, self.entries[at].offset
            entry = self.entries[at]
            if entry.record is not None and (entry.fate is Fate.COMMITTED or not committed):
                found.append(entry.record)
            at += 1
        return found, max(position, bound)

    def trim(self, before: int) -> None:
        """Retention: the log starts at `before` from now on."""
        self.start = max(self.start, min(before, self.end))
        del self.entries[: bisect_left(self.entries, self.start, key=_offset)]

    def compact(self, *, drop_tombstones: bool = False) -> None:
        """Keep the latest stable record of each key; markers and aborted records go too, offsets stay."""
        stable = self.last_stable
        latest = {
            e.record.key: e.offset
            for e in self.entries
            if e.record is not None and e.fate is Fate.COMMITTED and e.offset < stable
        }
        self.entries = [e for e in self.entries if e.offset >= stable or _survives(e, latest, drop_tombstones)]


def _offset(entry: Entry) -> int:
    return entry.offset


def _survives(entry: Entry, latest: Mapping[bytes | None, int], drop_tombstones: bool) -> bool:
    if entry.record is None or entry.fate is not Fate.COMMITTED or latest[entry.record.key] != entry.offset:
        return False
    return entry.record.value is not None or not drop_tombstones


@dataclass(slots=True)
class Producer:
    """What the transaction coordinator knows of one transactional id."""

    id: int
    epoch: int = 0
    written: dict[Partition, list[Entry]] = field(default_factory=dict)
    offsets: dict[str, dict[Partition, Committed]] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    serial: int = 0  # counts transactions

    @property
    def is_open(self) -> bool:
        return bool(self.written or self.offsets)


class Signal:
    """Wakes everyone who waits for something to change, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def notify(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, timeout_s: float) -> None:
        """Until the next `notify`, at most `timeout_s` seconds of the loop's time."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        timer = loop.call_later(timeout_s, _wake, future)
        try:
            await future
        finally:
            timer.cancel()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class MemoryCluster:
    """The state that every process of a simulation or test shares.

    `transaction_timeout_s` and `session_timeout_s` are those of all clients; times are the running loop's.
    """

    def __init__(
        self,
        *,
        transaction_timeout_s: float = 12.0,
        session_timeout_s: float = 10.0,
        max_poll_interval_s: float = 300.0,
    ) -> None:
        self.transaction_timeout_s = transaction_timeout_s
        self.session_timeout_s = session_timeout_s
        self.max_poll_interval_s = max_poll_interval_s
        self.topics: dict[str, list[PartitionLog]] = {}
        self.topic_ids: dict[str, str] = {}
        self._made = 0  # topics, ever
        self.producers: dict[str, Producer] = {}
        self.changed = Signal()
        self._groups: dict[str, Group] = {}
        self._next_producer = 1
        self._keyless = 0

    # -- topics

    def create_topic(self, name: str, partitions: int) -> None:
        if name not in self.topics:
            self._made += 1
            self.topic_ids[name] = f"{name}#{self._made}"
            self.topics[name] = [PartitionLog(Partition(name, n)) for n in range(partitions)]

    def delete_topic(self, name: str) -> None:
        self.topics.pop(name, None)
        self.topic_ids.pop(name, None)

    def create_topics(self, specs: Iterable[TopicSpec]) -> None:
        for spec in specs:
            self.create_topic(spec.name, spec.partitions)

    def log(self, partition: Partition) -> PartitionLog:
        """Raises UnknownTopic."""
        logs = self.topics.get(partition.topic)
        if logs is None or not 0 <= partition.number < len(logs):
            raise UnknownTopic(f"{partition.topic}[{partition.number}] does not exist")
        return logs[partition.number]

    def trim(self, partition: Partition, before: int) -> None:
        """Retention takes what lies below `before`."""
        self.log(partition).trim(before)

    def compact(self, topic: str, *, drop_tombstones: bool = False) -> None:
        for log in self.topics[topic]:
            log.compact(drop_tombstones=drop_tombstones)

    def group(self, name: str) -> Group:
        if name not in self._groups:
            self._groups[name] = Group(name, self)
        return self._groups[name]

    def now_ms(self) -> int:
        return EPOCH_MS + int(asyncio.get_running_loop().time() * 1000)

    # -- writing

    def target(self, record: Outgoing) -> Partition:
        """Raises UnknownTopic, TooLarge."""
        size = (
            len(record.key or b"") + len(record.value or b"") + sum(len(k) + len(v or b"") for k, v in record.headers)
        )
        if size > RECORD_MAX_BYTES:
            raise TooLarge(f"a record of {size} bytes for {record.topic}; at most {RECORD_MAX_BYTES}")
        if record.partition is not None:
            partition = Partition(record.topic, record.partition)
        else:
            self.log(Partition(record.topic, 0))
            count = len(self.topics[record.topic])
            if record.key is None:
                self._keyless += 1
                partition = Partition(record.topic, self._keyless % count)
            else:
                partition = Partition(record.topic, partition_of(record.key, count))
        self.log(partition)
        return partition

    def write(self, record: Outgoing) -> tuple[int, int]:
        """Append outside transactions: (partition, offset)."""
        partition = self.target(record)
        entry = self.log(partition).append(self._received(partition, record), Fate.COMMITTED)
        self.changed.notify()
        return partition.number, entry.offset

    def _received(self, partition: Partition, record: Outgoing) -> Received:
        offset = self.log(partition).end
        headers = list(record.headers) or ()
        at_ms = record.timestamp_ms or self.now_ms()
        return Received(*partition, offset, at_ms, record.key, record.value, headers)

    # -- transactions

    def init_producer(self, transactional_id: str) -> int:
        """InitProducerId: aborts what is open, returns the new epoch."""
        producer = self.producers.get(transactional_id)
        if producer is None:
            producer = self.producers[transactional_id] = Producer(self._next_producer)
            self._next_producer += 1
        else:
            producer.epoch += 1
            self._end(producer, commit=False)
        return producer.epoch

    def _checked(self, transactional_id: str, epoch: int) -> Producer:
        producer = self.producers[transactional_id]
        if epoch != producer.epoch:
            raise ProducerFenced(f"{transactional_id}: epoch {epoch}, the latest is {producer.epoch}")
        return producer

    def write_open(self, transactional_id: str, epoch: int, partition: Partition, record: Outgoing) -> int:
        """Append within the transaction; returns the offset. Raises ProducerFenced."""
        producer = self._checked(transactional_id, epoch)
        log = self.log(partition)
        self._begun(producer)
        entry = log.append(self._received(partition, record), Fate.OPEN)
        log.open.setdefault(producer.id, entry.offset)
        producer.written.setdefault(partition, []).append(entry)
        self.changed.notify()
        return entry.offset

    def offsets_open(
        self, transactional_id: str, epoch: int, token: Token, offsets: Mapping[Partition, Committed]
    ) -> None:
        """TxnOffsetCommit. Raises ProducerFenced, and what `Group.check` raises.

        As brokers do, offsets of generation -1 without a member are taken unchecked.
        """
        producer = self._checked(transactional_id, epoch)
        group = self.group(token.group)
        if token.generation >= 0 or token.member_id:
            group.check(token)
        self._begun(producer)
        producer.offsets.setdefault(token.group, {}).update(offsets)
        group.pend(producer.id, offsets)

    def end(self, transactional_id: str, epoch: int, *, commit: bool) -> None:
        """EndTxn: ends whatever is open under this epoch. Raises ProducerFenced, NoTransaction."""
        producer = self._checked(transactional_id, epoch)
        if not producer.is_open:
            raise NoTransaction(transactional_id)
        self._end(producer, commit=commit)

    def _begun(self, producer: Producer) -> None:
        if producer.is_open:
            return
        producer.serial += 1
        loop = asyncio.get_running_loop()
        producer.timer = loop.call_later(self.transaction_timeout_s, self._expire, producer, producer.serial)

    def _expire(self, producer: Producer, serial: int) -> None:
        if producer.is_open and producer.serial == serial:
            producer.epoch += 1
            self._end(producer, commit=False)

    def _end(self, producer: Producer, *, commit: bool) -> None:
        if producer.timer is not None:
            producer.timer.cancel()
            producer.timer = None
        for partition, entries in producer.written.items():
            log = self.log(partition)
            for entry in entries:
                entry.fate = Fate.COMMITTED if commit else Fate.ABORTED
            log.append(None, Fate.CONTROL)
            log.open.pop(producer.id, None)
        for name, offsets in producer.offsets.items():
            self.group(name).settle(producer.id, offsets if commit else {})
        producer.written, producer.offsets = {}, {}
        self.changed.notify()

    def last_stable_offsets(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        return {p: self.log(p).last_stable for p in partitions}
