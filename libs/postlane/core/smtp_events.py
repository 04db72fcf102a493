"""What comes of a mail and of a connection, as values: the events of `postlane.core.smtp`."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

from postlane.core.replies import Phase, Reply
from postlane.core.smtp_envelope import Obstacle


class EnvelopeAccepted(NamedTuple):
    """354 was seen: the body may be written."""

    ref: Any


class Accepted(NamedTuple):
    """The server has taken the mail."""

    ref: Any
    reply: Reply


class Refused(NamedTuple):
    """The server has refused the mail, and said so in answer to `phase`."""

    ref: Any
    reply: Reply
    phase: Phase


class NotBegun(NamedTuple):
    """Nothing of the body was handed to the transport: provably not accepted. `phase`: how far it had come."""

    ref: Any
    phase: Phase
    reason: str


class InDoubt(NamedTuple):
    """The final dot was handed to the transport and no reply to it was understood (RFC 1047)."""

    ref: Any
    reason: str


class Unsendable(NamedTuple):
    """The mail was not taken: nothing was written and nothing changed. ADDRESS and BODY hold for every provider."""

    ref: Any
    obstacle: Obstacle
    detail: str = ""


class Cause(StrEnum):
    """Why a connection is over."""

    QUIT = "quit"
    LOST = "lost"
    SERVER_CLOSING = "server closing"  # 421
    PROTOCOL_ERROR = "protocol error"
    WITHDRAWN = "withdrawn"  # the server waits for a body that may no longer be sent


class Closed(NamedTuple):
    """The last event: the caller closes the transport at once and writes nothing more."""

    cause: Cause
    reason: str
    reply: Reply | None = None


Result = Accepted | Refused | NotBegun | InDoubt
Event = EnvelopeAccepted | Result | Closed
