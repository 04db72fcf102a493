"""Take a backup: cut, copy, write the manifest last.

1. The catalogue is read: a place that holds another installation's backups, or damaged ones, takes no new one.
2. The cut is taken (`plan.py`): the point.
3. What lies between the last backup and the cut is read, read_committed, and put down in chunks, one in memory at once.
4. The manifest is put down, if none of its number is there: only now does the backup exist.
5. What is no longer needed by the retention goes, and what killed backups left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from postlane.core.policy import Config
from postlane.eventlog.ports import Log, Partition
from postlane.eventlog.records import HEADERS_UNREADABLE
from postlane.eventlog.topics import TopicNames
from postlane.ops.backup.catalogue import Catalogue, clear_unfinished, forget, read_catalogue
from postlane.ops.backup.chunks import Chunk, compress, digest_of
from postlane.ops.backup.encrypt import Vault
from postlane.ops.backup.errors import Foreign, Refused
from postlane.ops.backup.lost import cut_from_books
from postlane.ops.backup.manifest import ChunkInfo, Manifest, Previous, Range, TopicPart, sealed
from postlane.ops.backup.plan import Copied, Span, Watch, plain, spans, take_cut
from postlane.ops.backup.store import Store
from postlane.ops.backup.target import Groups, check_at_rest

READ_DEADLINE_S = 3_600.0  # of one partition
Told = Callable[[str, int, int], None]  # (topic, records copied so far, about how many)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the operator asked for."""

    full: bool = False
    full_every: timedelta = timedelta(days=7)
    window: timedelta = timedelta(days=30)  # of requests, events and dead letters
    keep: timedelta | None = None
    positions_lost: bool = False  # consumer offsets were lost or reset: go by the books alone (`lost.py`)


@dataclass(slots=True)
class Taken:
    """What came of it."""

    manifest: Manifest
    stored_bytes: int
    forgotten: list[str] = field(default_factory=list)


class Cluster(Watch, Groups, Protocol):
    """What a backup asks of a cluster (KafkaAdmin)."""


