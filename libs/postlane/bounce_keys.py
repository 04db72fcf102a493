"""The key file of signed return paths, read at the edge and again when it changes.

A change that cannot be read changes nothing: the keys that were there go on, and the log says what is wrong, never
what stands in the file.
"""

from __future__ import annotations

import logging
from pathlib import Path

from postlane.clock import Clock
from postlane.core.errors import ConfigurationError
from postlane.core.policy import Bounces
from postlane.core.return_path import delivery_of, keys_of, return_path

KEY_FILE_MAX_BYTES = 65_536
LOOK_EVERY_S = 1.0  # at the file
_log = logging.getLogger("postlane.bounces")


class ReturnPaths:
    """Makes and verifies the return paths of an installation, with the keys that its file holds now."""

    def __init__(self, bounces: Bounces, clock: Clock) -> None:
        """Raises ConfigurationError when the file cannot be read, or holds no keys."""
        self._address = bounces.address
        self._path = Path(bounces.key_file)
        self._clock = clock
        self._seen: tuple[int, int, int] | None = self._stamp()
        self._keys = self._read()
        self._look_at = clock.monotonic() + LOOK_EVERY_S

    def __repr__(self) -> str:
        return f"ReturnPaths({self._address!r}, {len(self._keys)} keys)"

    def of(self, delivery_id: str) -> str | None:
        """The return path of a delivery; None where no token can carry it."""
        self._refresh()
        try:
            return return_path(delivery_id, self._address, self._keys[0])
        except ValueError:
            return None

    def delivery_of(self, address: str) -> str | None:
        """The delivery whose return path this is; None when it is none of ours."""
        self._refresh()
        return delivery_of(address, self._address, self._keys)

    def _refresh(self) -> None:
        now = self._clock.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY_S
        before, self._seen = self._seen, None
        try:
            self._seen = self._stamp()
            if self._seen == before:
                return
            self._keys = self._read()
            _log.info("the bounce keys were read again", extra={"keys": len(self._keys)})
        except ConfigurationError as error:
            if self._seen is not None or before is not None:  # told once for each change
                _log.error("the bounce keys stay as they were", extra={"reason": str(error)})

    def _stamp(self) -> tuple[int, int, int]:
        try:
            about = self._path.stat()
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        return about.st_mtime_ns, about.st_size, about.st_ino

    def _read(self) -> tuple[bytes, ...]:
        try:
            with self._path.open("rb") as file:
                text = file.read(KEY_FILE_MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        if len(text) > KEY_FILE_MAX_BYTES:
            raise ConfigurationError(f"bounces.key_file: {self._path} is longer than {KEY_FILE_MAX_BYTES} bytes")
        try:
            return keys_of(text)
        except ValueError as error:
            raise ConfigurationError(f"bounces.key_file: {self._path}: {error}") from None

    def _unreadable(self, error: Exception) -> ConfigurationError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        return ConfigurationError(f"bounces.key_file: {self._path} cannot be read: {reason}")
