"""The log in memory: for tests, and for a simulation on a loop with a virtual clock.

One `MemoryCluster` is shared; each process of a simulation has its own `MemoryLog` over it, which can crash or freeze.
No threads, no wall clock: time is the running loop's, and all that is random comes from the `faults` hook.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

from postlane.eventlog.errors import EndNotReached
from postlane.eventlog.memory_broker import EPOCH_MS, MemoryCluster
from postlane.eventlog.memory_faults import Faults, Process
from postlane.eventlog.memory_member import MemoryMember
from postlane.eventlog.memory_producer import MemoryAppender, MemoryTransactor
from postlane.eventlog.memory_tail import MemoryTail
from postlane.eventlog.ports import CLOSE_TIMEOUT_S, Listener, Partition, Received

READ_BATCH_MAX = 1_000


class MemoryLog:
    """Fills `ports.Log` for one process named `name`."""

    def __init__(self, cluster: MemoryCluster, name: str = "process", faults: Faults | None = None) -> None:
        self.cluster = cluster
        self.process = Process(name, faults)
        self.process.on_death.append(self._silence)
        self._members: list[MemoryMember] = []
        self._opened: list[MemoryTransactor | MemoryAppender | MemoryTail] = []

    # -- what a simulation does to a process

    def crash(self) -> None:
        """SIGKILL: every call in progress and to come raises ProcessDied, buffers are lost, an open transaction
        dangles, heartbeats stop."""
        self.process.crash()

    def freeze(self) -> None:
        """SIGSTOP as the log sees it: calls hang where they are, heartbeats stop."""
        self.process.freeze()
        self._silence()

    def _silence(self) -> None:
        for member in self._members:
            member.silence()
        self.cluster.changed.notify()

    def thaw(self) -> None:
        """SIGCONT: calls go on where they were; what happened meanwhile is found out the hard way."""
        self.process.thaw()
        for member in self._members:
            member.speak()
        self.cluster.changed.notify()

    # -- ports.Log

    async def partition_count(self, topic: str) -> int:
        await self.process.at("metadata")
        self.cluster.log(Partition(topic, 0))
        return len(self.cluster.topics[topic])

    async def topic_id(self, topic: str) -> str:
        self.cluster.log(Partition(topic, 0))
        return self.cluster.topic_ids[topic]

    async def high_watermarks(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        await self.process.at("offsets")
        return {p: self.cluster.log(p).end for p in sorted(partitions)}

    async def low_watermarks(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        await self.process.at("offsets")
        return {p: self.cluster.log(p).start for p in sorted(partitions)}

    async def offsets_at(self, partitions: Collection[Partition], unix_ms: int) -> Mapping[Partition, int]:
        await self.process.at("offsets")
        return {p: self._offset_at(p, unix_ms) for p in sorted(partitions)}

    def _offset_at(self, partition: Partition, unix_ms: int) -> int:
        log = self.cluster.log(partition)
        for entry in log.entries:
            if entry.record is not None and entry.record.timestamp_ms >= unix_ms:
                return entry.offset
        return log.end

    async def read(
        self, partition: Partition, start: int, end: int, *, deadline_s: float, committed: bool = True
    ) -> AsyncIterator[Sequence[Received]]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_s
        position = start
        while position < end:
            await self.process.at("read")
            found, reached = self.cluster.log(partition).fetch(position, READ_BATCH_MAX, committed=committed)
            batch = [record for record in found if record.offset < end]
            if reached > position:
                position = reached
                if batch:
                    yield batch
            elif loop.time() >= deadline:
                raise EndNotReached(
                    f"{partition.topic}[{partition.number}]: at {position} of {end} after {deadline_s} s; "
                    "a dead writer's transaction is still open"
                )
            else:
                await self.cluster.changed.wait(deadline - loop.time())

    async def member(
        self,
        group: str,
        topics: Sequence[str],
        listener: Listener,
        *,
        instance_id: str | None = None,
        client_id: str | None = None,
    ) -> MemoryMember:
        await self.process.at("metadata")
        member = MemoryMember(
            self.cluster, self.process, group, topics, listener, instance_id, client_id or self.process.name
        )
        self._members.append(member)
        return member

    async def transactor(self, transactional_id: str) -> MemoryTransactor:
        transactor = MemoryTransactor(self.cluster, self.process, transactional_id)
        await transactor.begin()
        self._opened.append(transactor)
        return transactor

    def appender(self, *, close_timeout_s: float = CLOSE_TIMEOUT_S) -> MemoryAppender:
        appender = MemoryAppender(self.cluster, self.process)
        self._opened.append(appender)
        return appender

    def tail(self, topic: str, apply: Callable[[Received], None]) -> MemoryTail:
        tail = MemoryTail(self.cluster, self.process, topic, apply)
        self._opened.append(tail)
        return tail

    async def close(self) -> None:
        for member in self._members[::-1]:  # first: letting go may still commit
            await member.close()
        for it in self._opened[::-1]:
            await it.close()
        self._opened, self._members = [], []


__all__ = ["EPOCH_MS", "MemoryCluster", "MemoryLog"]
