"""What the parts of one lane's loop share: its books, its queues, who it is in the group, and where mails go.

The loop is single-threaded on the event loop. Its parts: `takeover` (what a partition's past says), `admission`
(what may start), `courier` (SMTP), `tick` (the transactions), `loop` (membership and the order of things).
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from itertools import islice
from typing import NamedTuple, Protocol

from postlane.clock import Clock
from postlane.core import settle
from postlane.core.books import Book, Entry, Stage
from postlane.core.events import DispatchReady, Intent
from postlane.core.policy import Config, Lane
from postlane.core.rules import Rules
from postlane.core.settle import Decision
from postlane.core.smtp_events import Accepted, InDoubt, NotBegun, Refused, Result
from postlane.eventlog.ports import Log, Membership
from postlane.eventlog.tables import ControlTable
from postlane.eventlog.topics import TopicNames
from postlane.telemetry.metrics import SenderMetrics
from postlane.telemetry.tracing import OFF, Tracer
from postlane_sender import tracing
from postlane_sender.failpoints import Failpoints
from postlane_sender.observations import Observer, Unobserved


class Write(Enum):
    """The answers to "may the body be written?" that are no body."""

    NOT_YET = "not yet"  # the intent is not committed: `Courier.proceed` will follow
    NEVER = "never"  # it may not be sent any more


class Placed(Enum):
    """Why no provider takes a mail now."""

    BUSY = "busy"  # every healthy provider has as much as it can take
    DOWN = "down"  # no provider is healthy
    REFUSED = "refused"  # every provider of the lane refused this mail for reasons of its own


class Courier(Protocol):
    """Brings mails to servers. Told of intents by the tick, tells the lane of results."""

    def place(self, mail: DispatchReady) -> str | Placed:
        """The provider that takes this mail now, which reserves a place with it; or why none does."""

    def start(self, entry: Entry) -> None:
        """The mail is being admitted to `entry.provider`: its envelope may go, its body waits for `Lane.may_write`."""

    def proceed(self, entry: Entry) -> None:
        """The intent is committed: ask `may_write` again if the answer was NOT_YET."""

    def ticked(self) -> None:
        """A tick was committed, and every `proceed` of it was called."""

    def withdraw(self, entry: Entry) -> None:
        """It may not be sent any more; a conversation in which the dot was not written is closed."""

    def usable(self) -> bool:
        """Whether any provider is healthy, or due for a probe."""

    async def close(self, timeout_s: float) -> None: ...


class Recorder(Protocol):
    """The flight recorder as the lane uses it (postlane_sender.recorder)."""

    NEVER_BEGUN: int
    NO_REPLY: int

    def recall(self, entry: Entry, intent: Intent) -> int | None:
        """What this instance's earlier life recorded of its own intent: NEVER_BEGUN, NO_REPLY, or the code of the
        reply to the dot. None: it proves nothing."""

    def begun(self, entry: Entry) -> None: ...

    def replied(self, entry: Entry, code: int) -> None: ...

    def free(self, entry: Entry) -> None: ...


class NotComposable(Exception):
    """A mail that cannot be made: its template fails, or its content may not be shown to a server."""


class Composed(NamedTuple):
    """A mail as it goes over the wire: the envelope, and all of the message with CRLF line ends."""

    envelope_from: str
    recipient: str
    data: bytes


Compose = Callable[[DispatchReady], Composed]  # raises NotComposable


@dataclass(slots=True, eq=False)
class LaneState:
    """Everything that one lane's loop knows."""

    name: str
    policy: Lane
    config: Config
    names: TopicNames
    log: Log
    clock: Clock
    dice: random.Random
    instance: str
    boot: str
    compose: Compose
    control: ControlTable
    recorder: Recorder
    metrics: SenderMetrics
    rules: Rules = field(default_factory=Rules)
    failpoints: Failpoints = field(default_factory=Failpoints)
    tracer: Tracer = OFF
    observer: Observer = field(default_factory=Unobserved)
    partitions: int = 1  # of every topic that a mail travels through
    membership: Membership | None = None
    books: dict[int, Book] = field(default_factory=dict)
    closing: set[int] = field(default_factory=set)  # owned, but nothing more is admitted
    letting_go: set[int] = field(default_factory=set)  # closing, and the time to drain is over: no body is begun
    unproven: list[Entry] = field(default_factory=list)  # dropped while the recorder says that their body was begun
    fresh: deque[Entry] = field(default_factory=deque)
    ended: list[Entry] = field(default_factory=list)
    work: asyncio.Event = field(default_factory=asyncio.Event)  # there may be something for a tick
    progress: asyncio.Event = field(default_factory=asyncio.Event)  # a tick ended, or something was dropped
    gate_open: bool = True  # closed while a commit's outcome is unknown: no tick, no body
    problems: dict[str, str] = field(default_factory=dict)  # why the lane does not work, by where it was noticed
    courier: Courier = field(init=False)

    @property
    def group(self) -> str:
        return self.names.sender_group(self.name)

    @property
    def dispatch(self) -> str:
        return self.names.dispatch(self.name)

    @property
    def state(self) -> str:
        return self.names.state(self.name)

    def end(self, entry: Entry, decision: Decision) -> None:
        """What became of a dispatch record is known; the next tick writes it down."""
        entry.decision = decision
        entry.stage = Stage.ENDED
        entry.body = None
        if entry.span is not None:
            tracing.end(entry, decision.event)
        self.ended.append(entry)
        self.work.set()

    # ------------------------------------------------------------------------------ what the courier asks and tells

    def may_write(self, entry: Entry) -> bytes | Write:
        """The last look before the body: only a committed, owned, unlapsed, wanted intent gets one.

        Best effort against a paused process: copies are bounded by counting doubts, not by this clock.
        """
        if self.rules.intent_before_body:
            if entry.stage is Stage.STARTING or not self.gate_open:
                return Write.NOT_YET
            if entry.stage is not Stage.STARTED:
                return Write.NEVER
        elif entry.stage is Stage.SETTLED:
            return Write.NEVER  # no longer ours
        if entry.partition in self.letting_go:
            self.end(entry, settle.released(_mail(entry), "drained", self.clock.now(), self.dice.random()))
            return Write.NEVER
        if self.rules.look_again_before_body:
            mail, now = _mail(entry), self.clock.now()
            if self.clock.monotonic() >= entry.lapse_at:
                self.end(entry, settle.released(mail, "lapsed", now, self.dice.random()))
                return Write.NEVER
            if self.rules.expiry_everywhere and mail.expires_at is not None and now >= mail.expires_at:
                self.end(entry, settle.expired(mail, now))
                return Write.NEVER
            if self.control.cancelled(mail.message_id, mail.campaign, mail.requested_at):
                self.end(entry, settle.cancelled(mail, now))
                return Write.NEVER
        self.failpoints.hit("after_intent")
        entry.begun = True
        self.recorder.begun(entry)
        if entry.span is not None:
            tracing.phase(entry, "body")
        return entry.body or b""

    def dot_sent(self, entry: Entry) -> None:
        """Body and dot were handed to the transport: from here on a lost connection is a doubt."""
        if entry.span is not None:
            tracing.phase(entry, "dot")
        self.failpoints.hit("after_dot")

    def finished(self, entry: Entry, result: Result) -> None:
        """The one result of a mail that the courier was given."""
        if entry.stage is Stage.SETTLED or (entry.stage is not Stage.STARTED and self.rules.intent_before_body):
            return  # it was taken from the courier: settled otherwise, or no longer ours
        mail, now, roll = _mail(entry), self.clock.now(), self.dice.random()
        match result:
            case Accepted(reply=reply):
                self.recorder.replied(entry, reply.code)
                decision = settle.accepted(mail, reply, entry.provider, now)
            case Refused(reply=reply, phase=phase):
                self.recorder.replied(entry, reply.code)
                decision = settle.refused(mail, reply, phase, entry.provider, self.config.retry, now, roll)
            case InDoubt(reason=reason):
                decision = self.doubt(mail, entry.provider, reason, now)
            case NotBegun(reason=reason):
                decision = settle.released(mail, reason, now, roll)
        self.failpoints.hit("after_reply")
        self.end(entry, decision)

    def measure(self) -> None:
        """What /metrics says of the lane as it stands."""
        name, metrics = self.name, self.metrics
        oldest_ms = [e.raw.timestamp_ms for b in self.books.values() for e in islice(b.entries, 1) if e.raw is not None]
        now_ms = self.clock.now().timestamp() * 1000
        metrics.partitions.labels(name).set(len(self.books))
        metrics.unsettled.labels(name).set(sum(book.unsettled for book in self.books.values()))
        metrics.oldest_age_seconds.labels(name).set(max(0.0, (now_ms - min(oldest_ms, default=now_ms)) / 1000))

    def doubt(self, mail: DispatchReady, provider: str | None, reason: str, now: datetime) -> Decision:
        """Nobody knows whether it was accepted."""
        if not self.rules.lost_after_dot_is_doubt:
            return settle.released(mail, reason, now, self.dice.random())
        self.metrics.doubts_total.labels(self.name, mail.in_doubt).inc()
        return settle.doubtful(mail, provider, self.policy.in_doubt, self.config.retry, now, reason)


def _mail(entry: Entry) -> DispatchReady:
    assert entry.mail is not None  # only readable records are admitted
    return entry.mail
