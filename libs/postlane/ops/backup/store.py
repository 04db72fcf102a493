"""Where backups are kept: a directory, or a bucket of S3 (`s3.py`).

    manifests/0000007.json                         one finished backup; written last, and only if it is not there yet
    data/0000007-<token>/<topic>/<partition>-<n>   its chunks

A backup without its manifest does not exist: what a killed one left is cleared away by the next.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from postlane.config import ConfigurationError
from postlane.ops.backup.errors import BackupError, Damaged, StoreUnavailable


class AlreadyThere(BackupError):
    """Another backup of that number was finished first."""


class Store(Protocol):
    """Names are relative and use slashes. Every method may raise StoreUnavailable."""

    place: str

    def names(self, prefix: str) -> Iterator[str]:
        """All names that begin so, sorted."""

    def get(self, name: str) -> bytes:
        """Raises Damaged where it is missing."""

    def put(self, name: str, content: bytes) -> None:
        """Durable when it returns; never half there."""

    def put_new(self, name: str, content: bytes) -> None:
        """Like `put`, and raises AlreadyThere instead of replacing."""

    def delete(self, names: list[str]) -> None: ...


class DirectoryStore:
    """A folder; each file is written beside its name, synced and moved there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.place = str(folder)

    def names(self, prefix: str) -> Iterator[str]:
        base = self._folder / prefix
        found = [p for p in base.rglob("*") if p.is_file() and not p.name.startswith(".tmp-")] if base.is_dir() else []
        yield from sorted(p.relative_to(self._folder).as_posix() for p in found)

    def get(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            raise Damaged(f"{self.place}/{name} is missing") from None
        except OSError as error:
            raise StoreUnavailable(f"{self.place}/{name}: {error.strerror}") from None

    def put(self, name: str, content: bytes) -> None:
        self._write(name, content, replace=True)

    def put_new(self, name: str, content: bytes) -> None:
        self._write(name, content, replace=False)

    def _write(self, name: str, content: bytes, replace: bool) -> None:
        path = self._folder / name
        beside = path.with_name(f".tmp-{os.getpid()}-{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                beside.replace(path)
            else:
                os.link(beside, path)  # fails where the name is taken
                beside.unlink()
            self._sync(path.parent)
        except FileExistsError:
            beside.unlink(missing_ok=True)
            raise AlreadyThere(f"{self.place}/{name} is there already: another backup was quicker") from None
        except OSError as error:
            raise StoreUnavailable(f"{path}: {error.strerror}") from None

    def _sync(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def delete(self, names: list[str]) -> None:
        try:
            for name in names:
                path = self._folder / name
                path.unlink(missing_ok=True)
                for parent in list(path.relative_to(self._folder).parents)[:-1]:
                    try:
                        (self._folder / parent).rmdir()
                    except OSError:
                        break  # not empty
        except OSError as error:
            raise StoreUnavailable(f"{self.place}: {error.strerror}") from None


def open_store(place: str) -> Store:
    """`DIR` or `s3://bucket/prefix`. Raises ConfigurationError."""
    scheme = urlsplit(place).scheme
    if scheme == "s3":
        from postlane.ops.backup.s3 import S3Store

        return S3Store.of(place)
    if scheme and "://" in place:
        raise ConfigurationError(f"{place}: a directory or s3://bucket/prefix is expected")
    return DirectoryStore(Path(place))
