"""One open SMTP session that delivers mail after mail: the asyncio shell around `postlane.core.smtp`.

No future and no task per command: the transport calls `data_received`, the machine says what it meant, the listener
is told, and whatever there is to say leaves in one write. Everything runs in the loop's thread.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from postlane.core.smtp import SmtpDelivery
from postlane.core.smtp_envelope import Envelope, Obstacle
from postlane.core.smtp_events import (
    Accepted,
    Cause,
    Closed,
    EnvelopeAccepted,
    Event,
    InDoubt,
    NotBegun,
    Refused,
    Unsendable,
)
from postlane.core.smtp_moves import State, Waiting
from postlane.core.smtp_wire import Extensions

Result = Accepted | Refused | NotBegun | InDoubt | Unsendable


class NotYet(Enum):
    """The answer to `body_wanted` while the mail's intent is not committed; `Connection.body_ready` follows."""

    NOT_YET = "not yet"


NOT_YET: Final = NotYet.NOT_YET


class Item(Protocol):
    """What a connection needs to know of a mail; it is handed back by identity."""

    envelope_from: str
    recipient: str

    @property
    def size_bytes(self) -> int | None:
        """Size of the body for SIZE, None when it is not known yet."""

    @property
    def eight_bit(self) -> bool | None:
        """Whether the body has bytes above 127, None when that is not known yet."""


class Listener(Protocol):
    """Who offers the mails. Calls come in the loop's thread; all but `closed` may call the connection back."""

    def ready(self, conn: Connection) -> None:
        """The connection takes an offer; called again after each mail, not again until then if nothing is offered."""

    def body_wanted(self, conn: Connection, item: Item) -> bytes | NotYet | None:
        """The last look before the body is written: its final bytes, `NOT_YET`, or None if it may not be sent."""

    def dot_sent(self, conn: Connection, item: Item) -> None:
        """Body and final dot were handed to the transport just now; until `finished` the mail is in doubt."""

    def finished(self, conn: Connection, item: Item, result: Result) -> None:
        """The one result of an offered item."""

    def closed(self, conn: Connection, closed: Closed) -> None:
        """The last call; every item has had its result."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Time-outs in seconds (RFC 5321 4.5.3.2) and bounds of one connection.

    Time is kept by one coarse timer of `tick_s` per connection: a time-out comes up to two ticks late, never early.
    """

    open_s: float = 60.0  # connect, TLS, EHLO and AUTH together
    mail_s: float = 300.0  # also RSET
    rcpt_s: float = 300.0
    data_s: float = 120.0
    block_s: float = 180.0  # while the server takes no more of the body
    dot_s: float = 600.0
    body_wait_s: float = 60.0  # 354 was seen and the body is not ready on our side
    idle_s: float = 30.0
    quit_s: float = 5.0
    tick_s: float = 1.0
    mails_max: int = 10_000


