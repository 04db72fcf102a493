"""Mails over one real session of the sender: opened, offered, answered, closed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from postlane.core.policy import Provider
from postlane.core.smtp_events import Closed
from postlane_sender.connection import Connection, NotYet, Result, SessionLimits
from postlane_sender.session import open_session

TIMEOUT_S = 30.0
LIMITS = SessionLimits(open_s=10, tick_s=0.02)


@dataclass(eq=False, slots=True)
class Item:
    """A mail as the sender has it."""

    recipient: str
    body: bytes | None
    envelope_from: str = "shop@example.org"
    size_bytes: int | None = None
    eight_bit: bool | None = None


@dataclass(slots=True)
class Listener:
    """Offers its mails in order; keeps what it is told. `over` is set when all have a result or the session ended."""

    waiting: list[Item]
    results: dict[str, Result] = field(default_factory=dict)
    end: Closed | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    count: int = 0

    def __post_init__(self) -> None:
        self.count = len(self.waiting)

    def ready(self, conn: Connection) -> None:
        while self.waiting and conn.can_offer:
            item = self.waiting.pop(0)
            unsendable = conn.offer(item)
            if unsendable is not None:
                self.finished(conn, item, unsendable)

    def body_wanted(self, conn: Connection, item: Any) -> bytes | NotYet | None:
        return item.body  # type: ignore[no-any-return]

    def dot_sent(self, conn: Connection, item: Any) -> None:
        pass

    def finished(self, conn: Connection, item: Any, result: Result) -> None:
        self.results[item.recipient] = result
        if len(self.results) == self.count:
            self.over.set()

    def closed(self, conn: Connection, closed: Closed) -> None:
        self.end = closed
        self.over.set()


async def send(port: int, items: list[Item], limits: SessionLimits = LIMITS, **provider: Any) -> Listener:
    """What became of the mails at the server on this port. Raises ProviderDown, ProviderRefused; bounded."""
    listener = Listener(list(items))
    config = Provider(name="p", host="127.0.0.1", port=port, tls="none", **provider)
    async with asyncio.timeout(TIMEOUT_S):
        conn = await open_session(config, None, listener, limits=limits, ehlo_name="me.example")
        await listener.over.wait()
        if listener.end is None:
            conn.abort("test")
    return listener
