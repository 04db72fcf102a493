"""Processes inside one event loop: a dead one does nothing more, a frozen one does nothing until it is thawed.

Whatever a process schedules carries its context, so the loop knows whose callback it is about to run. A dead
process's callbacks are dropped, as SIGKILL does: no `finally` runs, nothing is said. A frozen one's are kept and run
at the thaw, late timers included, as after SIGSTOP and SIGCONT.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

from postlane.eventlog.memory_broker import MemoryCluster
from postlane.eventlog.memory_group import Group
from tests.contract.virtual_time import VirtualLoop

STEP_S = 1e-6
_LIFE: ContextVar[Life | None] = ContextVar("life", default=None)
_AT_THE_BROKER = (MemoryCluster, Group)  # timers that a client's request started, and that outlive the client
_ON_ITS_WAY = "_end_late"  # a request of a client that may be dead when it arrives


class Life:
    """One life of one process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.frozen = False
        self.held: list[Callable[[], None]] = []
        self.context = copy_context()
        self.context.run(_LIFE.set, self)

    def spawn(self, main: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `main` as this process."""
        return asyncio.get_running_loop().create_task(main, name=self.name, context=self.context)

    def thaw(self) -> None:
        """Everything that was to happen meanwhile happens now, in its order."""
        self.frozen = False
        held, self.held = self.held, []
        for again in held:
            again()


def current() -> Life | None:
    """Whose code is running; None is the world's."""
    return _LIFE.get()


class _Gate:
    __slots__ = ("callback", "context", "handle", "life", "loop")

    def __init__(self, loop: LivingLoop, life: Life, callback: Callable[..., Any], context: Context) -> None:
        self.loop, self.life, self.callback, self.context = loop, life, callback, context
        self.handle: asyncio.Handle | None = None

    def __call__(self, *args: Any) -> None:
        if self.life.dead:
            return
        if self.life.frozen:
            self.life.held.append(lambda: self._again(*args))
        else:
            self.callback(*args)

    def _again(self, *args: Any) -> None:
        if self.handle is None or not self.handle.cancelled():
            self.loop.call_soon(self.callback, *args, context=self.context)


class LivingLoop(VirtualLoop):
    """An event loop in virtual time that knows whose each callback is."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[asyncio.Task[Any]] = []  # kept: the dead are not collected, or it would run their `finally`
        self.set_task_factory(self._make_task)

    def _run_once(self) -> None:
        self._jumping.now_s += STEP_S  # computing takes time: else a wait of 1e-16 s would never be over
        super()._run_once()  # type: ignore[misc]

    def _make_task(self, loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
        if _owner(options.get("context")) is not None:
            self.tasks.append(task)
        return task

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        gate = self._gate(callback, context)
        handle = super().call_soon(gate or callback, *args, context=context)
        if gate is not None:
            gate.handle = handle
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        gate = self._gate(callback, context)
        handle = super().call_at(when, gate or callback, *args, context=context)
        if gate is not None:
            gate.handle = handle
        return handle

    def _gate(self, callback: Any, context: Context | None) -> _Gate | None:
        life = _owner(context)
        at = getattr(callback, "__self__", None)
        if life is None or isinstance(at, _AT_THE_BROKER) or getattr(callback, "__name__", "") == _ON_ITS_WAY:
            return None
        return _Gate(self, life, callback, context or copy_context())


def _owner(context: Context | None) -> Life | None:
    return _LIFE.get() if context is None else context.get(_LIFE)
