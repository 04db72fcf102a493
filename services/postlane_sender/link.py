"""One provider as one lane of one process sees it: places, sessions, a queue for them, and its breaker."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from postlane.core import settle
from postlane.core.books import Entry, Stage
from postlane.core.breaker import Breaker, BreakerState
from postlane.core.limits import Bucket
from postlane.core.policy import Provider
from postlane.core.replies import Phase, Reply, ReplyClass, classify
from postlane.core.smtp_envelope import Obstacle
from postlane.core.smtp_events import Accepted, Cause, Closed, InDoubt, NotBegun, Refused, Unsendable
from postlane_sender import measures, tracing
from postlane_sender.connection import NOT_YET, Connection, NotYet, Result
from postlane_sender.lane import Write
from postlane_sender.session import ProviderDown, ProviderRefused

if TYPE_CHECKING:
    from postlane_sender.courier import Pool

OPEN_AGAIN_S = 0.1
_STATES = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}
_WAITS = (Stage.STARTING, Stage.STARTED)
# What a server that lacks an extension would have answered: another provider may have it.
_LACKING = Reply(554, "5.3.3", "this provider lacks what the mail needs")
_log = logging.getLogger("postlane.sender")


class Link:
    """Hands mails to its sessions and listens to them (connection.Listener)."""

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
        self._done = 0  # mails that ended since the last tick,
        self._done_before = 0  # and in the tick before that
        self.connections: set[Connection] = set()
        self.load: dict[Connection, int] = {}  # mails that a session was offered and has not finished
        self.idle: set[Connection] = set()  # nothing under way
        self.spare: set[Connection] = set()  # one under way; takes one ahead
        self.opening: set[asyncio.Task[None]] = set()
        self.not_before = 0.0  # monotonic: when a session may be opened again after a failure
        self._bucket: Bucket | None = None
        self._header = f"{provider.idempotency_header}: " if provider.idempotency_header else ""

    # -------------------------------------------------------------------------------------------------------- places

    @property
    def healthy(self) -> bool:
        return self.breaker.state is BreakerState.CLOSED and not self.pool.lane.control.paused("provider", self.name)

    def has_place(self, now: float) -> bool:
        conversations = self.breaker.allowed(now)
        most = conversations * self.pool.lane.policy.ahead_per_connection
        ahead = min(max(conversations, self._done + self._done_before), most)
        if self.places >= conversations + ahead:
            return False
        return self._pace(now)

    def ticked(self) -> None:
        """A tick was committed. A place is held for one tick's commit and until the next is drafted, so what ended
        within two ticks is what may wait ahead: a fast server never idles, a slow one has few intents open."""
        self._done_before, self._done = self._done, 0

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
        """A mail that has a place here: to an idle session; where no more may be opened, behind the mail of a busy
        one; else into the queue for the next that is ready."""
        if self._offer_one_of(self.idle, entry):
            return
        may_open = len(self.connections) + len(self.opening) < self.breaker.allowed(self.pool.lane.clock.monotonic())
        if not may_open and self._offer_one_of(self.spare, entry):
            return
        self.queue.append(entry)
        self.open_more()

    def _offer_one_of(self, sessions: set[Connection], entry: Entry) -> bool:
        while sessions:
            conn = sessions.pop()
            if conn.can_offer:
                if not self._offer(conn, entry):
                    sessions.add(conn)
                return True
        return False

    # ------------------------------------------------------------------------------------------------------- sessions

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
        except ProviderRefused as error:
            slower = classify(error.reply, error.phase) is ReplyClass.THROTTLED
            self._no_session(str(error), throttled=slower)
            return
        except ProviderDown as error:
            self._no_session(str(error))
            return
        except Exception as error:  # e.g. a host name that no resolver takes: the provider is as good as down
            _log.exception("opening a session failed", extra={"lane": lane.name, "provider": self.name})
            self._no_session(type(error).__name__)
            return
        if conn.is_closed:
            self._no_session("closed as soon as it was open")
            return
        self.connections.add(conn)
        lane.metrics.connections.labels(lane.name, self.name).set(len(self.connections))
        if self.breaker.state is not BreakerState.CLOSED:
            self.breaker.reached()
            self._say_state()
        lane.work.set()

    def _no_session(self, reason: str, *, throttled: bool = False) -> None:
        lane = self.pool.lane
        _log.warning("no session", extra={"lane": lane.name, "provider": self.name, "reason": reason})
        if not throttled:
            lane.observer.unreached(self.name)
        self.not_before = lane.clock.monotonic() + OPEN_AGAIN_S
        if throttled:
            self.breaker.throttled()
        if not (throttled and self.connections):  # else: as many sessions as it takes, and those work
            self.failed()
        if self.healthy:
            asyncio.get_running_loop().call_later(OPEN_AGAIN_S * 1.01, self.open_more)

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
        """What a result says of the provider; returns its name for the metrics. A lost session speaks in `closed`."""
        if isinstance(result, Accepted):
            self._worked()
            return "accepted"
        if isinstance(result, Refused):
            kind = classify(result.reply, result.phase)
            if kind is ReplyClass.THROTTLED:
                # One domain's throttling must not close the provider for the others: only the pace goes down.
                self.breaker.throttled()
                if result.phase is Phase.MAIL:
                    self.failed()
            elif kind is ReplyClass.PROVIDER or (kind is ReplyClass.TEMPORARY and result.phase is Phase.MAIL):
                self.failed()
            else:
                self._worked()
            return kind.value
        if isinstance(result, InDoubt):
            return "in_doubt"
        return "not_begun" if isinstance(result, NotBegun) else "unsendable"

    def _worked(self) -> None:
        reopened = self.breaker.state is not BreakerState.CLOSED
        self.breaker.succeeded()
        if reopened:
            self._say_state()

    # ---------------------------------------------------------------------------- what the connections ask and tell

    def ready(self, conn: Connection) -> None:
        while self.queue:
            entry = self.queue.popleft()
            if entry.stage in _WAITS and self.pool.waits_at(entry, self) and self._offer(conn, entry):
                return
        if self.load.get(conn):
            self.spare.add(conn)
        else:
            self.spare.discard(conn)
            self.idle.add(conn)

    def _offer(self, conn: Connection, entry: Entry) -> bool:
        """False: this provider cannot take the mail, which was dealt with; the session is as it was."""
        unsendable = conn.offer(entry)
        if unsendable is not None:
            self._ended(entry, unsendable)
            return False
        self.pool.where[entry] = (self, conn)
        if entry.span is not None:
            tracing.phase(entry, "envelope")
        self.load[conn] = self.load.get(conn, 0) + 1
        return True

    def _ended(self, entry: Entry, result: Result) -> None:
        """The result of a mail that is here; where its intent is being committed, it waits for that."""
        if entry.stage is Stage.STARTING and not isinstance(result, (Accepted, InDoubt)):
            self.pool.defer(entry, self, result)
        else:
            self.settle(entry, result)

    def settle(self, entry: Entry, result: Result) -> None:
        """The entry leaves with its result."""
        lane = self.pool.lane
        self.pool.take(entry)
        self._done += 1
        if not isinstance(result, Unsendable):
            lane.finished(entry, result)
            return
        lane.metrics.attempts_total.labels(lane.name, self.name, "unsendable").inc()
        if result.obstacle in (Obstacle.ADDRESS, Obstacle.BODY) and entry.mail is not None:
            reason = f"{result.obstacle.value}: {result.detail}"[:300]
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
        lane = self.pool.lane
        lane.observer.dot_sent(self.name, item)
        lane.dot_sent(item)

    def finished(self, conn: Connection, item: Any, result: Result) -> None:
        self.load[conn] -= 1
        kind = self._learn(result)
        self.pool.lane.observer.result(self.name, item, result)
        if not self.pool.holds(item):
            return  # it was taken back
        if item.stage is Stage.FRESH:
            # Its tick is being rolled back, and another mail of this session was withdrawn just now: `withdraw` is
            # on its way for this one too, and gives its place back.
            self.pool.where[item] = (self, None)
            return
        if isinstance(result, NotBegun) and item.stage in _WAITS:
            self.pool.again(item, self, result.reason)
            return
        if not isinstance(result, Unsendable):
            lane = self.pool.lane
            lane.metrics.attempts_total.labels(lane.name, self.name, kind).inc()
            measures.attempted(lane, self.name, item)
        self._ended(item, result)

    def closed(self, conn: Connection, closed: Closed) -> None:
        lane = self.pool.lane
        was_idle = conn in self.idle
        self.connections.discard(conn)
        self.idle.discard(conn)
        self.spare.discard(conn)
        self.load.pop(conn, None)
        lane.metrics.connections.labels(lane.name, self.name).set(len(self.connections))
        # A server may end a session that nobody uses: that says nothing of its health.
        if not was_idle and closed.cause in (Cause.LOST, Cause.PROTOCOL_ERROR, Cause.SERVER_CLOSING):
            _log.info("session ended", extra={"lane": lane.name, "provider": self.name, "reason": closed.reason})
            if closed.cause is Cause.SERVER_CLOSING:
                self.breaker.throttled()
            lane.observer.unreached(self.name)
            self.failed()
        if self.queue:
            self.open_more()
        self.pool.session_ended()
