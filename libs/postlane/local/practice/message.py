"""What the witness notes of a message's bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seen:
    """A message as received: dots unstuffed, the last CRLF included."""

    message_id: str | None
    delivery: str | None
    sha256: str
    size: int


def unstuff(body: bytes) -> bytes:
    """Take away the dot that begins a line (RFC 5321 section 4.5.2)."""
    if body[:1] != b"." and b"\n." not in body:
        return body
    return (b"\r\n" + body).replace(b"\r\n.", b"\r\n")[2:]


def look(body: bytes) -> Seen:
    """Note Message-ID, X-Postlane-Delivery, digest (SHA-256, hex) and size in bytes."""
    end = body.find(b"\r\n\r\n")
    head = b"\n" + (body if end < 0 else body[:end])
    low = head.lower()
    return Seen(
        _field(head, low, b"\nmessage-id:"),
        _field(head, low, b"\nx-postlane-delivery:"),
        hashlib.sha256(body).hexdigest(),
        len(body),
    )


def _field(head: bytes, low: bytes, name: bytes) -> str | None:
    start = low.find(name)
    if start < 0:
        return None
    start += len(name)
    end = head.find(b"\n", start)
    while 0 <= end < len(head) - 1 and head[end + 1] in b" \t":  # folded (RFC 5322 section 2.2.3)
        end = head.find(b"\n", end + 1)
    value = head[start:] if end < 0 else head[start:end]
    return value.replace(b"\r\n", b"").strip().decode("utf-8", "backslashreplace")
