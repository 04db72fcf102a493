"""Chunks: a bounded run of records of one partition, as bytes, compressed with zstd.

A chunk is `PLC1`, then frames. A frame is offset and timestamp (int64), the lengths of key and value (int32, -1: none)
and the number of headers (uint16), then key, value, and each header as lengths (uint16 of its name, int32 of its
value), name, value. All numbers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import zstandard

from postlane.eventlog.ports import Received
from postlane.ops.backup.errors import Damaged

MAGIC = b"PLC1"
RAW_MAX_BYTES = 8_388_608  # of one chunk before compression, plus one record
RECORDS_MAX = 50_000
PLAIN_MAX_BYTES = RAW_MAX_BYTES + 4_194_304  # nothing larger is unpacked, whatever a frame header says
LEVEL = 3
_FRAME = struct.Struct(">qqiiH")
_HEADER = struct.Struct(">Hi")


class Chunk:
    """A chunk in the making."""

    def __init__(self) -> None:
        self._parts: list[bytes] = [MAGIC]
        self.raw_bytes = len(MAGIC)
        self.records = 0
        self.first = -1
        self.last = -1

    @property
    def is_full(self) -> bool:
        return self.raw_bytes >= RAW_MAX_BYTES or self.records >= RECORDS_MAX

    def add(self, record: Received) -> None:
        """Records come in the order of their partition."""
        frame = framed(record)
        self._parts.append(frame)
        self.raw_bytes += len(frame)
        self.records += 1
        if self.first < 0:
            self.first = record.offset
        self.last = record.offset

    def raw(self) -> bytes:
        return b"".join(self._parts)


def framed(record: Received) -> bytes:
    """One record as a frame."""
    key, value, headers = record.key, record.value, record.headers
    parts = [
        _FRAME.pack(
            record.offset,
            record.timestamp_ms,
            -1 if key is None else len(key),
            -1 if value is None else len(value),
            len(headers),
        ),
        key or b"",
        value or b"",
    ]
    for name, content in headers:
        encoded = name.encode()
        parts += [_HEADER.pack(len(encoded), -1 if content is None else len(content)), encoded, content or b""]
    return b"".join(parts)


def compress(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=LEVEL, write_content_size=True, write_checksum=True).compress(raw)


def decompress(packed: bytes, name: str) -> bytes:
    """Raises Damaged."""
    try:
        size = zstandard.frame_content_size(packed)
        if not 0 <= size <= PLAIN_MAX_BYTES:
            raise Damaged(f"{name}: says that it unpacks to {size} bytes; at most {PLAIN_MAX_BYTES} are")
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=PLAIN_MAX_BYTES)
    except zstandard.ZstdError as error:
        raise Damaged(f"{name}: cannot be unpacked ({error})") from None


def records(raw: bytes, topic: str, partition: int, name: str) -> Iterator[Received]:
    """The records of a chunk, in order. Raises Damaged where the frames do not fit the bytes."""
    if raw[: len(MAGIC)] != MAGIC:
        raise Damaged(f"{name}: does not begin as a chunk does")
    at, end = len(MAGIC), len(raw)
    frame, head, names = _FRAME.unpack_from, _HEADER.unpack_from, _Names()
    try:
        while at < end:
            offset, timestamp_ms, key_size, value_size, count = frame(raw, at)
            at += _FRAME.size
            key = raw[at : at + key_size] if key_size >= 0 else None
            at += max(0, key_size)
            value = raw[at : at + value_size] if value_size >= 0 else None
            at += max(0, value_size)
            headers: list[tuple[str, Any]] = []
            for _ in range(count):
                name_size, size = head(raw, at)
                at += _HEADER.size + name_size
                title = names[raw[at - name_size : at]]
                headers.append((title, raw[at : at + size] if size >= 0 else None))
                at += max(0, size)
            if at > end:
                raise Damaged(f"{name}: its last record is cut short")
            yield Received(topic, partition, offset, timestamp_ms, key, value, headers or ())
    except (struct.error, UnicodeDecodeError):
        raise Damaged(f"{name}: its frames do not fit its bytes") from None


class _Names(dict[bytes, str]):
    """Names of headers, of which there are few: each is decoded once."""

    def __missing__(self, encoded: bytes) -> str:
        text = self[encoded] = encoded.decode()
        return text


def digest_of(raw: bytes) -> str:
    """SHA-256, hex."""
    return sha256(raw).hexdigest()
