"""What an import keeps beside its file: how far it is on record, and the rows that could not become mails."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from postlane.ops.rows import Position, Row

HEAD_BYTES = 65_536
RAW_KEPT_BYTES = 4_096  # of a rejected row; the whole stays in the file, at `offset`
VERSION = 1


@dataclass(slots=True)
class Rejected:
    """`FILE.rejected.ndjson`: one document a row that was refused: line, offset, reason, and its text."""

    path: Path
    count: int = 0
    size: int = 0
    _file: BinaryIO | None = field(default=None, repr=False)

    def begin(self, size: int, count: int) -> None:
        """Go on after the first `size` bytes, which hold `count` rows; what a crashed run wrote later is dropped."""
        self.count, self.size = count, size
        if size == 0:
            self.path.unlink(missing_ok=True)
        elif self.path.exists():
            os.truncate(self.path, min(size, self.path.stat().st_size))

    def keep(self, row: Row, reason: str) -> None:
        """Write down a row. Raises OSError: a reject that cannot be kept must not be passed over."""
        raw = row.raw[:RAW_KEPT_BYTES]
        entry: dict[str, Any] = {
            "line": row.line,
            "offset": row.offset,
            "bytes": row.end - row.offset,
            "reason": reason[:1000].encode("utf-8", "replace").decode(),
            "row": raw.decode("utf-8", "backslashreplace").rstrip("\r\n"),
        }
        if len(raw) < row.end - row.offset:
            entry["cut"] = True
        text = orjson.dumps(entry) + b"\n"
        if self._file is None:
            self._file = self.path.open("ab")
        self._file.write(text)
        self.size += len(text)
        self.count += 1

    def sync(self) -> None:
        """Write through to the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where an earlier run stopped."""

    at: Position
    published: int
    rejected: int
    rejected_bytes: int


@dataclass(slots=True)
class Progress:
    """`FILE.progress.json`: the byte offset before which every row is on record or rejected.

    It counts only for the same options and for a file that begins with the same bytes: otherwise the import starts
    at the beginning, which is safe because of the keys.
    """

    path: Path
    file: Path
    options: str

    def resume(self) -> Resumed | None:
        """Where to go on; None: at the beginning."""
        try:
            saved = orjson.loads(self.path.read_bytes())
            found = Resumed(
                Position(int(saved["offset"]), int(saved["line"])),
                int(saved["published"]),
                int(saved["rejected"]),
                int(saved["rejected_bytes"]),
            )
            known = (saved["version"], saved["options"], saved["head"], saved["head_bytes"])
        except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return None
        if found.at.offset > self.file.stat().st_size or found.at.offset < 0:
            return None
        return found if known == (VERSION, self.options, *self._head(found.at.offset)) else None

    def save(self, at: Position, published: int, rejected: Rejected) -> None:
        """Replace the file atomically; `rejected` holds the refused rows before `at`, and no others."""
        rejected.sync()
        head, head_bytes = self._head(at.offset)
        document = {
            "version": VERSION,
            "offset": at.offset,
            "line": at.line,
            "published": published,
            "rejected": rejected.count,
            "rejected_bytes": rejected.size,
            "options": self.options,
            "head": head,
            "head_bytes": head_bytes,
        }
        fresh = self.path.with_name(self.path.name + ".new")
        with fresh.open("wb") as file:
            file.write(orjson.dumps(document))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)

    def clear(self) -> None:
        """The import is complete."""
        self.path.unlink(missing_ok=True)

    def _head(self, offset: int) -> tuple[str, int]:
        """Digest of what the file begins with, as far as it has been read: rows may be added at its end."""
        length = min(HEAD_BYTES, offset)
        with self.file.open("rb") as file:
            return sha256(file.read(length)).hexdigest(), length
