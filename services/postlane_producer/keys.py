"""The key file while the service runs, and what of each key's rate is left."""

from __future__ import annotations

from pathlib import Path

from postlane.config import parse_yaml
from postlane.core.api_keys import KEY_CHARS, ApiKey, digest, read_api_keys
from postlane.core.limits import Buckets
from postlane.watched_file import WatchedFile

_SCHEME = "bearer "


class KeyRing:
    """The keys of one file."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError when the file cannot be read or is wrong."""
        self._keys = WatchedFile(path, "POSTLANE_GATEWAY_KEYS_FILE", _parse)
        self._buckets = Buckets()

    def of(self, authorization: str) -> ApiKey | None:
        """The key of an `Authorization: Bearer …` header (RFC 6750 2.1); None when it is none of ours."""
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            return None
        return self.named(authorization[len(_SCHEME) :].strip())

    def named(self, given: str) -> ApiKey | None:
        """The entry of a key as its caller gives it; None when it is none of ours."""
        return self._keys.value.get(digest(given)) if len(given) == KEY_CHARS else None

    def wait_s(self, key: ApiKey, count: int, now: float) -> float:
        """0 when `count` mails of this key may go now, and they are spent; else seconds until they might."""
        if key.rate_per_s is None:
            return 0.0
        bucket = self._buckets.get(key.name, key.rate_per_s, now)
        if not bucket.take(now, waited=True):
            return max(bucket.ready_at - now, 0.001)
        bucket.ready_at += (count - 1) / key.rate_per_s  # the others of a batch are owed: later ones wait for them
        return 0.0

    def refresh(self) -> None:
        """Read the file again if it has changed."""
        self._keys.refresh()


def _parse(data: bytes) -> dict[str, ApiKey]:
    return read_api_keys(parse_yaml(data)).by_digest()
