"""The legal moves of an SMTP delivery conversation, in two tables; `postlane.core.smtp` makes no other."""

from __future__ import annotations

from enum import IntEnum

from postlane.core.replies import Phase


class IllegalMove(Exception):
    """The caller did what the state does not allow; the machine is unchanged."""


class State(IntEnum):
    """Where the connection stands."""

    IDLE = 0  # nothing is outstanding
    ENVELOPE = 1  # replies to the current mail's commands are outstanding, none has refused it
    REFUSED = 2  # the current mail is over (refused or withdrawn), replies to its commands are outstanding
    BODY = 3  # 354 was seen and nothing is outstanding: it is our turn
    DOT = 4  # body and final dot were handed over; the next mail's commands may be behind them
    LONE_DOT = 5  # an empty DATA of a refused mail is being closed
    QUIT = 6
    CLOSED = 7


class Waiting(IntEnum):
    """What the connection waits for now: the class of time-out that applies (RFC 5321 4.5.3.2)."""

    NOTHING = 0
    BODY = 1  # for us: the server has said 354
    RSET = 2
    MAIL = 3
    RCPT = 4
    DATA = 5
    DOT = 6
    QUIT = 7


class Kind(IntEnum):
    """A reply's sort: 2xx, 354, or 4xx and 5xx. 421 is looked at before this."""

    OK = 0
    GO = 1
    NO = 2


class Move(IntEnum):
    """What a reply does."""

    ON = 0  # the current mail goes on
    WANT_BODY = 1
    REFUSE = 2  # the current mail is over
    SKIP = 3  # belongs to a mail that is over already
    EMPTY_DATA = 4  # 354 for a mail that is over
    ACCEPT = 5  # the server has taken the mail before the current one
    REFUSE_DOT = 6
    BYE = 7


# Legal replies: what a reply of this kind to this command does in this state. Anything else is a protocol error.
REPLIES: dict[tuple[State, Waiting, Kind], Move] = {
    (State.ENVELOPE, Waiting.RSET, Kind.OK): Move.ON,
    (State.ENVELOPE, Waiting.MAIL, Kind.OK): Move.ON,
    (State.ENVELOPE, Waiting.MAIL, Kind.NO): Move.REFUSE,
    (State.ENVELOPE, Waiting.RCPT, Kind.OK): Move.ON,
    (State.ENVELOPE, Waiting.RCPT, Kind.NO): Move.REFUSE,
    (State.ENVELOPE, Waiting.DATA, Kind.GO): Move.WANT_BODY,
    (State.ENVELOPE, Waiting.DATA, Kind.NO): Move.REFUSE,
    (State.REFUSED, Waiting.RSET, Kind.OK): Move.SKIP,
    (State.REFUSED, Waiting.MAIL, Kind.OK): Move.SKIP,
    (State.REFUSED, Waiting.MAIL, Kind.NO): Move.SKIP,
    (State.REFUSED, Waiting.RCPT, Kind.OK): Move.SKIP,
    (State.REFUSED, Waiting.RCPT, Kind.NO): Move.SKIP,
    (State.REFUSED, Waiting.DATA, Kind.NO): Move.SKIP,
    (State.REFUSED, Waiting.DATA, Kind.GO): Move.EMPTY_DATA,
    (State.DOT, Waiting.DOT, Kind.OK): Move.ACCEPT,
    (State.DOT, Waiting.DOT, Kind.NO): Move.REFUSE_DOT,
    (State.LONE_DOT, Waiting.DOT, Kind.OK): Move.SKIP,
    (State.LONE_DOT, Waiting.DOT, Kind.NO): Move.SKIP,
    (State.QUIT, Waiting.QUIT, Kind.OK): Move.BYE,
    (State.QUIT, Waiting.QUIT, Kind.NO): Move.BYE,
}
# Legal calls, by state; `lost` is legal always. `withdraw` is for a mail whose body was not handed over.
CALLS: dict[str, frozenset[State]] = {
    "offer": frozenset({State.IDLE, State.ENVELOPE, State.REFUSED, State.BODY, State.DOT, State.LONE_DOT}),
    "send_body": frozenset({State.BODY}),
    "withdraw": frozenset({State.ENVELOPE, State.REFUSED, State.BODY, State.DOT, State.LONE_DOT}),
    "quit": frozenset({State.IDLE}),
}
PHASES = {
    Waiting.MAIL: Phase.MAIL,
    Waiting.RCPT: Phase.RCPT,
    Waiting.DATA: Phase.DATA,
    Waiting.BODY: Phase.DATA,
    Waiting.DOT: Phase.DOT,
}
