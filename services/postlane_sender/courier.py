"""Brings mails to the providers of a lane: places, persistent connections, a breaker each, failover in order.

A place is one conversation, or one mail waiting ahead of it; mails are admitted only to places, so that no more
intents are open than can be used soon. A provider is opened again by a probe that costs no mail: a session is opened,
and only when that works are mails placed. What is admitted to a provider that turns out to be down goes to the next
healthy one, or is released; neither spends an attempt.

Every mail that was placed is in one place until it leaves: `where` says at which link, and with which session if it
has one. What a server says of a mail whose intent is still being committed waits in `deferred`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from postlane.core.books import Entry, Stage
from postlane.core.events import DispatchReady
from postlane.core.replies import Phase
from postlane.core.smtp_events import NotBegun
from postlane_sender.connection import Connection, Result
from postlane_sender.lane import LaneState, Placed
from postlane_sender.link import Link

MOVES_MAX = 8  # how often one admitted mail may change its connection before it is released
SWEEP_S = 0.5  # how often intents that lapsed without a connection are looked for
_log = logging.getLogger("postlane.sender")

OpenSession = Callable[[Link], Awaitable[Connection]]  # raises ProviderDown, ProviderRefused


class Pool:
    """The couriers of one lane (lane.Courier)."""

    def __init__(self, lane: LaneState, open_session: OpenSession) -> None:
        self.lane = lane
        self.open_session = open_session
        self.links = [Link(self, lane.config.providers[name]) for name in lane.policy.providers]
        self._by_name = {link.name: link for link in self.links}
        self.where: dict[Entry, tuple[Link, Connection | None]] = {}
        self.deferred: dict[Entry, Result] = {}
        self._moves: dict[Entry, int] = {}
        self._closing = False
        self._all_closed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def holds(self, entry: Entry) -> bool:
        return entry in self.where

    def waits_at(self, entry: Entry, link: Link) -> bool:
        """Whether it waits there for a session. A queue may name an entry twice: withdrawn and started again."""
        return self.where.get(entry) == (link, None) and entry not in self.deferred

    def take(self, entry: Entry) -> Connection | None:
        """The entry leaves the pool; its place is free."""
        link, conn = self.where.pop(entry)
        link.places -= 1
        self._moves.pop(entry, None)
        self.deferred.pop(entry, None)
        return conn

    def defer(self, entry: Entry, link: Link, result: Result) -> None:
        """Its result came before its intent was committed: `proceed` settles it, `withdraw` forgets it."""
        self.where[entry] = (link, None)
        self.deferred[entry] = result

    # ----------------------------------------------------------------------------------------------- lane.Courier

    def place(self, mail: DispatchReady) -> str | Placed:
        link = self._pick(mail)
        if isinstance(link, Placed):
            return link
        link.places += 1
        return link.name

    def _pick(self, mail: DispatchReady) -> Link | Placed:
        now = self.lane.clock.monotonic()
        verdict = Placed.DOWN
        tried = 0
        for link in self.links:
            if link.name in mail.failed_providers:
                tried += 1
                continue
            if not link.healthy:
                continue
            if link.has_place(now):
                return link
            verdict = Placed.BUSY
            break  # a busy provider is waited for: the next in order is for when it is down
        return Placed.REFUSED if tried == len(self.links) else verdict

    def start(self, entry: Entry) -> None:
        link = self._by_name[entry.provider]
        self.where[entry] = (link, None)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        link.hand(entry)

    def proceed(self, entry: Entry) -> None:
        held = self.where.get(entry)
        if held is None:
            return
        link, conn = held
        result = self.deferred.pop(entry, None)
        if result is not None:
            link.settle(entry, result)
        elif conn is not None:
            conn.body_ready(entry)
        elif not link.healthy:
            self.move_away(link)

    def ticked(self) -> None:
        for link in self.links:
            link.ticked()

    def withdraw(self, entry: Entry) -> None:
        if entry not in self.where:
            self._by_name[entry.provider].places -= 1  # placed, and never started
            return
        link = self.where[entry][0]
        conn = self.take(entry)
        if conn is None:
            if entry in link.queue:  # else a name of nothing would stay there until a session is free
                link.queue.remove(entry)
        elif not entry.begun and not conn.is_closed:
            conn.withdraw(entry)

    def usable(self) -> bool:
        now = self.lane.clock.monotonic()
        usable = False
        for link in self.links:
            if link.healthy:
                usable = True
            elif not self._closing:
                link.probe(now)
        return usable

    # ------------------------------------------------------------------------------------------------------- failover

    def again(self, entry: Entry, link: Link, reason: str) -> None:
        """Its connection ended before its body: another connection, another provider, or released."""
        self.where[entry] = (link, None)
        self._moves[entry] = self._moves.get(entry, 0) + 1
        if link.healthy and self._moves[entry] < MOVES_MAX and not self._closing:
            link.queue.appendleft(entry)
            link.open_more()
        else:
            self._move(entry, link, reason)

    def move_away(self, link: Link) -> None:
        """The link is down: what waits for it and has its intent committed goes elsewhere."""
        waiting, link.queue = link.queue, deque()
        for entry in waiting:
            if entry in self.where:
                self._move(entry, link, "provider_down")

    def _move(self, entry: Entry, link: Link, reason: str) -> None:
        if entry.stage is Stage.STARTING:
            link.queue.append(entry)  # its intent is in the tick in flight: `proceed` comes back to it
            return
        moves = self._moves.get(entry, 0)
        self.take(entry)
        if entry.stage is not Stage.STARTED or entry.mail is None:
            return
        target = self._pick(entry.mail) if moves < MOVES_MAX and not self._closing else Placed.DOWN
        if isinstance(target, Placed):
            self.lane.finished(entry, NotBegun(entry, Phase.CONNECT, reason))
            return
        target.places += 1
        entry.provider = target.name
        self.where[entry] = (target, None)
        self._moves[entry] = moves + 1
        target.hand(entry)

    def _sweep(self) -> None:
        """An intent that lapses, or finds no connection, is released: nothing waits behind a server that hangs."""
        self._timer = None
        now = self.lane.clock.monotonic()
        for link in self.links:
            if link.queue and not link.healthy:
                self.move_away(link)
        late = [e for e in self.where if e.lapse_at <= now and e.stage is Stage.STARTED and not e.begun]
        for entry in late:
            if entry in self.where and entry not in self.deferred:
                self.withdraw(entry)
                self.lane.finished(entry, NotBegun(entry, Phase.MAIL, "lapsed"))
        if self.where and not self._closing:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    # ------------------------------------------------------------------------------------------------------------ end

    def session_ended(self) -> None:
        if not any(link.connections for link in self.links):
            self._all_closed.set()

    async def close(self, timeout_s: float) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = [task for link in self.links for task in link.opening]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._all_closed.clear()
        connections = [conn for link in self.links for conn in link.connections]
        if not connections:
            return
        for conn in connections:
            conn.drain()
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_closed.wait()
        except TimeoutError:
            _log.info("sessions did not end in time", extra={"lane": self.lane.name})
        for link in self.links:
            for conn in list(link.connections):
                conn.abort("the sender stops")
