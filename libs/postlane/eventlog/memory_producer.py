"""Producers over the in-memory log: transactional, and plain."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from postlane.eventlog.errors import Aborted, CommitUnknown, Fenced, LogError, Retriable, Unreachable
from postlane.eventlog.fence import check_fence
from postlane.eventlog.memory_broker import MemoryCluster, NoTransaction, ProducerFenced
from postlane.eventlog.memory_faults import Fault, Process
from postlane.eventlog.memory_group import IllegalGeneration, InstanceFenced, Token, UnknownMember
from postlane.eventlog.ports import Outgoing, Partition, Transaction

LATE_END_S = 1.0  # how late an EndTxn under UNKNOWN_LATE arrives
BUFFER_RECORDS_MAX = 10_000
_UNKNOWN = (Fault.UNKNOWN_APPLIED, Fault.UNKNOWN_LOST, Fault.UNKNOWN_LATE)


class MemoryTransactor:
    """Fills `ports.Transactor`. `guard` is the check before each transaction (taken out by mutation controls)."""

    def __init__(
        self,
        cluster: MemoryCluster,
        process: Process,
        transactional_id: str,
        guard: Callable[[Transaction], None] = check_fence,
    ) -> None:
        self._cluster = cluster
        self._process = process
        self._id = transactional_id
        self.guard = guard
        self._epoch = -1
        self._usable = False

    async def begin(self) -> None:
        await self._process.at("init")
        self._epoch = self._cluster.init_producer(self._id)
        self._usable = True

    async def rebuild(self) -> None:
        self._usable = False
        await self.begin()

    async def close(self) -> None:
        self._usable = False

    async def commit(self, transaction: Transaction) -> Mapping[Partition, int]:
        """1 refuse what is unfenced, 2 begin, 3 produce, 4 offsets, 5 commit."""
        self.guard(transaction)
        if not transaction.records and not transaction.offsets:
            return {}
        if not self._usable:
            raise CommitUnknown(f"{self._id}: the producer was given up; rebuild it first")
        self._usable = False  # until this one is settled, also when the caller is cancelled
        try:
            await self._pass("begin")
            ends = await self._produce(transaction.records)
            await self._send_offsets(transaction)
            await self._end()
        except ProducerFenced as error:
            raise Fenced(f"{error}; another process has this transactional id") from None
        except InstanceFenced as error:
            self._abort()
            raise Fenced(str(error)) from None
        except (UnknownMember, IllegalGeneration) as error:
            raise self._aborted(f"{type(error).__name__}: {error}") from None
        except Unreachable as error:
            raise CommitUnknown(f"{error}; rebuild, and read again what was written") from None
        except CommitUnknown:
            raise
        except LogError:  # TooLarge, UnknownTopic, Aborted: nothing of it stays
            self._abort()
            raise
        self._usable = True
        return ends

    async def _pass(self, point: str) -> None:
        fault = await self._process.at(point)
        if fault is Fault.ABORT:
            raise Aborted(f"{self._id}: failed at {point}; nothing of it happened")

    async def _produce(self, records: Sequence[Outgoing]) -> dict[Partition, int]:
        ends: dict[Partition, int] = {}
        placed: dict[Partition, list[Outgoing]] = {}
        for record in records:
            placed.setdefault(self._cluster.target(record), []).append(record)
        for partition, batch in placed.items():
            await self._pass("produce")
            for record in batch:
                ends[partition] = self._cluster.write_open(self._id, self._epoch, partition, record) + 1
        return ends

    async def _send_offsets(self, transaction: Transaction) -> None:
        if not transaction.offsets or transaction.membership is None:
            return
        await self._pass("send_offsets")
        token = transaction.membership.token
        assert isinstance(token, Token)
        # Like the library: with nothing but invalid offsets it says nothing and sends nothing.
        valid = {p: c for p, c in sorted(transaction.offsets.items()) if c.offset >= 0}
        if valid:
            self._cluster.offsets_open(self._id, self._epoch, token, valid)

    async def _end(self) -> None:
        fault = await self._process.at("commit")
        if fault is Fault.ABORT:
            raise Aborted(f"{self._id}: refused at commit; nothing of it happened")
        if fault is Fault.UNKNOWN_LATE:
            asyncio.get_running_loop().call_later(LATE_END_S, self._end_late, self._epoch)
        elif fault is not Fault.UNKNOWN_LOST:
            # Nothing open: nothing was sent, or a late EndTxn was here before (brokers answer a repeated one with yes).
            with suppress(NoTransaction):
                self._cluster.end(self._id, self._epoch, commit=True)
        if fault in _UNKNOWN:
            raise CommitUnknown(f"{self._id}: the commit timed out; rebuild, and read again what was written")
        await self._process.at("committed")

    def _end_late(self, epoch: int) -> None:
        with suppress(ProducerFenced, NoTransaction):  # the rebuild came first, as it should
            self._cluster.end(self._id, epoch, commit=True)

    def _aborted(self, text: str) -> LogError:
        self._abort()
        return Aborted(f"{self._id}: {text}; nothing of it happened")

    def _abort(self) -> None:
        try:
            self._cluster.end(self._id, self._epoch, commit=False)
        except NoTransaction:
            pass
        except ProducerFenced as error:
            raise Fenced(f"{error}; another process has this transactional id") from None
        self._usable = True


class MemoryAppender:
    """Fills `ports.Appender`."""

    def __init__(self, cluster: MemoryCluster, process: Process) -> None:
        self._cluster = cluster
        self._process = process
        self._buffer: deque[Outgoing] = deque()
        self.failed = 0

    async def append(self, record: Outgoing) -> tuple[int, int]:
        fault = await self._process.at("append")
        if fault is Fault.UNKNOWN_LOST:
            raise Retriable("no acknowledgement in time; it may have been written")
        written = self._cluster.write(record)
        if fault is Fault.UNKNOWN_APPLIED:
            raise Retriable("no acknowledgement in time; it may have been written")
        await self._process.at("appended")
        return written

    def append_soon(self, record: Outgoing) -> None:
        if self._process.is_dead:
            return
        if len(self._buffer) >= BUFFER_RECORDS_MAX:
            raise Retriable("the producer's buffer is full; wait for acknowledgements")
        self._cluster.target(record)
        self._buffer.append(record)
        if len(self._buffer) == 1:
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        while self._buffer and not self._process.is_dead:
            self._cluster.write(self._buffer.popleft())

    async def flush(self, timeout_s: float) -> None:
        await self._process.at("append")
        self._send()

    async def close(self) -> None:
        await self._process.gate()
        self._send()