class Taker:
    """One backup of one installation into one place. `token` is unlike that of any other run."""

    def __init__(
        self,
        log: Log,
        admin: Cluster,
        names: TopicNames,
        config: Config,
        cluster_id: str,
        version: str,
        store: Store,
        vault: Vault,
        token: str,
        clock: Callable[[], datetime],
        told: Told = lambda *_: None,
    ) -> None:
        self._log = log
        self._admin = admin
        self._names = names
        self._config = config
        self._cluster_id = cluster_id
        self._version = version
        self._store = store
        self._vault = vault
        self._token = token
        self._clock = clock
        self._told = told
        self._done = 0
        self._stored_bytes = 0
        self._unreadable_headers = 0

    async def take(self, wishes: Wishes, ledger: Mapping[int, int] | None = None) -> Taken:
        """Raises BackupError, and what reading a log raises."""
        catalogue = read_catalogue(self._store, self._vault)
        newest = catalogue.newest
        self._check_ours(newest)
        counts = await self._counts()
        if wishes.positions_lost:
            await check_at_rest(self._admin, self._names, self._config)
            cut = await cut_from_books(self._log, self._admin, self._names, self._config, counts)
        else:
            cut = await take_cut(self._admin, self._names, self._config, counts)
        point = self._clock()
        before = None if newest is None or self._must_be_full(catalogue, wishes, point) else newest
        since = point - wishes.window
        wanted = await spans(self._admin, self._names, self._config, cut, before, since, point)
        sequence = 1 if newest is None else newest.sequence + 1
        manifest = Manifest(
            sequence=sequence,
            token=self._token,
            full=before is None,
            point=point,
            version=self._version,
            cluster_id=self._cluster_id,
            prefix=self._names.prefix,
            lanes=tuple(self._config.lanes),
            in_doubt={name: lane.in_doubt for name, lane in self._config.lanes.items()},
            previous=None if newest is None else Previous(sequence=newest.sequence, seal=newest.seal),
            key_id=self._vault.key_id,
            positions=cut.positions.model_copy(update={"ledger": dict(ledger or {})}),
            topics={},
        )
        topics = await self._copy(manifest, wanted)
        done, content = sealed(
            manifest.model_copy(update={"topics": topics, "warnings": self._warnings()}), self._vault
        )
        self._store.put_new(done.name, content)
        return Taken(done, self._stored_bytes, self._tidy(wishes, point))

    def _check_ours(self, newest: Manifest | None) -> None:
        if newest is None:
            return
        for what, ours in (("cluster_id", self._cluster_id), ("prefix", self._names.prefix)):
            theirs = getattr(newest, what)
            if theirs != ours:
                raise Foreign(
                    f"{self._store.place} holds backups of another installation ({what} {theirs!r}, ours is {ours!r}); "
                    "give each a place of its own"
                )

    async def _counts(self) -> dict[str, int]:
        topics = Copied.of(self._names, tuple(self._config.lanes)).all()
        return {topic: await self._admin.partition_count(topic) for topic in topics}

    def _must_be_full(self, catalogue: Catalogue, wishes: Wishes, point: datetime) -> bool:
        newest = catalogue.newest
        if wishes.full or wishes.positions_lost or newest is None or set(newest.lanes) != set(self._config.lanes):
            return True
        chain = catalogue.chain(newest)  # a chain that is broken is not built upon
        return point - chain[0].point >= wishes.full_every

    async def _copy(self, manifest: Manifest, wanted: list[Span]) -> dict[str, TopicPart]:
        total = sum(end - start for span in wanted for start, end in span.ranges.values())
        topics = {}
        for span in wanted:
            parts = {}
            for number, (start, end) in span.ranges.items():
                chunks = await self._partition(manifest, Partition(span.topic, number), start, end)
                parts[number] = Range(start=start, end=end, chunks=chunks)
                self._told(span.topic, self._done, total)
            topics[plain(self._names, span.topic)] = TopicPart(whole=span.whole, partitions=parts)
        return topics

    async def _partition(self, manifest: Manifest, partition: Partition, start: int, end: int) -> tuple[ChunkInfo, ...]:
        found: list[ChunkInfo] = []
        chunk = Chunk()
        async for batch in self._log.read(partition, start, end, deadline_s=READ_DEADLINE_S):
            for record in batch:
                if record.headers and record.headers[0][0] == HEADERS_UNREADABLE:
                    self._unreadable_headers += 1
                chunk.add(record)
                if chunk.is_full:
                    found.append(self._put(manifest, partition, len(found), chunk))
                    chunk = Chunk()
        if chunk.records:
            found.append(self._put(manifest, partition, len(found), chunk))
        return tuple(found)

    def _put(self, manifest: Manifest, partition: Partition, index: int, chunk: Chunk) -> ChunkInfo:
        name = f"{manifest.folder}{plain(self._names, partition.topic)}/{partition.number}-{index:05d}"
        raw = chunk.raw()
        stored = self._vault.close(compress(raw), name)
        self._store.put(name, stored)
        self._done += chunk.records
        self._stored_bytes += len(stored)
        return ChunkInfo(
            name=name,
            first=chunk.first,
            last=chunk.last,
            records=chunk.records,
            raw_bytes=len(raw),
            stored_bytes=len(stored),
            stored_sha256=digest_of(stored),
            raw_sha256=digest_of(raw),
        )

    def _warnings(self) -> tuple[str, ...]:
        if not self._unreadable_headers:
            return ()
        return (f"{self._unreadable_headers} records have headers that the client library cannot read; without them",)

    def _tidy(self, wishes: Wishes, point: datetime) -> list[str]:
        catalogue = read_catalogue(self._store, self._vault)
        gone: list[str] = []
        if wishes.keep is not None:
            forget(self._store, catalogue.spare(point - wishes.keep), gone)
        newest = catalogue.newest
        clear_unfinished(self._store, catalogue.unfinished, 0 if newest is None else newest.sequence)
        return gone


def check_wishes(wishes: Wishes) -> None:
    """Raises Refused where what is asked for would keep less than it seems."""
    if wishes.keep is not None and wishes.keep < wishes.full_every:
        raise Refused(
            f"--keep-days {wishes.keep.days} is less than --full-every-days {wishes.full_every.days}: what lies before "
            "the newest full backup could not go for longer than asked; make full backups at least as often"
        )
