"""The practice SMTP server: listeners, faults, ledger and control interface in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from postlane.local.practice.control import ControlInterface
from postlane.local.practice.faults import Faults, Rule
from postlane.local.practice.ledger import Ledger
from postlane.local.practice.listener import Listener, Options

_SWEEP_S = 10.0


class PracticeServer:
    """An SMTP server that takes mail, keeps an independent ledger, and misbehaves on order.

    `listeners` names the SMTP ports, each of which can fail on its own; port 0 lets the kernel choose (see `ports`).
    An async context manager; OSError when a port is taken, LedgerInUse when the ledger is.
    """

    def __init__(
        self,
        ledger: Path,
        listeners: Mapping[str, int] | None = None,
        *,
        http_port: int = 0,
        host: str = "127.0.0.1",
        options: Options | None = None,
    ) -> None:
        self.faults = Faults()
        self.ledger = Ledger(ledger)
        used = options or Options()
        self._listeners = [
            Listener(name, host, port, used, self.faults, self.ledger)
            for name, port in (listeners or {"primary": 0}).items()
        ]
        self._control = ControlInterface(self, host, http_port)
        self._changing = asyncio.Lock()
        self._sweeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> PracticeServer:
        try:
            for listener in self._listeners:
                await listener.open()
            await self._control.open()
        except BaseException:
            await self.close()
            raise
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def ports(self) -> dict[str, int]:
        """SMTP port by listener name."""
        return {listener.name: listener.port for listener in self._listeners}

    @property
    def url(self) -> str:
        """Where the control interface answers."""
        return self._control.url

    async def close(self) -> None:
        """Reset every connection and let go of ports and ledger."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
        await self._control.close()
        for listener in self._listeners:
            await listener.shut()
        self.ledger.close()

    # -- faults; each returns when listeners are as the rules say

    async def set_faults(self, values: list[object]) -> list[Rule]:
        """Put these rules in place of all. Raises InvalidRule; OSError when a listener cannot come back."""
        rules = self.faults.replace(values)
        await self._apply()
        return rules

    async def add_fault(self, value: object) -> Rule:
        """Add one rule. Raises InvalidRule."""
        rule = self.faults.add(value)
        await self._apply()
        return rule

    async def remove_faults(self, rule_id: str | None = None) -> int:
        """Remove one rule, or all; returns how many went. OSError when a listener cannot come back."""
        gone = self.faults.remove(rule_id)
        await self._apply()
        return gone

    def expire(self, users: Collection[str]) -> None:
        """Credentials changed: end the sessions of these users."""
        for listener in self._listeners:
            listener.expire(users)

    def status(self) -> dict[str, Any]:
        """Listeners, counters and the size of the ledger."""
        return {
            "status": "ok",
            "ledger": str(self.ledger.path),
            "records": self.ledger.records,
            "smtp": {
                listener.name: {
                    "host": listener.host,
                    "port": listener.port,
                    "open": listener.is_open,
                    "connections_open": len(listener.sessions),
                    "counters": dict(listener.counters),
                }
                for listener in self._listeners
            },
        }

    async def _apply(self) -> None:
        async with self._changing:
            for listener in self._listeners:
                if self.faults.standing("refuse", listener.name):
                    await listener.shut()
                else:
                    await listener.open()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            for listener in self._listeners:
                listener.sweep()
