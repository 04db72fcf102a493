"""Who a mail is: message, delivery, hop, and the names that a receiver sees.

Everything here is derived, so that any process that meets the same facts computes the same names.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from uuid import UUID, uuid5

MESSAGE_NAMESPACE = UUID("6f0d3f0e-2f0b-5d0a-9a53-0c8a1b6d7e11")
NAME_MAX_CHARS = 128  # of lane, tenant, campaign and template id
NAME_FORM = r"[A-Za-z0-9][A-Za-z0-9._:@+-]*"
LANE_FORM = r"[a-z0-9][a-z0-9_-]*"  # becomes part of a topic's name
_DELIVERY = re.compile(r"(?P<message>[0-9a-f-]{36})\.(?P<recipient>[0-9a-f]{16})\.(?P<generation>\d{1,6})")
_STATE_KEY = re.compile(rb".*#\d+", re.DOTALL)


def message_id_from_key(tenant: str, key: str) -> str:
    """The message id of an idempotency key: UUIDv5 of tenant and key, the same in every process (RFC 9562 5.5)."""
    return str(uuid5(MESSAGE_NAMESPACE, f"{tenant}\x00{key}"))


def message_id_from_time(unix_ms: int, random_bytes: bytes) -> str:
    """A UUIDv7 (RFC 9562 5.7) of `unix_ms` (milliseconds) and ten random bytes, for mails without a key."""
    if len(random_bytes) < 10:
        raise ValueError("a UUIDv7 needs ten random bytes")
    value = (unix_ms & (1 << 48) - 1) << 80 | int.from_bytes(random_bytes[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(UUID(int=value))


def delivery_id(message_id: str, recipient: str, generation: int = 0) -> str:
    """One recipient of one message in one generation: `<message id>.<16 hex of the recipient>.<generation>`.

    The form is a dot-atom, so that it can stand before the @ of an RFC 5322 Message-ID.
    """
    digest = blake2b(recipient.encode(), digest_size=8).hexdigest()
    return f"{message_id}.{digest}.{generation}"


def split_delivery_id(value: str) -> tuple[str, str, int]:
    """(message id, recipient digest, generation) of a delivery id; ValueError when it is not one."""
    found = _DELIVERY.fullmatch(value)
    if found is None:
        raise ValueError(f"not a delivery id: {value[:80]!r}")
    return found["message"], found["recipient"], int(found["generation"])


def state_key(delivery: str, hop: int) -> str:
    """The key of the book entry that matches one dispatch record: `delivery_id#hop`."""
    return f"{delivery}#{hop}"


def is_state_key(key: bytes | None) -> bool:
    """Whether a key has the form that `state_key` makes (with `@<offset>` for a delivery that could not be read)."""
    return key is not None and _STATE_KEY.fullmatch(key) is not None


def rfc_message_id(delivery: str, sender_domain: str) -> str:
    """The RFC 5322 Message-ID of a delivery; a resend carries the same one, so that receivers can fold it."""
    return f"<{delivery}@{sender_domain}>"


def content_digest(canonical: bytes) -> str:
    """32 hex digits that tell whether two requests under one key ask for the same mail."""
    return blake2b(canonical, digest_size=16).hexdigest()
