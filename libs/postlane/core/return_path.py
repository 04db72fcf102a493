"""Signed return paths: an envelope sender that says which delivery it belongs to, and that we made it (VERP, a MAC).

`bounces+<token>@mail.example.org`. The token is lower-case base32 (RFC 4648 6) of 35 bytes, which are 56 characters
without padding: 16 of the message's UUID, 8 of the recipient's digest, 3 of the generation, 8 of a keyed MAC over those
27 and the domain. A delivery status notification comes back to the envelope sender (RFC 3461 5.2.1), so whoever
receives mail for it learns the delivery from the address alone, whatever the notification says.
"""

from __future__ import annotations

import hmac
import re
from base64 import b32decode, b32encode
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from uuid import UUID

from postlane.core.identity import split_delivery_id

LOCAL_MAX_CHARS = 7  # RFC 5321 4.5.3.1.1 allows 64: less "+" and the token
TOKEN_CHARS = 56
DOMAIN_MAX_CHARS = 189  # of an address of 254 (RFC 5321 4.5.3.1.3): less the local part of 64, and "@"
KEY_MIN_BYTES = 16
KEYS_MAX = 8
GENERATION_BYTES = 3
_MAC_BYTES = 8
_SAID_BYTES = 27  # what the MAC is over, besides the domain
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TOKEN = re.compile(r"[A-Za-z2-7]{56}")
_TEXT_MAX_CHARS = 320


def key_of(text: bytes) -> bytes:
    """The signing key that a line of the key file stands for: 32 bytes, whatever its length."""
    return blake2b(text, digest_size=32, person=b"postlane.bounces").digest()


def keys_of(text: bytes) -> tuple[bytes, ...]:
    """The keys of a key file, one a line: the first signs, all verify.

    Raises ValueError, without showing any of the text, unless there are 1 to KEYS_MAX lines of at least KEY_MIN_BYTES.
    """
    lines = [line for line in (part.strip() for part in text.splitlines()) if line]
    if not lines:
        raise ValueError("no key in it; write one a line")
    if len(lines) > KEYS_MAX:
        raise ValueError(f"{len(lines)} keys; at most {KEYS_MAX}")
    for number, line in enumerate(lines, 1):
        if len(line) < KEY_MIN_BYTES:
            raise ValueError(f"key {number} has {len(line)} bytes; at least {KEY_MIN_BYTES}")
    return tuple(key_of(line) for line in lines)


def return_path(delivery_id: str, address: str, key: bytes) -> str:
    """The envelope sender of a delivery; `address` is the installation's bounce address, `key` is from `key_of`.

    Raises ValueError for a delivery that a token cannot carry: a message id that is no canonical UUID.
    """
    message, digest, generation = split_delivery_id(delivery_id)
    if not _UUID.fullmatch(message) or str(generation) != delivery_id.rpartition(".")[2]:
        raise ValueError(f"not in canonical form: {delivery_id[:80]!r}")
    said = bytes.fromhex(message.replace("-", "") + digest) + generation.to_bytes(GENERATION_BYTES, "big")
    local, _, domain = address.rpartition("@")
    token = b32encode(said + _mac(said, domain, key)).decode("ascii").lower()
    return f"{local}+{token}@{domain}"


def delivery_of(text: str, address: str, keys: Iterable[bytes]) -> str | None:
    """The delivery whose return path `text` is (an address, or its local part), None when none of `keys` signed it.

    Upper and lower case make no difference, since servers on the way change them. Never raises.
    """
    if len(text) > _TEXT_MAX_CHARS or not text.isascii():
        return None
    own_local, _, own_domain = address.rpartition("@")
    local, at, domain = text.rpartition("@")
    if not at:
        local, domain = text, own_domain
    name, plus, token = local.partition("+")
    if not plus or name.lower() != own_local.lower() or domain.lower() != own_domain.lower():
        return None
    if not _TOKEN.fullmatch(token):
        return None
    return _verified(b32decode(token.upper()), own_domain, tuple(keys))


def _verified(token: bytes, domain: str, keys: Sequence[bytes]) -> str | None:
    said, mac = token[:_SAID_BYTES], token[_SAID_BYTES:]
    found = False
    for key in keys:  # all of them, whichever fits: the time tells nothing
        found |= hmac.compare_digest(_mac(said, domain, key), mac)
    if not found:
        return None
    generation = int.from_bytes(said[24:], "big")
    return f"{UUID(bytes=said[:16])}.{said[16:24].hex()}.{generation}"


def _mac(said: bytes, domain: str, key: bytes) -> bytes:
    return blake2b(said + domain.lower().encode(), digest_size=_MAC_BYTES, key=key, person=b"postlane.verp").digest()
