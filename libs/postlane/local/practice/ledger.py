"""The witness's book: one line of JSON per mail, with the kernel before the client hears 250.

Written with one `write` per record to a file opened for appending, so it survives kill -9 of the server (the page
cache keeps it); it is not fsynced, so it need not survive a power cut. A last line that was cut short is removed when
the file is opened again: its 250 was never sent.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

ACCEPTED = frozenset({"accepted", "accepted_dropped"})
READ_MAX_RECORDS = 10_000
_MARK_EVERY = 1024
_CHUNK_BYTES = 1 << 20
_REPEATED_IDS_MAX = 100


class LedgerInUse(RuntimeError):
    """Another server keeps its book in the file."""


class Ledger:
    """Append-only NDJSON; records are numbered from 0 by their line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise LedgerInUse(f"The ledger {path} is kept by another practice server.") from None
        self.records = 0
        self._size = 0
        self._marks = [0]  # byte offset of record 0, 1024, 2048, …
        self._lock = threading.Lock()
        self._summary = _Summary()
        self._recover()

    def append(self, record: dict[str, Any]) -> int:
        """Write one record and return its number. OSError when the disk does not take it whole; it is then not in."""
        line = orjson.dumps({"seq": self.records, **record}) + b"\n"
        written = 0
        try:
            written = os.write(self._fd, line)
        finally:
            if written != len(line):
                os.ftruncate(self._fd, self._size)
        if written != len(line):
            raise OSError("the ledger took only part of a record")
        self._size += written
        self.records += 1
        if self.records % _MARK_EVERY == 0:
            self._marks.append(self._size)
        return self.records - 1

    def read(self, since: int = 0, limit: int = READ_MAX_RECORDS) -> bytes:
        """The lines of the records `since`, `since` + 1, …; at most `limit`. May be called from any thread."""
        first = min(max(since, 0), self.records)
        last = min(first + max(limit, 0), self.records)
        if first >= last:
            return b""
        mark = first // _MARK_EVERY
        upto = last // _MARK_EVERY + 1
        end = self._marks[upto] if upto < len(self._marks) else self._size
        lines = self._pread(self._marks[mark], end).splitlines(keepends=True)
        skip = mark * _MARK_EVERY
        return b"".join(lines[first - skip : last - skip])

    def summary(self) -> dict[str, Any]:
        """Counts over the whole book; reads only what is new since the last call. May be called from any thread."""
        with self._lock:
            while self._summary.records < self.records:
                for line in self.read(self._summary.records).splitlines():
                    self._summary.fold(orjson.loads(line))
            return self._summary.as_json()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    def _recover(self) -> None:
        size = os.fstat(self._fd).st_size
        at = 0
        whole = 0
        while at < size:
            chunk = os.pread(self._fd, _CHUNK_BYTES, at)
            if not chunk:
                break
            newline = chunk.find(b"\n")
            while newline >= 0:
                whole = at + newline + 1
                self.records += 1
                if self.records % _MARK_EVERY == 0:
                    self._marks.append(whole)
                newline = chunk.find(b"\n", newline + 1)
            at += len(chunk)
        if whole != size:
            os.ftruncate(self._fd, whole)
        self._size = whole

    def _pread(self, start: int, end: int) -> bytes:
        parts = []
        while start < end:
            part = os.pread(self._fd, min(end - start, _CHUNK_BYTES), start)
            if not part:
                break
            parts.append(part)
            start += len(part)
        return b"".join(parts)


@dataclass(slots=True)
class _Summary:
    records: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    by_server: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    repeated: set[str] = field(default_factory=set)
    nameless: int = 0

    def fold(self, record: dict[str, Any]) -> None:
        self.records += 1
        self.outcomes[record["outcome"]] += 1
        if record["outcome"] not in ACCEPTED:
            return
        self.by_server[record["server"]] += 1
        delivery = record.get("delivery")
        if delivery is None:
            self.nameless += 1
            return
        self.copies[delivery] += 1
        if self.copies[delivery] > 1:
            self.repeated.add(delivery)

    def as_json(self) -> dict[str, Any]:
        return {
            "records": self.records,
            "outcomes": dict(self.outcomes),
            "accepted": sum(self.by_server.values()),
            "accepted_by_server": dict(self.by_server),
            "deliveries": len(self.copies),
            "deliveries_repeated": len(self.repeated),
            "repeated": sorted(self.repeated)[:_REPEATED_IDS_MAX],
            "copies_extra": sum(self.copies[delivery] - 1 for delivery in self.repeated),
            "copies_max": max((self.copies[d] for d in self.repeated), default=1 if self.copies else 0),
            "without_delivery": self.nameless,
        }
