"""How traces speak of a mail's recipient: by a hash of the address unless asked otherwise.

Hashed, not encrypted: without POSTLANE_TRACE_HASH_KEY whoever has a list of addresses can find one of them by its hash.
With a key (the same in every service) only who has the key can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from postlane.core.errors import ConfigurationError

VARIABLE = "POSTLANE_TRACE_ADDRESSES"
KEY_VARIABLE = "POSTLANE_TRACE_HASH_KEY"
WAYS = ("hashed", "plain", "none")
HASH_BYTES = 8
KEY_MAX_BYTES = 64


@dataclass(frozen=True, slots=True)
class Shown:
    """`way` is one of WAYS."""

    way: str = "hashed"
    key: bytes = b""

    def of(self, address: str) -> dict[str, str]:
        """The attributes that speak of this recipient."""
        about = {"postlane.recipient.domain": address.rpartition("@")[2].lower()}
        if self.way == "plain":
            about["postlane.recipient.address"] = address
        elif self.way == "hashed":
            about["postlane.recipient.hash"] = hashed(address, self.key)
        return about


@lru_cache(maxsize=4096)
def hashed(address: str, key: bytes = b"") -> str:
    """16 hex digits; the domain's case does not matter."""
    local, at, domain = address.rpartition("@")
    return blake2b(f"{local}{at}{domain.lower()}".encode(), digest_size=HASH_BYTES, key=key).hexdigest()


def shown_by(environ: Mapping[str, str]) -> Shown:
    """Raises ConfigurationError."""
    way = environ.get(VARIABLE, "").strip().lower() or WAYS[0]
    if way not in WAYS:
        raise ConfigurationError(f"{VARIABLE}: {way!r} is not known; give one of {', '.join(WAYS)}")
    key = environ.get(KEY_VARIABLE, "").encode()
    if len(key) > KEY_MAX_BYTES:
        raise ConfigurationError(f"{KEY_VARIABLE}: at most {KEY_MAX_BYTES} bytes")
    return Shown(way, key)
