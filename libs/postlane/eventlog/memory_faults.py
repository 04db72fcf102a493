"""Where a simulation may interfere with the in-memory log, and what it may do there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import NoReturn, Protocol

from postlane.eventlog.errors import Unreachable


class ProcessDied(BaseException):
    """The process that made this call is dead: nothing of it may go on. Not an Exception, so nothing handles it."""


class Fault(Enum):
    """What happens at a point instead of nothing."""

    UNREACHABLE = "unreachable"  # the request never arrives and the caller learns so; anywhere
    ABORT = "abort"  # the transaction fails in a way that can be aborted; in a transaction
    UNKNOWN_APPLIED = "unknown_applied"  # done at the broker, the caller sees a time-out; `commit`, `append`
    UNKNOWN_LOST = "unknown_lost"  # never arrives, the caller sees a time-out; `commit`, `append`
    UNKNOWN_LATE = "unknown_late"  # the caller sees a time-out, EndTxn arrives later (librdkafka#5423); `commit`
    CRASH = "crash"  # the process dies right there; anywhere


# Every point, and who calls it: a transactor passes begin, produce (once a partition), offsets, commit, committed.
POINTS = (
    "metadata",
    "offsets",
    "read",
    "poll",
    "group",
    "init",
    "begin",
    "produce",
    "send_offsets",
    "commit",
    "committed",
    "append",
    "appended",
    "tail",
)


class Faults(Protocol):
    """Asked at each point; may await (the loop's time passes, others run), crash logs, move groups, and so on."""

    async def at(self, point: str, who: str) -> Fault | None:
        """`who` is the name of the process."""


class Process:
    """The life of one process: running, frozen or dead."""

    def __init__(self, name: str, faults: Faults | None = None) -> None:
        self.name = name
        self._faults = faults
        self.is_dead = False
        self.on_death: list[Callable[[], None]] = []  # what a dead process stops doing by itself, e.g. heartbeats
        self._thawed: asyncio.Event | None = None

    async def at(self, point: str) -> Fault | None:
        """Pass a point: others run first. UNREACHABLE and CRASH are raised here, other faults are the caller's."""
        await asyncio.sleep(0)
        await self.gate()
        fault = await self._faults.at(point, self.name) if self._faults is not None else None
        await self.gate()
        if fault is Fault.UNREACHABLE:
            raise Unreachable(f"{self.name}: no broker answers ({point})")
        if fault is Fault.CRASH:
            self.die()
        return fault

    async def gate(self) -> None:
        """Goes on only in a process that runs. Raises ProcessDied."""
        while self._thawed is not None and not self.is_dead:
            await self._thawed.wait()
        if self.is_dead:
            raise ProcessDied(self.name)

    def die(self) -> NoReturn:
        self.crash()
        raise ProcessDied(self.name)

    def crash(self) -> None:
        if self.is_dead:
            return
        self.is_dead = True
        for silence in self.on_death:
            silence()
        if self._thawed is not None:
            self._thawed.set()

    def freeze(self) -> None:
        if self._thawed is None:
            self._thawed = asyncio.Event()

    def thaw(self) -> None:
        if self._thawed is not None:
            self._thawed.set()
            self._thawed = None
