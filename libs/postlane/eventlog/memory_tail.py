"""A compact topic of the in-memory log followed as a table."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from postlane.eventlog.errors import OffsetGone, Retriable
from postlane.eventlog.memory_broker import MemoryCluster
from postlane.eventlog.memory_faults import Process
from postlane.eventlog.ports import Partition, Received

BATCH_RECORDS_MAX = 500
IDLE_S = 3600.0
RETRY_WAIT_S = 0.5


class MemoryTail:
    """Fills `ports.Tail`."""

    def __init__(self, cluster: MemoryCluster, process: Process, topic: str, apply: Callable[[Received], None]) -> None:
        self._cluster = cluster
        self._process = process
        self._topic = topic
        self._apply = apply
        self._positions: dict[Partition, int] = {}
        self._first: dict[Partition, int] = {}
        self._ready = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._follow(), name=f"tail {topic}")

    async def ready(self, timeout_s: float) -> None:
        await self._process.gate()
        waiter = asyncio.ensure_future(self._ready.wait())
        try:
            await asyncio.wait({waiter, self._task}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
        self._check()
        if not self._ready.is_set():
            raise Retriable(f"{self._topic} was not read to its end in {timeout_s} s")

    @property
    def lag(self) -> int:
        self._check()
        return sum(self._cluster.log(p).end - position for p, position in self._positions.items())

    def _check(self) -> None:
        if self._task.done() and not self._task.cancelled():
            error = self._task.exception()
            if error is not None:
                raise error

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _follow(self) -> None:
        self._cluster.log(Partition(self._topic, 0))
        logs = self._cluster.topics[self._topic]
        self._first = {log.partition: log.end for log in logs}
        self._positions = {log.partition: log.start for log in logs}
        while True:
            try:
                await self._process.at("tail")
            except Retriable:
                await asyncio.sleep(RETRY_WAIT_S)
                continue
            moved = [self._advance(partition) for partition in list(self._positions)]
            if all(self._positions[p] >= end for p, end in self._first.items()):
                self._ready.set()
            if not any(moved):
                await self._cluster.changed.wait(IDLE_S)

    def _advance(self, partition: Partition) -> bool:
        log = self._cluster.log(partition)
        position = self._positions[partition]
        try:
            records, reached = log.fetch(position, BATCH_RECORDS_MAX, committed=True)
        except OffsetGone:
            records, reached = [], log.start
        for record in records:
            self._apply(record)
        self._positions[partition] = reached
        return reached != position
