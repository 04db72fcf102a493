"""A member of a consumer group over the in-memory log."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence

from postlane.eventlog.errors import Fenced, Retriable
from postlane.eventlog.memory_broker import MemoryCluster
from postlane.eventlog.memory_faults import Process
from postlane.eventlog.memory_group import InstanceFenced, Token, UnknownMember
from postlane.eventlog.ports import Committed, Listener, Membership, Partition, Received

COMMITTED_TRIES_MAX = 10
COMMITTED_WAIT_S = 0.1


class Owned(frozenset[Partition]):
    """Partitions that are always met in the same order, whatever strings hash to: one seed, one history."""

    def __iter__(self) -> Iterator[Partition]:
        return iter(sorted(super().__iter__()))


class MemoryMember:
    """Fills `ports.Member`. As with Kafka, ownership changes only within `poll` and `close`."""

    def __init__(
        self,
        cluster: MemoryCluster,
        process: Process,
        group: str,
        topics: Sequence[str],
        listener: Listener,
        instance_id: str | None,
        client_id: str,
    ) -> None:
        self._cluster = cluster
        self._process = process
        self._group = cluster.group(group)
        self._topics = tuple(topics)
        self._listener = listener
        self._instance_id = instance_id
        self._client_id = client_id
        self._id: str | None = None
        self._membership: Membership | None = None
        self._owned: frozenset[Partition] = frozenset()
        self._positions: dict[Partition, int] = {}  # of started partitions, in the order in which they take turns
        self._paused: set[Partition] = set()
        self._closed = False
        self._polling = False

    @property
    def membership(self) -> Membership | None:
        return self._membership

    # -- records

    async def poll(self, max_records: int, timeout_s: float) -> Sequence[Received]:
        if self._polling:
            raise RuntimeError("poll is already running")
        self._polling = True
        try:
            return await self._poll(max_records, timeout_s)
        finally:
            self._polling = False

    async def _poll(self, max_records: int, timeout_s: float) -> Sequence[Received]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            await self._process.at("poll")
            await self._follow_group()
            records = self._take(max_records)
            if records or loop.time() >= deadline:
                return records
            await self._cluster.changed.wait(deadline - loop.time())

    def _take(self, max_records: int) -> list[Received]:
        taken: list[Received] = []
        for partition in list(self._positions):
            if partition in self._paused or len(taken) >= max_records:
                continue
            log = self._cluster.log(partition)
            found, reached = log.fetch(self._positions[partition], max_records - len(taken), committed=True)
            del self._positions[partition]
            self._positions[partition] = reached  # to the end of the queue: nobody starves
            taken += found
        return taken

    def start(self, partition: Partition, offset: int) -> None:
        if offset < 0:
            raise ValueError(f"{partition}: start at {offset}; an explicit offset is needed")
        if partition in self._owned:
            self._positions[partition] = offset
            self._paused.discard(partition)
            self._cluster.changed.notify()

    def pause(self, partitions: Collection[Partition]) -> None:
        self._paused.update(p for p in partitions if p in self._positions)

    def resume(self, partitions: Collection[Partition]) -> None:
        self._paused.difference_update(partitions)
        self._cluster.changed.notify()

    async def committed(self, partitions: Collection[Partition]) -> Mapping[Partition, Committed | None]:
        for _ in range(COMMITTED_TRIES_MAX):
            await self._process.at("group")
            if not any(self._group.is_unstable(p) for p in partitions):
                return {p: self._group.committed.get(p) for p in sorted(partitions)}
            await asyncio.sleep(COMMITTED_WAIT_S)
        raise Retriable(f"group {self._group.name}: committed offsets stay unstable; ask again")

    # -- ownership

    async def _follow_group(self) -> None:
        """1 join when unknown, 2 let go and join again when a rebalance asks for it, 3 take what was assigned."""
        if not await self._is_known():
            self._id = self._group.join(self._topics, self._instance_id, self._client_id)
        assert self._id is not None
        if self._group.must_rejoin(self._id):
            await self._let_go(lost=False)
            if not await self._is_known():
                return  # the rebalance did not wait for us: join anew at the next turn
            self._group.rejoin(self._id)
        assignment = self._group.assignment(self._id)
        held = self._membership
        if assignment is None or (held is not None and held.generation == assignment.generation):
            return
        if held is not None:  # the rebalance went on without us
            await self._let_go(lost=True)
        token = Token(self._group.name, assignment.generation, self._id, self._instance_id)
        self._owned = Owned(assignment.partitions)
        self._membership = Membership(self._group.name, assignment.generation, self._id, self._owned, token)
        await self._listener.assigned(self._membership, self._owned)

    async def _is_known(self) -> bool:
        if self._id is None:
            return False
        try:
            self._group.check_member(self._id)
        except InstanceFenced as error:
            if self._membership is not None:
                await self._let_go(lost=True)
            raise Fenced(f"{error}; another process has the instance id {self._instance_id}") from None
        except UnknownMember:
            if self._membership is not None:
                await self._let_go(lost=True)
            self._id = None
            return False
        return True

    async def _let_go(self, *, lost: bool) -> None:
        removed, self._owned = self._owned, frozenset()
        self._positions, self._paused = {}, set()
        if self._membership is None:
            return
        if lost:
            self._membership = None
            await self._listener.lost(removed)
        else:
            await self._listener.revoked(removed)
            self._membership = None
        await self._process.gate()

    # -- life

    def silence(self) -> None:
        """The process no longer sends heartbeats."""
        if self._id is not None:
            self._group.suspend(self._id)

    def speak(self) -> None:
        if self._id is not None and not self._closed:
            self._group.revive(self._id)

    async def close(self, *, leave: bool = False) -> None:
        await self._process.at("group")
        if self._closed:
            return
        self._closed = True
        if self._membership is not None and self._id is not None:
            lost = self._id not in self._group.members
            await self._let_go(lost=lost)
        if self._id is None:
            return
        if self._instance_id is None or leave:
            self._group.leave(self._id)
        else:
            self._group.suspend(self._id)
