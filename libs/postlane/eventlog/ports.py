"""What the services ask of a log: the ports that Apache Kafka (`kafka.py`) and the in-memory log (`memory.py`) fill.

Everything is asynchronous and runs on the caller's event loop; an adapter hides its threads. Offsets are those of
Kafka: the next offset to read. Positions that a reader reaches may exceed the last message, because control records
take offsets too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

CLOSE_TIMEOUT_S = 10.0
Headers = Sequence[tuple[str, bytes]]


class Partition(NamedTuple):
    """One partition of one topic (full topic name, prefix included)."""

    topic: str
    number: int


@dataclass(slots=True)
class Received:
    """A record as it was read; bytes untouched."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


@dataclass(slots=True)
class Outgoing:
    """A record to be written; `partition` None lets the key decide (murmur2, as Java clients do).

    `timestamp_ms` (unix) is only for what is written again as it was (a restore); 0: now.
    """

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: Headers = field(default_factory=list)
    timestamp_ms: int = 0


class Committed(NamedTuple):
    """A committed position: O, and the metadata that was committed with it (S of the sender)."""

    offset: int
    metadata: str


@dataclass(frozen=True, slots=True)
class Membership:
    """Who we are in a consumer group and what we own, captured together at an assignment and never mixed.

    `token` is the adapter's own: what the broker needs to check generation and member.
    """

    group: str
    generation: int
    member_id: str
    partitions: frozenset[Partition]
    token: object = field(compare=False)


class Listener(Protocol):
    """Told of every change of ownership, in order; the log waits for each call to return before it goes on.

    Assigned partitions start paused: nothing is delivered before `Member.start`.
    """

    async def assigned(self, membership: Membership, added: frozenset[Partition]) -> None:
        """`added` are ours now, under `membership`."""

    async def revoked(self, removed: frozenset[Partition]) -> None:
        """`removed` will be another's as soon as this returns: drain, commit, let go."""

    async def lost(self, removed: frozenset[Partition]) -> None:
        """`removed` are another's already: cancel and discard, commit nothing."""


class Member(Protocol):
    """A member of a consumer group (read_committed)."""

    @property
    def membership(self) -> Membership | None:
        """The latest assignment, None before the first and after a loss."""

    async def poll(self, max_records: int, timeout_s: float) -> Sequence[Received]:
        """Up to `max_records` records of started partitions; calls the listener when ownership changes.

        Must be called at least every `max.poll.interval.ms`. Raises Fenced when another process is this member.
        """

    async def committed(self, partitions: Collection[Partition]) -> Mapping[Partition, Committed | None]:
        """Stable committed positions (None: none was ever committed). Raises Retriable while one is unstable."""

    def start(self, partition: Partition, offset: int) -> None:
        """Deliver from `offset` on. Also moves a started partition (seek)."""

    def pause(self, partitions: Collection[Partition]) -> None:
        """Deliver nothing of these until resumed; what was fetched stays fetched where the log can."""

    def resume(self, partitions: Collection[Partition]) -> None:
        """Deliver again."""

    async def close(self, *, leave: bool = False) -> None:
        """End membership: runs `revoked` for what is owned. A static member stays known to the group until its
        session times out, unless `leave`."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """Records and consumer positions that become visible together or not at all."""

    records: Sequence[Outgoing]
    offsets: Mapping[Partition, Committed]
    membership: Membership | None  # None only where no offsets are sent


class Transactor(Protocol):
    """A transactional producer; one transaction at a time."""

    async def commit(self, transaction: Transaction) -> Mapping[Partition, int]:
        """Write and commit. Returns, for each partition written to, the position after our last record in it
        (known from the broker's acknowledgement).

        Raises Aborted (nothing of it happened; the transactor can be used again), CommitUnknown (call `rebuild`
        and re-read before anything else), Fenced (another process is us: exit), Fatal.
        """

    async def rebuild(self) -> None:
        """Throw the producer away and build a new one under the same transactional id, which settles whatever
        the old one left open (InitProducerId). Raises Retriable when the log cannot be reached."""

    async def close(self) -> None: ...


class Appender(Protocol):
    """An idempotent producer without transactions: advisory records, and what publishers write."""

    async def append(self, record: Outgoing) -> tuple[int, int]:
        """(partition, offset) once acknowledged by all in-sync replicas. Raises Retriable, Fatal, TooLarge."""

    def append_soon(self, record: Outgoing) -> None:
        """Hand over without waiting; bounded buffer (Retriable when full)."""

    async def flush(self, timeout_s: float) -> None: ...

    async def close(self) -> None: ...


class Tail(Protocol):
    """A compact topic followed as a table: `apply(record)` is called for each record, in order per partition."""

    async def ready(self, timeout_s: float) -> None:
        """Returns once everything that was in the topic when the tail began has been applied. Raises Retriable."""

    @property
    def lag(self) -> int:
        """Records known to be in the topic and not applied yet."""

    async def close(self) -> None: ...


class Log(Protocol):
    """A cluster. Cheap to make; connections open when first needed; `close` ends what it opened."""

    async def partition_count(self, topic: str) -> int:
        """Raises UnknownTopic, Retriable."""

    async def topic_id(self, topic: str) -> str:
        """Which topic it is: one deleted and made anew has the name and another id. Raises UnknownTopic, Retriable."""

    async def high_watermarks(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        """The real end of each partition (read uncommitted), from the brokers, never the last stable offset."""

    async def low_watermarks(self, partitions: Collection[Partition]) -> Mapping[Partition, int]: ...

    async def offsets_at(self, partitions: Collection[Partition], unix_ms: int) -> Mapping[Partition, int]:
        """First offset at or after a time; the high watermark where there is none."""

    def read(
        self, partition: Partition, start: int, end: int, *, deadline_s: float, committed: bool = True
    ) -> AsyncIterator[Sequence[Received]]:
        """Batches of the records in [start, end), committed ones only unless told otherwise.

        Waits for an open transaction of a dead writer to be settled; raises EndNotReached after `deadline_s`
        seconds without having reached `end`, OffsetGone when `start` lies below the log's start.
        """

    async def member(
        self,
        group: str,
        topics: Sequence[str],
        listener: Listener,
        *,
        instance_id: str | None = None,
        client_id: str | None = None,
    ) -> Member:
        """Join a group (range assignment, static when `instance_id` is given)."""

    async def transactor(self, transactional_id: str) -> Transactor:
        """A ready transactional producer: InitProducerId has run, which fences an older process of that id."""

    def appender(self, *, close_timeout_s: float = CLOSE_TIMEOUT_S) -> Appender:
        """`close_timeout_s`: how long `close` waits for acknowledgements that are still to come."""

    def tail(self, topic: str, apply: Callable[[Received], None]) -> Tail: ...

    async def close(self) -> None: ...