class Connection(asyncio.Protocol):
    """A live session: `offer` mails while `can_offer`; results come to the listener.

    Where the server pipelines, an offered mail's MAIL, RCPT and DATA may leave at once; its body never leaves before
    the listener gave it in answer to `body_wanted`.
    """

    __slots__ = (
        "_asked",
        "_busy",
        "_draining",
        "_limits_ticks",
        "_listener",
        "_loop",
        "_machine",
        "_offers",
        "_quiet_ticks",
        "_replies_seen",
        "_timer",
        "_transport",
        "_unsent_bytes",
        "limits",
        "name",
        "offers_left",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        extensions: Extensions,
        listener: Listener,
        limits: SessionLimits,
        name: str = "",
    ) -> None:
        """Takes over a transport whose session is open; `start` begins. `name` is the provider's."""
        self.name = name
        self.limits = limits
        self.offers_left = limits.mails_max
        self._transport = transport
        self._listener = listener
        self._machine = SmtpDelivery(extensions)
        self._loop = asyncio.get_running_loop()
        self._asked: object | None = None  # the item that body_wanted was answered NOT_YET for
        self._busy = False  # inside a callback: what there is to say is said at its end
        self._draining = False
        self._offers = 0
        self._quiet_ticks = 0
        self._replies_seen = 0
        self._unsent_bytes = 0
        self._limits_ticks = {step: math.ceil(seconds / limits.tick_s) for step, seconds in _seconds(limits).items()}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Connection {self.name} {self._machine.state.name}>"

    @property
    def can_offer(self) -> bool:
        """Whether a mail would be taken: one under way and one ahead."""
        return self._machine.can_offer and not self._draining and self.offers_left > 0

    @property
    def is_closed(self) -> bool:
        """Whether `closed` was called, or is being called."""
        return self._machine.closed

    def start(self) -> None:
        """Receives from the transport from now on and tells the listener that offers are taken."""
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport.set_protocol(self)
        self._timer = self._loop.call_later(self.limits.tick_s, self._tick)
        self._advance()

    # What the sender does

    def offer(self, item: Item) -> Unsendable | None:
        """Takes the next mail; `Unsendable` if it cannot go over this connection, which then takes another one.

        Raises IllegalMove unless `can_offer`.
        """
        machine = self._machine
        if machine.state is State.IDLE:
            self._quiet_ticks = 0
        envelope = Envelope(item.envelope_from, item.recipient, item.size_bytes, item.eight_bit)
        try:
            unsendable = machine.offer(item, envelope)
        except ValueError as error:
            return Unsendable(item, Obstacle.ADDRESS, str(error))
        if unsendable is None:
            self._offers += 1
            self.offers_left -= 1
            if not self._busy:
                self._flush()
        return unsendable

    def body_ready(self, item: Item) -> None:
        """The mail whose body was `NOT_YET` may be asked for again; of no effect for any other."""
        if self._asked is item:
            self._asked = None
            if not self._busy:
                self._advance()

    def withdraw(self, item: Item, reason: str = "withdrawn") -> None:
        """Takes back an offered mail whose body was not handed over: `finished` is called with `NotBegun`.

        If the server waits for its body the connection closes. Raises IllegalMove for any other mail.
        """
        self._tell(self._machine.withdraw(item, reason))
        if not self._busy:
            self._advance()

    def drain(self) -> None:
        """Takes no more offers; QUITs when what was offered is finished."""
        self._draining = True
        if not self._busy:
            self._advance()

    def abort(self, reason: str) -> None:
        """Closes at once: what has not begun is `NotBegun`, what waits for the reply to its dot `InDoubt`."""
        self._tell(self._machine.lost(reason))

    # What the transport does

    def data_received(self, data: bytes) -> None:
        """Bytes from the server."""
        machine = self._machine
        events = machine.receive(data)
        if machine.replies_seen != self._replies_seen:  # a server that drips bytes gains no time by it
            self._replies_seen = machine.replies_seen
            self._quiet_ticks = 0
        self._tell(events)
        self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._tell(self._machine.lost("connection lost" if exc is None else f"connection lost: {type(exc).__name__}"))

    # One step

    def _tell(self, events: Sequence[Event | Unsendable]) -> None:
        if not events:
            return
        listener, was_busy = self._listener, self._busy
        self._busy = True
        try:
            for event in events:
                if isinstance(event, EnvelopeAccepted):
                    continue  # _advance asks for the body
                if isinstance(event, Closed):
                    self._end(event)
                else:
                    listener.finished(self, event.ref, event)
        finally:
            self._busy = was_busy

    def _advance(self) -> None:
        machine = self._machine
        self._busy = True
        try:
            while self.can_offer:
                offers = self._offers
                self._listener.ready(self)
                if offers == self._offers:
                    break
            wanted: Item | None = machine.body_wanted
            sent = wanted is not None and wanted is not self._asked and self._send_body(wanted)
            if machine.state is State.IDLE and (self._draining or self.offers_left <= 0):
                self._quiet_ticks = 0
                machine.quit()
        finally:
            self._busy = False
        self._flush()
        if sent and wanted is not None:
            self._listener.dot_sent(self, wanted)

    def _send_body(self, item: Item) -> bool:
        machine = self._machine
        if not machine.may_send_body(item):
            return False
        body = self._listener.body_wanted(self, item)
        if not machine.may_send_body(item):  # the listener withdrew it or gave the connection up
            return False
        if body is NOT_YET:
            self._asked = item
            return False
        if body is None:
            self._tell(machine.withdraw(item, "may no longer be sent"))
            return False
        assert isinstance(body, bytes)
        try:
            machine.send_body(item, body)
        except ValueError as error:
            # The server waits for a body that will never come: the connection goes, and the mail says why.
            unsendable = Unsendable(item, Obstacle.BODY, str(error))
            events = machine.withdraw(item, "body cannot be sent")
            self._tell([unsendable if isinstance(event, NotBegun) and event.ref is item else event for event in events])
            return False
        self._quiet_ticks = 0
        return True

    def _flush(self) -> None:
        data = self._machine.data_to_send()
        if data:
            self._transport.write(data)

    def _end(self, closed: Closed) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if closed.cause is Cause.QUIT:
            self._transport.close()
        else:
            self._transport.abort()
        self._listener.closed(self, closed)

    # Time

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self.limits.tick_s, self._tick)
        waiting = self._machine.waiting_for
        self._quiet_ticks += 1
        ticks_max = self._limits_ticks[waiting]
        if waiting is Waiting.DOT:
            unsent_bytes = self._transport.get_write_buffer_size()
            if unsent_bytes != self._unsent_bytes:
                self._unsent_bytes = unsent_bytes
                self._quiet_ticks = 0
            if unsent_bytes:
                ticks_max = math.ceil(self.limits.block_s / self.limits.tick_s)
        if self._quiet_ticks <= ticks_max:
            return
        if waiting is Waiting.NOTHING:
            self.drain()
        else:
            self.abort(f"timed out waiting for {waiting.name}")


def _seconds(limits: SessionLimits) -> dict[Waiting, float]:
    return {
        Waiting.NOTHING: limits.idle_s,
        Waiting.BODY: limits.body_wait_s,
        Waiting.RSET: limits.mail_s,
        Waiting.MAIL: limits.mail_s,
        Waiting.RCPT: limits.rcpt_s,
        Waiting.DATA: limits.data_s,
        Waiting.DOT: limits.dot_s,
        Waiting.QUIT: limits.quit_s,
    }
