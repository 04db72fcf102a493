"""What the contract suite needs beside the ports: topics, dead writers, lost replies, for each adapter."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from confluent_kafka import KafkaError, KafkaException

from postlane.eventlog.errors import Retriable
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.memory import MemoryCluster, MemoryLog
from postlane.eventlog.memory_faults import Fault, ProcessDied
from postlane.eventlog.ports import (
    Committed,
    Listener,
    Log,
    Member,
    Membership,
    Outgoing,
    Partition,
    Received,
    Transaction,
    Transactor,
)
from postlane.eventlog.topics import TopicSpec

TIMEOUT_S = 30.0
_number = itertools.count(1)


class Bench(Protocol):
    """One cluster under test."""

    def log(self, name: str) -> Log:
        """A log as a process of its own has it."""

    async def topic(self, partitions: int = 1) -> str: ...

    async def retain_from(self, partition: Partition, offset: int) -> None:
        """Retention: what lies below `offset` goes."""

    async def dead_writer(
        self,
        transactional_id: str,
        records: list[Outgoing],
        offsets: dict[Partition, Committed] | None = None,
        membership: Membership | None = None,
    ) -> None:
        """A process that writes these in a transaction and dies before it ends it."""

    async def lose_reply(self, transactor: Transactor, *, applied: bool) -> None:
        """The next commit of this transactor times out: after the broker did it, or before it heard of it."""

    async def close(self) -> None: ...


def unique(name: str) -> str:
    return f"{name}-{next(_number)}-{uuid.uuid4().hex[:8]}"


class KafkaBench:
    def __init__(self, bootstrap_servers: str) -> None:
        self._bootstrap = bootstrap_servers
        self._logs: list[KafkaLog] = []
        self._dead: list[Any] = []
        self._admin = self.log("admin")

    def log(self, name: str) -> KafkaLog:
        options = {"session.timeout.ms": "6000", "heartbeat.interval.ms": "300"}
        log = KafkaLog(self._bootstrap, options, name)
        self._logs.append(log)
        return log

    async def topic(self, partitions: int = 1) -> str:
        name = unique("contract")
        spec = TopicSpec(name, partitions, {"cleanup.policy": "delete"}, (), ())
        await self._admin.admin.create_topics([spec], replication=1)
        return name

    async def retain_from(self, partition: Partition, offset: int) -> None:
        await self._admin.admin.delete_records({partition: offset})

    async def dead_writer(
        self,
        transactional_id: str,
        records: list[Outgoing],
        offsets: dict[Partition, Committed] | None = None,
        membership: Membership | None = None,
    ) -> None:
        """Its producer is kept and never touched again: to the broker, that is a dead process."""
        transactor = await self._admin.transactor(transactional_id)
        producer: Any = transactor._producer
        self._dead.append(producer)

        def leave_open() -> None:
            producer.begin_transaction()
            transactor._produce(records)
            transactor._send_offsets(Transaction(records, offsets or {}, membership))
            producer.flush(10)

        await transactor._worker.call(leave_open)

    async def lose_reply(self, transactor: Transactor, *, applied: bool) -> None:
        assert hasattr(transactor, "_producer")
        transactor._producer = _Deaf(transactor._producer, applied)

    async def close(self) -> None:
        for log in self._logs:
            await asyncio.wait_for(log.close(), TIMEOUT_S)


class _Deaf:
    """A producer whose commit is not answered in time."""

    def __init__(self, producer: Any, applied: bool) -> None:
        self._producer = producer
        self._applied = applied

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def commit_transaction(self, timeout: float) -> None:
        self._producer.flush(timeout)
        if self._applied:
            self._producer.commit_transaction(timeout)
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "the reply was lost", retriable=True))


class MemoryBench:
    def __init__(self) -> None:
        self.cluster = MemoryCluster(session_timeout_s=1.0, transaction_timeout_s=60.0)
        self._faults = _NextCommit()
        self._logs: list[MemoryLog] = []

    def log(self, name: str) -> MemoryLog:
        log = MemoryLog(self.cluster, name, self._faults)
        self._logs.append(log)
        return log

    async def topic(self, partitions: int = 1) -> str:
        name = unique("contract")
        self.cluster.create_topic(name, partitions)
        return name

    async def retain_from(self, partition: Partition, offset: int) -> None:
        self.cluster.trim(partition, offset)

    async def dead_writer(
        self,
        transactional_id: str,
        records: list[Outgoing],
        offsets: dict[Partition, Committed] | None = None,
        membership: Membership | None = None,
    ) -> None:
        transactor = await MemoryLog(self.cluster, "dead", _NextCommit(Fault.CRASH)).transactor(transactional_id)
        try:
            await transactor.commit(Transaction(records, offsets or {}, membership))
        except ProcessDied:
            return
        raise AssertionError("the writer should have died")

    async def lose_reply(self, transactor: Transactor, *, applied: bool) -> None:
        self._faults.fault = Fault.UNKNOWN_APPLIED if applied else Fault.UNKNOWN_LOST

    async def close(self) -> None:
        for log in self._logs:
            await log.close()


class _NextCommit:
    def __init__(self, fault: Fault | None = None) -> None:
        self.fault = fault

    async def at(self, point: str, who: str) -> Fault | None:
        if point != "commit":
            return None
        fault, self.fault = self.fault, None
        return fault


class Recorder(Listener):
    """A listener that notes what it is told, starts what it is given, and may be slow to let go."""

    def __init__(self, name: str, journal: list[tuple[str, str, tuple[int, ...]]], start_at: int | None = 0) -> None:
        self.name = name
        self.journal = journal
        self.start_at = start_at
        self.member: Member | None = None
        self.letting_go: Callable[[], Awaitable[None]] | None = None
        self.owned: frozenset[Partition] = frozenset()
        self.memberships: list[Membership] = []

    def _note(self, what: str, partitions: frozenset[Partition]) -> None:
        self.journal.append((self.name, what, tuple(sorted(p.number for p in partitions))))

    async def assigned(self, membership: Membership, added: frozenset[Partition]) -> None:
        self._note("assigned", added)
        self.owned = membership.partitions
        self.memberships.append(membership)
        if self.start_at is not None and self.member is not None:
            for partition in sorted(added):
                self.member.start(partition, self.start_at)

    async def revoked(self, removed: frozenset[Partition]) -> None:
        self._note("revoking", removed)
        if self.letting_go is not None:
            await self.letting_go()
        self.owned = frozenset()
        self._note("revoked", removed)

    async def lost(self, removed: frozenset[Partition]) -> None:
        self.owned = frozenset()
        self._note("lost", removed)


async def joined(
    log: Log,
    group: str,
    topic: str,
    recorder: Recorder,
    instance_id: str | None = None,
) -> Member:
    member = await log.member(group, [topic], recorder, instance_id=instance_id)
    recorder.member = member
    return member


async def pump(until: Callable[[], bool], *members: Member, timeout_s: float = TIMEOUT_S) -> list[Received]:
    """Poll all members at once until the condition holds; what they brought, in order of arrival."""
    found: list[Received] = []

    async def turn(member: Member) -> None:
        while not until():
            found.extend(await member.poll(100, 0.05))

    async with asyncio.timeout(timeout_s):
        await asyncio.gather(*(turn(member) for member in members))
    return found


async def high_watermark(log: Log, partition: Partition) -> int:
    """Asked for again while a broker that has just come back is not its leader yet."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                return (await log.high_watermarks([partition]))[partition]
            except Retriable:
                await asyncio.sleep(0.1)


async def values(
    log: Log, partition: Partition, start: int = 0, end: int | None = None, *, committed: bool = True
) -> list[bytes | None]:
    if end is None:
        end = await high_watermark(log, partition)
    found: list[bytes | None] = []
    async for batch in log.read(partition, start, end, deadline_s=10, committed=committed):
        found += [record.value for record in batch]
    return found


def record(partition: Partition, value: bytes | None, key: bytes | None = b"k") -> Outgoing:
    return Outgoing(partition.topic, partition.number, key, value, [])


def writes(partition: Partition, *contents: bytes) -> Transaction:
    return Transaction([record(partition, value) for value in contents], {}, None)
