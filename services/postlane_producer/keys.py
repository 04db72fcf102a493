"""The key file while the service runs: read again when it changes, and what of each key's rate is left.

A change that cannot be read changes nothing: the keys that were there go on, and the log says what is wrong.
"""

from __future__ import annotations

import logging
from pathlib import Path

from postlane.config import ConfigurationError, load_yaml
from postlane.core.api_keys import KEY_CHARS, ApiKey, digest, read_api_keys
from postlane.core.limits import Bucket

KEYS_FILE_MAX_BYTES = 1_000_000
_SCHEME = "bearer "

log = logging.getLogger("postlane.producer")


class KeyRing:
    """The keys of one file."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError when the file cannot be read or is wrong."""
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, ApiKey] = {}
        self._buckets: dict[str, Bucket] = {}
        self._load()

    def __len__(self) -> int:
        return len(self._keys)

    def of(self, authorization: str) -> ApiKey | None:
        """The key of an `Authorization: Bearer …` header (RFC 6750 2.1); None when it is none of ours."""
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            return None
        given = authorization[len(_SCHEME) :].strip()
        return self._keys.get(digest(given)) if len(given) == KEY_CHARS else None

    def wait_s(self, key: ApiKey, count: int, now: float) -> float:
        """0 when `count` mails of this key may go now, and they are spent; else seconds until they might."""
        if key.rate_per_s is None:
            return 0.0
        bucket = self._buckets.get(key.name)
        if bucket is None:
            bucket = self._buckets[key.name] = Bucket(key.rate_per_s)
        bucket.rate_per_s = key.rate_per_s
        if not bucket.take(now, waited=True):
            return max(bucket.ready_at - now, 0.001)
        bucket.ready_at += (count - 1) / key.rate_per_s  # the others of a batch are owed: later ones wait for them
        return 0.0

    def refresh(self) -> None:
        """Read the file again if it has changed."""
        try:
            if self._stamp() != self._seen:
                self._load()
                log.info("the API keys were read again", extra={"keys": len(self._keys)})
        except ConfigurationError as error:
            self._seen = self._stamp_or_none()  # told once for each change
            log.error("the API keys stay as they were", extra={"reason": str(error)})

    def _load(self) -> None:
        stamp = self._stamp()
        if stamp[1] > KEYS_FILE_MAX_BYTES:
            raise ConfigurationError(f"{self._path}: larger than {KEYS_FILE_MAX_BYTES} bytes")
        try:
            found = read_api_keys(load_yaml(self._path))
        except ConfigurationError as error:
            text = str(error)
            raise ConfigurationError(text if text.startswith(str(self._path)) else f"{self._path}: {text}") from None
        self._seen, self._keys = stamp, found.by_digest()
        known = {key.name for key in found.keys}
        self._buckets = {name: bucket for name, bucket in self._buckets.items() if name in known}

    def _stamp(self) -> tuple[int, int, int]:
        try:
            about = self._path.stat()
        except OSError as error:
            raise ConfigurationError(f"{self._path}: cannot be read: {error.strerror}") from None
        return about.st_mtime_ns, about.st_size, about.st_ino

    def _stamp_or_none(self) -> tuple[int, int, int] | None:
        try:
            return self._stamp()
        except ConfigurationError:
            return None
