"""The key file of signed return paths, read at the edge and again when it changes."""

from __future__ import annotations

from pathlib import Path

from postlane.clock import Clock
from postlane.core.policy import Bounces
from postlane.core.return_path import delivery_of, keys_of, return_path
from postlane.watched_file import WatchedFile

LOOK_EVERY_S = 1.0  # at the file


class ReturnPaths:
    """Makes and verifies the return paths of an installation, with the keys that its file holds now."""

    def __init__(self, bounces: Bounces, clock: Clock) -> None:
        """Raises ConfigurationError when the file cannot be read, or holds no keys."""
        self._address = bounces.address
        self._keys = WatchedFile(Path(bounces.key_file), "bounces.key_file", keys_of)
        self._clock = clock
        self._look_at = clock.monotonic() + LOOK_EVERY_S

    def __repr__(self) -> str:
        return f"ReturnPaths({self._address!r}, {len(self._keys.value)} keys)"

    def of(self, delivery_id: str) -> str | None:
        """The return path of a delivery; None where no token can carry it."""
        self._refresh()
        try:
            return return_path(delivery_id, self._address, self._keys.value[0])
        except ValueError:
            return None

    def delivery_of(self, address: str) -> str | None:
        """The delivery whose return path this is; None when it is none of ours."""
        self._refresh()
        return delivery_of(address, self._address, self._keys.value)

    def _refresh(self) -> None:
        now = self._clock.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self._keys.refresh()
