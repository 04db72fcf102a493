"""Brings mails to the providers of a lane: places, persistent connections, a breaker each, failover in order.

A place is one conversation, or one mail waiting ahead of it; mails are admitted only to places, so that no more
intents are open than can be used soon. A provider is opened again by a probe that costs no mail: a session is opened,
and only when that works are mails placed. What is admitted to a provider that turns out to be down goes to the next
healthy one, or is released; neither spends an attempt.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from postlane.core import settle
from postlane.core.books import Entry, Stage
from postlane.core.breaker import Breaker, BreakerState
from postlane.core.events import DispatchReady
from postlane.core.limits import Bucket
from postlane.core.policy import Provider
from postlane.core.replies import Phase, Reply, ReplyClass, classify
from postlane.core.smtp_envelope import Obstacle
from postlane.core.smtp_events import Accepted, Cause, Closed, InDoubt, NotBegun, Refused, Unsendable
from postlane_sender.connection import NOT_YET, Connection, NotYet, Result
from postlane_sender.lane import LaneState, Placed, Write
from postlane_sender.session import ProviderDown, ProviderRefused

OPEN_AGAIN_S = 0.1
MOVES_MAX = 8  # how often one admitted mail may change its connection before it is released
_STATES = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}
# What a server that lacks an extension would have answered: another provider may have it.
_LACKING = Reply(554, "5.3.3", "this provider lacks what the mail needs")
_log = logging.getLogger("postlane.sender")

OpenSession = Callable[["Link"], Awaitable[Connection]]  # raises ProviderDown, ProviderRefused


class Link:
    """One provider as one lane of one process sees it; listens to its connections (connection.Listener)."""

    def __init__(self, pool: Pool, provider: Provider) -> None:
        self.pool = pool
        self.provider = provider
        self.name = provider.name
        self.breaker = Breaker(
            connections_max=provider.connections,
            failures_to_open=provider.breaker_failures,
            probe_first_s=provider.breaker_probe_first_s,
            probe_max_s=provider.breaker_probe_max_s,
        )
        self.queue: deque[Entry] = deque()
        self.places = 0  # in use
        self.connections: set[Connection] = set()
        self.idle: set[Connection] = set()
        self.opening: set[asyncio.Task[None]] = set()
        self.not_before = 0.0  # monotonic: when a session may be opened again after a failure
        self._bucket: Bucket | None = None
        self._header = f"{provider.idempotency_header}: " if provider.idempotency_header else ""

    # -------------------------------------------------------------------------------------------------------- places

    @property
    def healthy(self) -> bool:
        return self.breaker.state is BreakerState.CLOSED and not self.pool.lane.control.paused("provider", self.name)

    def has_place(self, now: float) -> bool:
        lane = self.pool.lane
        if self.places >= self.breaker.allowed(now) * (1 + lane.policy.ahead_per_connection):
            return False
        return self._pace(now)

    def _pace(self, now: float) -> bool:
        """The fleet-wide rate of the provider: this process spends the share of the partitions that it owns."""
        rate_per_s = self.provider.rate_per_s
        if rate_per_s is None:
            return True
        lane = self.pool.lane
        share = len(lane.books) / max(1, lane.partitions) / max(1, len(lane.config.lanes))
        if share <= 0:
            return False
        if self._bucket is None:
            self._bucket = Bucket(rate_per_s * share)
        self._bucket.rate_per_s = rate_per_s * share
        return self._bucket.take(now, waited=True)

    def hand(self, entry: Entry) -> None:
        """A mail that has a place here: to an idle connection, or into the queue for the next one that is ready."""
        while self.idle:
            conn = self.idle.pop()
            if conn.can_offer and self._offer(conn, entry):
                return
        self.queue.append(entry)
        self.open_more()

    def probe(self, now: float) -> None:
        """When the breaker is due, open one session to find out whether the provider is back."""
        if self.breaker.state is not BreakerState.CLOSED and self.breaker.allowed(now) > 0 and not self.opening:
            self._open_one()

    def open_more(self) -> None:
        lane = self.pool.lane
        now = lane.clock.monotonic()
        if not self.healthy or now < self.not_before:
            return
        wanted = min(self.breaker.allowed(now), len(self.connections) + len(self.queue))
        for _ in range(wanted - len(self.connections) - len(self.opening)):
            self._open_one()

    def _open_one(self) -> None:
        task = asyncio.create_task(self._open())
        self.opening.add(task)
        task.add_done_callback(self.opening.discard)

    async def _open(self) -> None:
        lane = self.pool.lane
        try:
            conn = await self.pool.open_session(self)
        except (ProviderDown, ProviderRefused) as error:
            _log.warning("no session", extra={"lane": lane.name, "provider": self.name, "reason": str(error)})
            self.not_before = lane.clock.monotonic() + OPEN_AGAIN_S
            self.failed()
            if self.healthy:
                asyncio.get_running_loop().call_later(OPEN_AGAIN_S * 1.01, self.open_more)
            return
        self.connections.add(conn)
        lane.metrics.connections.labels(lane.name, self.name).set(len(self.connections))
        if self.breaker.state is not BreakerState.CLOSED:
            self.breaker.succeeded()
            self._say_state()
        lane.work.set()

    # --------------------------------------------------------------------------------------------------------- health

    def failed(self) -> None:
        self.breaker.failed(self.pool.lane.clock.monotonic())
        self._say_state()
        if not self.healthy:
            self.pool.move_away(self)

    def _say_state(self) -> None:
        lane = self.pool.lane
        lane.metrics.breaker_state.labels(lane.name, self.name).set(_STATES[self.breaker.state])

    def _learn(self, result: Result) -> str:
        """What a result says of the provider; returns its name for the metrics."""
        if isinstance(result, Accepted):
            self.breaker.succeeded()
            return "accepted"
        if isinstance(result, Refused):
            kind = classify(result.reply, result.phase)
            if kind is ReplyClass.THROTTLED:
                self.breaker.throttled()
                self.failed()
            elif kind is ReplyClass.PROVIDER or (kind is ReplyClass.TEMPORARY and result.phase is Phase.MAIL):
                self.failed()
            else:
                self.breaker.succeeded()
            return kind.value
        if isinstance(result, InDoubt):
            self.failed()
            return "in_doubt"
        return "not_begun" if isinstance(result, NotBegun) else "unsendable"

    # ---------------------------------------------------------------------------- what the connections ask and tell

    def ready(self, conn: Connection) -> None:
        while self.queue:
            entry = self.queue.popleft()
            if entry.stage in (Stage.STARTING, Stage.STARTED) and self.pool.holds(entry):
                self._offer(conn, entry)
                return
        self.idle.add(conn)

    def _offer(self, conn: Connection, entry: Entry) -> bool:
        self.pool.where[entry] = (self, conn)
        unsendable = conn.offer(entry)
        if unsendable is None:
            return True
        self._lacking(entry, unsendable)
        return False

    def _lacking(self, entry: Entry, unsendable: Unsendable) -> None:
        """The provider cannot take this mail at all; the decision waits for the intent that is being committed."""
        lane = self.pool.lane
        if entry.stage is Stage.STARTING:
            self.pool.deferred[entry] = unsendable
            return
        self.pool.take(entry)
        self.pool.lane.metrics.attempts_total.labels(lane.name, self.name, "unsendable").inc()
        if unsendable.obstacle in (Obstacle.ADDRESS, Obstacle.BODY) and entry.mail is not None:
            reason = f"{unsendable.obstacle.value}: {unsendable.detail}"[:300]
            lane.end(entry, settle.unsendable(entry.mail, reason, lane.clock.now()))
        else:
            lane.finished(entry, Refused(entry, _LACKING, Phase.MAIL))

    def body_wanted(self, conn: Connection, item: Any) -> bytes | NotYet | None:
        answer = self.pool.lane.may_write(item)
        if answer is Write.NOT_YET:
            return NOT_YET
        if answer is Write.NEVER:
            return None
        if not self._header or item.mail is None:
            return answer
        return f"{self._header}{item.mail.delivery_id}\r\n".encode() + answer

    def dot_sent(self, conn: Connection, item: Any) -> None:
        self.pool.lane.dot_sent(item)

    def finished(self, conn: Connection, item: Any, result: Result) -> None:
        lane = self.pool.lane
        kind = self._learn(result)
        if not self.pool.holds(item):
            return  # it was taken back
        if isinstance(result, NotBegun) and item.stage in (Stage.STARTING, Stage.STARTED):
            self.pool.again(item, self, result.reason)
            return
        self.pool.take(item)
        lane.metrics.attempts_total.labels(lane.name, self.name, kind).inc()
        if isinstance(result, Unsendable):
            self.pool.where[item] = (self, None)
            self.places += 1
            self._lacking(item, result)
            return
        lane.finished(item, result)

    def closed(self, conn: Connection, closed: Closed) -> None:
        lane = self.pool.lane
        self.connections.discard(conn)
        self.idle.discard(conn)
        lane.metrics.connections.labels(lane.name, self.name).set(len(self.connections))
        if closed.cause is Cause.SERVER_CLOSING:
            self.breaker.throttled()
        if closed.cause in (Cause.LOST, Cause.PROTOCOL_ERROR, Cause.SERVER_CLOSING):
            _log.info("session ended", extra={"lane": lane.name, "provider": self.name, "reason": closed.reason})
            self.failed()
        if self.queue:
            self.open_more()
        self.pool.session_ended()


class Pool:
    """The couriers of one lane (lane.Courier)."""

    def __init__(self, lane: LaneState, open_session: OpenSession) -> None:
        self.lane = lane
        self.open_session = open_session
        self.links = [Link(self, lane.config.providers[name]) for name in lane.policy.providers]
        self._by_name = {link.name: link for link in self.links}
        self.where: dict[Entry, tuple[Link, Connection | None]] = {}
        self.deferred: dict[Entry, Unsendable] = {}
        self._moves: dict[Entry, int] = {}
        self._closing = False
        self._all_closed = asyncio.Event()

    def holds(self, entry: Entry) -> bool:
        return entry in self.where

    def take(self, entry: Entry) -> Connection | None:
        """The entry leaves the pool; its place is free."""
        link, conn = self.where.pop(entry)
        link.places -= 1
        self._moves.pop(entry, None)
        self.deferred.pop(entry, None)
        return conn

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
        link.hand(entry)

    def proceed(self, entry: Entry) -> None:
        held = self.where.get(entry)
        if held is None:
            return
        link, conn = held
        unsendable = self.deferred.pop(entry, None)
        if unsendable is not None:
            link._lacking(entry, unsendable)
        elif conn is not None:
            conn.body_ready(entry)
        elif not link.healthy:
            self.move_away(link)

    def withdraw(self, entry: Entry) -> None:
        if entry not in self.where:
            self._by_name[entry.provider].places -= 1  # placed, and never started
            return
        conn = self.take(entry)
        if conn is not None and not entry.begun and not conn.is_closed:
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
            if entry not in self.where:
                continue
            if entry.stage is Stage.STARTED:
                self._move(entry, link, "provider down")
            elif entry.stage is Stage.STARTING:
                link.queue.append(entry)  # `proceed` comes back to it

    def _move(self, entry: Entry, link: Link, reason: str) -> None:
        moves = self._moves.get(entry, 0)
        mail = entry.mail
        self.take(entry)
        target = self._pick(mail) if mail is not None and moves < MOVES_MAX and not self._closing else Placed.DOWN
        if entry.stage is Stage.STARTED and isinstance(target, Link) and target is not link:
            target.places += 1
            entry.provider = target.name
            self.where[entry] = (target, None)
            self._moves[entry] = moves + 1
            target.hand(entry)
        elif entry.stage is Stage.STARTED:
            self.lane.finished(entry, NotBegun(entry, Phase.CONNECT, reason.replace(" ", "_")))
        else:  # its intent is in the tick in flight: `proceed` comes back to it
            self.where[entry] = (link, None)
            link.places += 1
            link.queue.append(entry)

    def session_ended(self) -> None:
        if not any(link.connections for link in self.links):
            self._all_closed.set()

    async def close(self, timeout_s: float) -> None:
        self._closing = True
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
