"""The records of a backup, read back: each chunk is checked on the way, and so is the order of what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from postlane.eventlog.ports import Received
from postlane.ops.backup.chunks import decompress, digest_of, records
from postlane.ops.backup.encrypt import Vault
from postlane.ops.backup.errors import Damaged
from postlane.ops.backup.manifest import ChunkInfo, Manifest, Range
from postlane.ops.backup.store import Store

Told = Callable[[int, int], None]  # (bytes checked, of how many)


@dataclass(slots=True)
class Checked:
    """What a check looked at."""

    chunks: int = 0
    records: int = 0
    stored_bytes: int = 0
    raw_bytes: int = 0
    by_topic: dict[str, int] = field(default_factory=dict)


class Archive:
    """One restorable state: the chain of backups from a full one (`chain[0]`) to the one that is wanted."""

    def __init__(self, store: Store, vault: Vault, chain: Sequence[Manifest]) -> None:
        self._store = store
        self._vault = vault
        self.chain = chain
        self.newest = chain[-1]

    @property
    def topics(self) -> dict[str, int]:
        """Topic (without prefix) -> number of partitions."""
        return {name: len(part.partitions) for name, part in self.newest.topics.items()}

    def ranges(self, topic: str, number: int) -> list[Range]:
        """What there is of one partition, oldest first."""
        found: list[Range] = []
        for manifest in self.chain:
            part = manifest.topics.get(topic)
            if part is None or number not in part.partitions:
                continue
            if part.whole:
                found.clear()
            found.append(part.partitions[number])
        return found

    def count(self, topic: str, number: int) -> int:
        return sum(part.records for part in self.ranges(topic, number))

    def records(self, topic: str, number: int, start: int = 0) -> Iterator[Received]:
        """The records at or above offset `start`, in the order of the log. Raises Damaged, StoreUnavailable."""
        last = -1
        for part in self.ranges(topic, number):
            for chunk in part.chunks:
                if chunk.last < start:
                    continue
                for record in self.chunk(chunk, part, topic, number):
                    if record.offset <= last:
                        raise Damaged(
                            f"{chunk.name}: offset {record.offset} comes after {last}: chunks are out of order"
                        )
                    last = record.offset
                    if record.offset >= start:
                        yield record

    def chunk(self, info: ChunkInfo, part: Range, topic: str, number: int) -> list[Received]:
        """The records of one chunk, checked against the manifest. Raises Damaged."""
        raw = self._raw(info)
        found = list(records(raw, topic, number, info.name))
        first, last = (found[0].offset, found[-1].offset) if found else (-1, -1)
        if (len(found), first, last) != (info.records, info.first, info.last):
            raise Damaged(
                f"{info.name}: {len(found)} records, offsets {first} to {last}; the manifest says {info.records}, "
                f"{info.first} to {info.last}"
            )
        if not part.start <= first <= last < part.end:
            raise Damaged(f"{info.name}: offsets {first} to {last} lie outside of {part.start} to {part.end}")
        return found

    def _raw(self, info: ChunkInfo) -> bytes:
        stored = self._stored(info)
        raw = decompress(self._vault.open(stored, info.name), info.name)
        if digest_of(raw) != info.raw_sha256:
            raise Damaged(f"{info.name}: its records have another SHA-256 than the manifest says")
        return raw

    def _stored(self, info: ChunkInfo) -> bytes:
        stored = self._store.get(info.name)
        if len(stored) != info.stored_bytes:
            raise Damaged(f"{info.name}: {len(stored)} bytes, {info.stored_bytes} were written: cut short or replaced")
        if digest_of(stored) != info.stored_sha256:
            raise Damaged(f"{info.name}: its SHA-256 is not the one in the manifest: corrupt or another chunk's")
        return stored

    def check_stored(self, told: Told = lambda *_: None) -> Checked:
        """Every chunk that a restore needs is there with the right bytes. Raises Damaged."""
        return self._check(told, deep=False)

    def check(self, told: Told = lambda *_: None) -> Checked:
        """Every chunk that a restore needs, down to its records and their order. Raises Damaged."""
        return self._check(told, deep=True)

    def _check(self, told: Told, deep: bool) -> Checked:
        done = Checked()
        needed = [(t, n, part) for t, count in self.topics.items() for n in range(count) for part in self.ranges(t, n)]
        total = sum(chunk.stored_bytes for _, _, part in needed for chunk in part.chunks)
        lasts: dict[tuple[str, int], int] = {}
        for topic, number, part in needed:
            for info in part.chunks:
                if info.first <= lasts.get((topic, number), -1):
                    raise Damaged(f"{info.name}: begins at {info.first}, the one before ends later: out of order")
                lasts[topic, number] = info.last
                if deep:
                    found = self.chunk(info, part, topic, number)
                    _check_order(found, info)
                else:
                    self._stored(info)
                done.chunks += 1
                done.records += info.records
                done.stored_bytes += info.stored_bytes
                done.raw_bytes += info.raw_bytes
                done.by_topic[topic] = done.by_topic.get(topic, 0) + info.records
                told(done.stored_bytes, total)
        return done


def _check_order(found: list[Received], info: ChunkInfo) -> None:
    last = -1
    for record in found:
        if record.offset <= last:
            raise Damaged(f"{info.name}: offset {record.offset} comes after {last}: its records are out of order")
        last = record.offset
