"""An SMTP envelope, what may keep a server from taking it, and the commands it is written as."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from postlane.core.smtp_wire import Extensions, check_address


class Envelope(NamedTuple):
    """One mail's envelope, one recipient. `mail_from` "" is the null sender of a bounce.

    `size_bytes` None: unknown, no SIZE is said. `eight_bit` None: unknown, 8BITMIME is declared where it is offered.
    """

    mail_from: str
    rcpt_to: str
    size_bytes: int | None = None
    eight_bit: bool | None = None


class Obstacle(StrEnum):
    """Why a mail cannot go over this connection; ADDRESS and BODY hold for every provider."""

    SMTPUTF8 = "SMTPUTF8 not offered"
    EIGHT_BIT = "8BITMIME not offered"
    SIZE = "larger than the server takes"
    ADDRESS = "address cannot stand in a command"
    BODY = "body cannot be sent"


def check_envelope(envelope: Envelope) -> None:
    """Raises ValueError where an address cannot stand in a command, or no recipient is named."""
    check_address(envelope.mail_from)
    check_address(envelope.rcpt_to)
    if not envelope.rcpt_to:
        raise ValueError("recipient is empty")


def obstacle_to(envelope: Envelope, offered: Extensions) -> Obstacle | None:
    """What this mail needs and the server does not offer (RFC 6531 3.4, RFC 6152, RFC 1870 6.1)."""
    if not offered.smtputf8 and not (envelope.mail_from.isascii() and envelope.rcpt_to.isascii()):
        return Obstacle.SMTPUTF8
    if envelope.eight_bit and not offered.eight_bit_mime:
        return Obstacle.EIGHT_BIT
    if envelope.size_bytes is not None and 0 < offered.size_max_bytes < envelope.size_bytes:
        return Obstacle.SIZE
    return None


class OfferedMail:
    """A mail on its way: its commands as bytes, and what has become of it so far."""

    __slots__ = ("declared_eight_bit", "live", "mail_line", "rcpt_line", "rcpt_ok", "ref")

    def __init__(self, ref: object, envelope: Envelope, offered: Extensions) -> None:
        mail_from, rcpt_to, size_bytes, eight_bit = envelope
        self.ref = ref
        self.live = True  # no result was given for it
        self.rcpt_ok = False
        self.declared_eight_bit = offered.eight_bit_mime and eight_bit is not False
        line = f"MAIL FROM:<{mail_from}>"
        if offered.size and size_bytes is not None:
            line += f" SIZE={size_bytes}"
        if self.declared_eight_bit:
            line += " BODY=8BITMIME"
        if not (mail_from.isascii() and rcpt_to.isascii()):
            line += " SMTPUTF8"
        self.mail_line = f"{line}\r\n".encode()
        self.rcpt_line = f"RCPT TO:<{rcpt_to}>\r\n".encode()
