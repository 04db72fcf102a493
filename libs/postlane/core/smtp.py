"""One SMTP connection delivering mails, sans I/O: bytes in, typed events out (h11's way).

It starts after EHLO, STARTTLS, EHLO and AUTH. Each mail has one envelope sender and one recipient. At most two mails
are on their way: one whose reply to the final dot is awaited, and one ahead of it. Where the server offers PIPELINING
(RFC 2920) the body, the final dot and the next mail's MAIL, RCPT and DATA leave in one write, so that a mail costs one
round trip; otherwise the conversation goes command by command.

Every mail that `offer` took gets exactly one result (`Accepted`, `Refused`, `NotBegun` or `InDoubt`), and `Closed` is
the last event of a connection. Whatever arrives, nothing raises and nothing is buffered beyond one reply.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from postlane.core.replies import Phase, Reply, reply_from_lines
from postlane.core.smtp_envelope import Envelope, OfferedMail, check_envelope, obstacle_to
from postlane.core.smtp_events import (
    Accepted,
    Cause,
    Closed,
    EnvelopeAccepted,
    Event,
    InDoubt,
    NotBegun,
    Refused,
    Result,
    Unsendable,
)
from postlane.core.smtp_moves import CALLS, PHASES, REPLIES, IllegalMove, Kind, Move, State, Waiting
from postlane.core.smtp_wire import Extensions, MalformedReply, ReplyReader, all_went_well, dot_stuff

# Plain names: reading a member from its enum class costs 0.1 µs in Python 3.11, forty times a mail.
_IDLE, _ENVELOPE, _REFUSED, _BODY, _DOT, _LONE_DOT, _QUIT, _CLOSED = State
_FOR_NOTHING, _FOR_BODY, _FOR_RSET, _FOR_MAIL, _FOR_RCPT, _FOR_DATA, _FOR_DOT, _FOR_QUIT = Waiting
_OK, _GO, _NO = Kind
_TO_ON, _TO_WANT_BODY, _TO_REFUSE, _TO_SKIP, _TO_EMPTY_DATA, _TO_ACCEPT, _TO_REFUSE_DOT, _TO_BYE = Move
_OFFER, _SEND_BODY, _WITHDRAW = CALLS["offer"], CALLS["send_body"], CALLS["withdraw"]


class SmtpDelivery:
    """The conversation of one connection.

    `offer` a mail when `can_offer`; write `data_to_send()` after every call; feed what arrives to `receive`. When
    `may_send_body(ref)`, call `send_body` (or `withdraw`). Tell it of the end, or of a time-out, with `lost`.
    """

    __slots__ = (
        "_awaited",
        "_behind_refused_dot",
        "_current",
        "_dotted",
        "_events",
        "_next",
        "_open",
        "_out",
        "_reader",
        "extensions",
        "replies_seen",
        "state",
    )

    def __init__(self, extensions: Extensions) -> None:
        self.extensions = extensions
        self.state = _IDLE
        self.replies_seen = 0
        self._awaited: deque[Waiting] = deque()  # the commands whose replies are outstanding, in order
        self._dotted: OfferedMail | None = None  # body and dot handed over, reply awaited
        self._current: OfferedMail | None = None  # its commands were written
        self._next: OfferedMail | None = None  # offered, nothing written
        self._open = False  # the server may hold a transaction that RSET has to end
        self._behind_refused_dot = False
        self._events: list[Event] = []
        self._out: list[bytes] = []
        self._reader = ReplyReader()

    # What the caller may ask

    @property
    def can_offer(self) -> bool:
        """Whether another mail is taken: one under way and one ahead is all there ever is."""
        return self._next is None and (self._dotted is None or self._current is None) and self.state in _OFFER

    @property
    def closed(self) -> bool:
        """Whether `Closed` was given; nothing is written or read any more."""
        return self.state is _CLOSED

    @property
    def body_wanted(self) -> Any | None:
        """The mail whose body the server waits for, or None."""
        current = self._current
        return current.ref if self.state is _BODY and current is not None else None

    @property
    def waiting_for(self) -> Waiting:
        """The reply that is due next, or whose turn it is."""
        if self._awaited:
            return self._awaited[0]
        return _FOR_BODY if self.state is _BODY else _FOR_NOTHING

    def may_send_body(self, ref: object) -> bool:
        """Whether `send_body` is legal for this mail now; not while bytes lie here that nobody asked for."""
        current = self._current
        return self.state in _SEND_BODY and current is not None and current.ref is ref and not self._reader.unread()

    # What the caller does

    def offer(self, ref: object, envelope: Envelope) -> Unsendable | None:
        """Takes the next mail and writes its commands as early as is allowed; `ref` is opaque and compared by identity.

        Returns `Unsendable`, and changes nothing, where the server does not offer what the mail needs. Raises
        ValueError for an address that cannot stand in a command, IllegalMove unless `can_offer`.
        """
        if not self.can_offer:
            raise IllegalMove(f"offer in {self.state.name}")
        check_envelope(envelope)
        obstacle = obstacle_to(envelope, self.extensions)
        if obstacle is not None:
            return Unsendable(ref, obstacle)
        mail = OfferedMail(ref, envelope, self.extensions)
        if self.state is _IDLE or (self.state is _DOT and self.extensions.pipelining):
            self._begin(mail)
        else:
            self._next = mail
        return None

    def send_body(self, ref: object, body: bytes) -> None:
        """Hands over the body and the final dot, and behind them the next mail's commands.

        From here on the mail is in doubt until its reply. Raises ValueError for a body that cannot be sent (a bare CR
        or LF; 8-bit bytes that were not declared) and IllegalMove unless `may_send_body`; neither changes anything.
        """
        mail = self._current
        if mail is None or not self.may_send_body(ref):
            raise IllegalMove(f"send_body in {self.state.name}")
        stuffed = dot_stuff(body)
        if not mail.declared_eight_bit and not body.isascii():
            raise ValueError("8-bit body without BODY=8BITMIME")
        self._out.append(stuffed)
        self._out.append(b".\r\n")
        self._awaited.append(_FOR_DOT)
        self._dotted, self._current = mail, None
        self.state = _DOT
        if self._next is not None and self.extensions.pipelining:
            following, self._next = self._next, None
            self._begin(following)

    def withdraw(self, ref: object, reason: str = "withdrawn") -> list[Event]:
        """Takes a mail back whose body was not handed over; its `NotBegun` is among the events returned.

        If the server already waits for its body, the connection is over: a lone dot would deliver an empty mail.
        Raises IllegalMove for any other mail.
        """
        self._events = []
        ahead, current = self._next, self._current
        if self.state in _WITHDRAW:
            if ahead is not None and ahead.ref is ref:
                self._next = None
                self._events.append(NotBegun(ref, Phase.MAIL, reason))
                return self._events
            if current is not None and current.live and current.ref is ref:
                if self.state is _BODY:
                    self._close(Cause.WITHDRAWN, reason)
                else:
                    self._drop(NotBegun(ref, self._phase(), reason))
                return self._events
        raise IllegalMove(f"withdraw in {self.state.name}")

    def quit(self) -> None:
        """Says QUIT; raises IllegalMove unless nothing is under way."""
        if self.state not in CALLS["quit"]:
            raise IllegalMove(f"quit in {self.state.name}")
        self._out.append(b"QUIT\r\n")
        self._awaited.append(_FOR_QUIT)
        self.state = _QUIT

    def lost(self, reason: str) -> list[Event]:
        """The connection broke, timed out or is being given up: every mail gets its result. Legal in any state."""
        self._events = []
        if not self.closed:
            self._close(Cause.QUIT if self.state is _QUIT else Cause.LOST, reason)
        return self._events

    def data_to_send(self) -> bytes:
        """What is to be written now; taken once."""
        out = self._out
        if not out:
            return b""
        data = b"".join(out)
        out.clear()
        return data

    def receive(self, data: bytes) -> list[Event]:
        """Takes bytes from the server and returns what they mean; after `Closed` it ignores everything."""
        events = self._events = []
        if self.closed:
            return events
        reader, awaited = self._reader, self._awaited
        if len(awaited) == 4 and self.state is _DOT and self._all_went_well(data):
            return events
        try:
            reader.feed(data)
            while self.state is not _CLOSED:
                # With nothing outstanding only 421 may come; anything else would answer a command not yet written.
                if not awaited and not b"421".startswith(reader.unread()[:3]):
                    self._close(Cause.PROTOCOL_ERROR, "reply that nothing asked for")
                    break
                code = reader.next()
                if not code:
                    break
                self._take(code)
        except MalformedReply as error:
            self._close(Cause.PROTOCOL_ERROR, str(error))
        return events

    # What a reply does

    def _all_went_well(self, data: bytes) -> bool:
        # The usual four moves at once (ACCEPT, ON, ON, WANT_BODY): a third of the CPU of a mail. Bytes that came split,
        # or say anything else, go the long way.
        mail, behind = self._dotted, self._current
        if mail is None or behind is None or not behind.live or self._reader.unread():
            return False
        well = all_went_well(data)
        if well is None:
            return False
        self._awaited.clear()
        self.replies_seen += 4
        self._dotted = None
        self._open = behind.rcpt_ok = True
        self.state = _BODY
        self._events += (Accepted(mail.ref, reply_from_lines(well[0], [well[1]])), EnvelopeAccepted(behind.ref))
        return True

    def _take(self, code: int) -> None:
        if code == 421:
            self._server_closes(reply_from_lines(code, self._reader.texts))
            return
        step = self._awaited[0]
        kind = _OK if code < 300 else _NO if code >= 400 else _GO
        move = REPLIES.get((self.state, step, kind))
        if move is None or (kind is _GO and code != 354):
            self._close(Cause.PROTOCOL_ERROR, f"reply {code} to {step.name}")
            return
        self._awaited.popleft()
        self.replies_seen += 1
        if move is _TO_ON:
            self._on(step)
        elif move is _TO_WANT_BODY:
            assert self._current is not None
            self.state = _BODY
            self._events.append(EnvelopeAccepted(self._current.ref))
        elif move is _TO_ACCEPT or move is _TO_REFUSE_DOT:
            self._dot_answered(move, reply_from_lines(code, self._reader.texts))
        elif move is _TO_REFUSE:
            self._refuse(step, reply_from_lines(code, self._reader.texts))
        elif move is _TO_SKIP:
            self._skip(step, kind)
        elif move is _TO_EMPTY_DATA:
            self._end_empty_data()
        else:
            self._close(Cause.QUIT, "quit")

    def _on(self, step: Waiting) -> None:
        mail = self._current
        assert mail is not None
        self._note(step)
        if self._awaited:
            return
        # Command by command: the next one.
        if step is _FOR_RSET:
            self._say(_FOR_MAIL, mail.mail_line)
        elif step is _FOR_MAIL:
            self._say(_FOR_RCPT, mail.rcpt_line)
        else:
            self._say(_FOR_DATA, b"DATA\r\n")

    def _note(self, step: Waiting) -> None:
        if step is _FOR_MAIL:
            self._open = True
            self._behind_refused_dot = False
        elif step is _FOR_RCPT:
            self._open = True
            if self._current is not None:
                self._current.rcpt_ok = True
        else:
            self._open = False

    def _refuse(self, step: Waiting, reply: Reply) -> None:
        assert self._current is not None
        behind_refused_dot, self._behind_refused_dot = self._behind_refused_dot, False
        if behind_refused_dot and step is _FOR_MAIL and reply.code == 503:
            # It kept the refused mail's transaction open. That is neither this mail's fault nor the account's.
            self._close(Cause.PROTOCOL_ERROR, "transaction still open after a refused dot")
            return
        self._drop(Refused(self._current.ref, reply, PHASES[step]))

    def _skip(self, step: Waiting, kind: Kind) -> None:
        if kind is _OK or step is _FOR_DOT:
            self._note(step)
        if not self._awaited:
            self._turn()

    def _drop(self, result: Result) -> None:
        # The current mail is over; its group's replies may still have to be read.
        assert self._current is not None
        self._current.live = False
        self._events.append(result)
        if self.state is not _DOT:
            self.state = _REFUSED
            if not self._awaited:
                self._turn()

    def _end_empty_data(self) -> None:
        assert self._current is not None
        if self._current.rcpt_ok:
            self._close(Cause.WITHDRAWN, "354 for a mail that may no longer be sent")
        else:
            self._say(_FOR_DOT, b".\r\n")
            self.state = _LONE_DOT

    def _dot_answered(self, move: Move, reply: Reply) -> None:
        mail, self._dotted = self._dotted, None
        assert mail is not None
        accepted = move is _TO_ACCEPT
        self._events.append(Accepted(mail.ref, reply) if accepted else Refused(mail.ref, reply, Phase.DOT))
        # RFC 5321 4.1.1.4 ends the transaction at the dot; not every server does when it refuses.
        behind = self._current
        self._open = not accepted and behind is None
        self._behind_refused_dot = not accepted and behind is not None
        if behind is None:
            self._turn()
        else:
            self.state = _ENVELOPE if behind.live else _REFUSED

    def _server_closes(self, reply: Reply) -> None:
        if self.state is _ENVELOPE and self._current is not None and self._awaited[0] in PHASES:
            self._events.append(Refused(self._current.ref, reply, self._phase()))
            self._current = None
        elif self.state is _DOT and self._dotted is not None:
            self._events.append(Refused(self._dotted.ref, reply, Phase.DOT))
            self._dotted = None
        self._close(Cause.QUIT if self.state is _QUIT else Cause.SERVER_CLOSING, str(reply), reply)

    # Writing

    def _turn(self) -> None:
        # Nothing is outstanding and no mail is current: the one ahead begins.
        self._current = None
        self.state = _IDLE
        if self._next is not None:
            following, self._next = self._next, None
            self._begin(following)

    def _begin(self, mail: OfferedMail) -> None:
        self._current = mail
        behind_dot = self.state is _DOT
        if not behind_dot:
            self.state = _ENVELOPE
        reset = self._open and not behind_dot
        if self.extensions.pipelining:
            if reset:
                self._say(_FOR_RSET, b"RSET\r\n")
            self._out.append(mail.mail_line)
            self._out.append(mail.rcpt_line)
            self._out.append(b"DATA\r\n")
            self._awaited += (_FOR_MAIL, _FOR_RCPT, _FOR_DATA)
        elif reset:
            self._say(_FOR_RSET, b"RSET\r\n")
        else:
            self._say(_FOR_MAIL, mail.mail_line)

    def _say(self, step: Waiting, line: bytes) -> None:
        self._out.append(line)
        self._awaited.append(step)

    # The end

    def _phase(self) -> Phase:
        if self.state is _ENVELOPE or self.state is _BODY:
            return PHASES.get(self.waiting_for, Phase.MAIL)
        return Phase.MAIL

    def _close(self, cause: Cause, reason: str, reply: Reply | None = None) -> None:
        if self._dotted is not None:
            self._events.append(InDoubt(self._dotted.ref, reason))
        if self._current is not None and self._current.live:
            self._events.append(NotBegun(self._current.ref, self._phase(), reason))
        if self._next is not None:
            self._events.append(NotBegun(self._next.ref, Phase.MAIL, reason))
        self._events.append(Closed(cause, reason, reply))
        self._dotted = self._current = self._next = None
        self._awaited.clear()
        self._out.clear()
        self._reader = ReplyReader()
        self.state = _CLOSED
