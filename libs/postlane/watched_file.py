"""A small file that people change while a process runs: read again when it has changed.

A change that cannot be read changes nothing: what was there goes on, and the log says what is wrong, once for each
change, and never what stands in the file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from postlane.core.errors import ConfigurationError

FILE_MAX_BYTES = 1_000_000
T = TypeVar("T")

log = logging.getLogger("postlane.files")


class WatchedFile(Generic[T]):
    """The file at `path`, as `parse` makes it of its bytes (ValueError or ConfigurationError where it cannot)."""

    def __init__(self, path: Path, name: str, parse: Callable[[bytes], T]) -> None:
        """`name` is what the configuration calls it. Raises ConfigurationError when it cannot be read or parsed."""
        self._path = path
        self._name = name
        self._parse = parse
        self._seen: tuple[int, ...] | None = self._stamp()
        self.value = self._read()

    def refresh(self) -> None:
        """Look whether it has changed; cheap where it has not."""
        before, self._seen = self._seen, None
        try:
            self._seen = self._stamp()
            if self._seen == before:
                return
            self.value = self._read()
            log.info("a file was read again", extra={"file": self._name})
        except ConfigurationError as error:
            if self._seen is not None or before is not None:
                log.error("a file stays as it was", extra={"file": self._name, "reason": str(error)})

    def _stamp(self) -> tuple[int, ...]:
        try:
            about = self._path.stat()
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        return about.st_mtime_ns, about.st_ctime_ns, about.st_size, about.st_ino  # ctime: its mode was changed

    def _read(self) -> T:
        try:
            with self._path.open("rb") as file:
                text = file.read(FILE_MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        if len(text) > FILE_MAX_BYTES:
            raise ConfigurationError(f"{self._name}: {self._path} is longer than {FILE_MAX_BYTES} bytes")
        try:
            return self._parse(text)
        except (ValueError, ConfigurationError) as error:
            raise ConfigurationError(f"{self._name}: {self._path}: {error}") from None

    def _unreadable(self, error: Exception) -> ConfigurationError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        return ConfigurationError(f"{self._name}: {self._path} cannot be read: {reason}")
