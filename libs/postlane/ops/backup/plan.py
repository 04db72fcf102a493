"""The cut: one point that everything in a backup speaks of, taken while the services run.

Kafka has no snapshot over partitions, so the order in which ends are taken does it. What suppresses a mail (a book) is
taken before what follows from it (its products), so that no book is ever there without its product:

  1. a mark: the end of `mail.events`,
  2. the senders' positions (O and S), stable ones only,
  3. the ends of `mail.state`: not before the transactions of those positions are visible in it,
  4. a mark: the end of `mail.seen`; then the router's positions,
  5. the ends of the dispatch and delay topics,
  6. the end of `mail.events`,
  7. the ends of `mail.dead-letters` and `mail.seen`,
  8. the ends of `mail.requests` and of the tables.
An end is a last stable offset that has passed the high watermark seen when its turn came, so no transaction is cut in
two within a partition. The router's positions say what is before the point and what is after it. What is left over
(what the router did after them, a product whose book was taken too early) is known by the marks and put right when the
backup is restored (`pending.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from postlane.core.policy import Config
from postlane.eventlog.errors import EndNotReached, Retriable
from postlane.eventlog.ports import Committed, Partition
from postlane.eventlog.topics import TopicNames
from postlane.ops.backup.errors import Refused
from postlane.ops.backup.manifest import Manifest, Positions

STABLE_TIMEOUT_S = 60.0  # an open transaction of a dead process ends after 12 s
_ASK_AGAIN_S = 0.05
FLOOR_MARK = "S1:"  # of the senders' commit metadata
WHOLE_TABLES_AFTER_S = 43_200  # tombstones are kept for a day (delete.retention.ms): then a table is copied whole


class Watch(Protocol):
    """What a backup asks of a cluster (KafkaAdmin)."""

    async def high_watermarks(self, partitions: Collection[Partition]) -> dict[Partition, int]: ...

    async def low_watermarks(self, partitions: Collection[Partition]) -> dict[Partition, int]: ...

    async def last_stable_offsets(self, partitions: Collection[Partition]) -> dict[Partition, int]: ...

    async def offsets_at(self, partitions: Collection[Partition], unix_ms: int) -> dict[Partition, int]: ...

    async def group_offsets(
        self, group: str, partitions: Collection[Partition], *, stable: bool = False
    ) -> Mapping[Partition, Committed]: ...

    async def partition_count(self, topic: str) -> int: ...


@dataclass(slots=True)
class Cut:
    """Positions and ends at the point, by full topic name."""

    positions: Positions
    ends: dict[Partition, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Copied:
    """The topics of an installation that a backup holds, by what they are (full names)."""

    states: tuple[str, ...]
    flows: tuple[str, ...]  # dispatch and delay
    events: str
    dead_letters: str
    seen: str
    requests: str
    tables: tuple[str, ...]

    @classmethod
    def of(cls, names: TopicNames, lanes: Sequence[str]) -> Copied:
        return cls(
            tuple(names.state(lane) for lane in lanes),
            (*(names.dispatch(lane) for lane in lanes), *names.delays),
            names.events,
            names.dead_letters,
            names.seen,
            names.requests,
            (names.suppressions, names.templates, names.control),
        )

    def all(self) -> tuple[str, ...]:
        return (
            *self.tables,
            self.seen,
            *self.states,
            self.requests,
            self.events,
            self.dead_letters,
            *self.flows,
        )


async def take_cut(admin: Watch, names: TopicNames, config: Config, counts: Mapping[str, int]) -> Cut:
    """The eight steps. `counts`: partitions of each topic. Raises Refused, Retriable, EndNotReached."""
    copied = Copied.of(names, tuple(config.lanes))

    def parts(*topics: str) -> list[Partition]:
        return [Partition(topic, number) for topic in topics for number in range(counts[topic])]

    marks = await admin.high_watermarks(parts(copied.events))
    senders = {lane: await _sender_positions(admin, names, lane, parts(names.dispatch(lane))) for lane in config.lanes}
    ends = await settled_ends(admin, parts(*copied.states))
    marks |= await admin.high_watermarks(parts(copied.seen))
    router = await _stable(admin, names.router_group, parts(copied.requests, *names.delays))
    ends |= await settled_ends(admin, parts(*copied.flows))
    ends |= await settled_ends(admin, parts(copied.events))
    ends |= await settled_ends(admin, parts(copied.dead_letters, copied.seen))
    ends |= await settled_ends(admin, parts(copied.requests, *copied.tables))
    by_topic: dict[str, dict[int, int]] = {}
    for partition, committed in router.items():
        by_topic.setdefault(plain(names, partition.topic), {})[partition.number] = committed.offset
    said: dict[str, dict[int, int]] = {}
    for partition, mark in marks.items():
        said.setdefault(plain(names, partition.topic), {})[partition.number] = mark
    return Cut(Positions(senders=senders, router=by_topic, marks=said), ends)


async def settled_ends(admin: Watch, partitions: Collection[Partition]) -> dict[Partition, int]:
    """A last stable offset of each that is not below its high watermark as it is now. Raises EndNotReached."""
    wanted = await admin.high_watermarks(partitions)
    waiting, ends = set(wanted), dict[Partition, int]()
    for _ in range(int(STABLE_TIMEOUT_S / _ASK_AGAIN_S)):
        stable = await admin.last_stable_offsets(sorted(waiting))
        ends |= {p: offset for p, offset in stable.items() if offset >= wanted[p]}
        waiting -= set(ends)
        if not waiting:
            return ends
        await asyncio.sleep(_ASK_AGAIN_S)
    first = min(waiting)
    raise EndNotReached(f"{first.topic}[{first.number}]: a transaction stays open for {STABLE_TIMEOUT_S} s; try again")


async def _sender_positions(
    admin: Watch, names: TopicNames, lane: str, partitions: Collection[Partition]
) -> dict[int, tuple[int, int]]:
    found = {}
    for partition, committed in (await _stable(admin, names.sender_group(lane), partitions)).items():
        mark, _, floor = committed.metadata.partition(":")
        if f"{mark}:" != FLOOR_MARK or not floor.isdigit():
            raise Refused(
                f"group {names.sender_group(lane)}, {partition.topic}[{partition.number}]: the committed position is "
                "not a sender's (were offsets reset by another tool?). Stop the services and make a backup with "
                "--positions-lost, which goes by the books: docs/disaster.md"
            )
        found[partition.number] = (committed.offset, int(floor))
    return found


async def _stable(admin: Watch, group: str, partitions: Collection[Partition]) -> Mapping[Partition, Committed]:
    last: Retriable | None = None
    for _ in range(int(STABLE_TIMEOUT_S / _ASK_AGAIN_S)):
        try:
            return await admin.group_offsets(group, partitions, stable=True)
        except Retriable as error:
            last = error
        await asyncio.sleep(_ASK_AGAIN_S)
    raise EndNotReached(f"group {group}: its positions stay unstable: {last}")


# -------------------------------------------------------------------------------------------------------------- ranges


@dataclass(frozen=True, slots=True)
class Span:
    """What to read of one topic: [start, end) by partition. `whole`: earlier backups do not count for it."""

    topic: str
    whole: bool
    ranges: dict[int, tuple[int, int]]


async def spans(
    admin: Watch, names: TopicNames, config: Config, cut: Cut, before: Manifest | None, since: datetime, point: datetime
) -> list[Span]:
    """What this backup has to copy; `before` None: everything from `since` (requests, events, dead letters) on.

    Raises Refused where a topic ends before what was copied of it last time.
    """
    copied = Copied.of(names, tuple(config.lanes))
    low = await admin.low_watermarks(list(cut.ends))
    windowed = [p for p in cut.ends if p.topic in (copied.requests, copied.events, copied.dead_letters)]
    opened = {} if before is not None else await admin.offsets_at(windowed, int(since.timestamp() * 1000))
    stale = before is not None and (point - before.point).total_seconds() > WHOLE_TABLES_AFTER_S
    found = []
    for topic in copied.all():
        logical = plain(names, topic)
        earlier = None if before is None else before.topics.get(logical)
        whole = earlier is None or (stale and topic in copied.tables)
        ranges = {}
        for partition in sorted(p for p in cut.ends if p.topic == topic):
            end, number = cut.ends[partition], partition.number
            if whole or earlier is None:
                start = _first(names, cut, partition, opened.get(partition, low[partition]))
            else:
                start = earlier.partitions[number].end
                if start > end:
                    raise Refused(
                        f"{topic}[{number}] ends at {end}, but the last backup holds it up to {start}: the topic was "
                        "made anew or truncated. Look at what happened first; then make a backup into another place"
                    )
            start = max(low[partition], min(start, end))
            ranges[number] = (start, end)
        found.append(Span(topic, whole, ranges))
    return found


def _first(names: TopicNames, cut: Cut, partition: Partition, otherwise: int) -> int:
    """Where the first backup of a partition begins: nothing that is on its way or in doubt is left out."""
    topic, number = partition
    for lane, positions in cut.positions.senders.items():
        if topic == names.dispatch(lane) and number in positions:
            return positions[number][0]
        if topic == names.state(lane) and number in positions:
            return positions[number][1]
    routed = cut.positions.router.get(plain(names, topic), {}).get(number)
    if routed is None:
        return otherwise
    return min(routed, otherwise) if topic == names.requests else routed


def plain(names: TopicNames, topic: str) -> str:
    """A topic's name without the prefix of the installation."""
    return topic.removeprefix(names.prefix)
