"""Whether a restored cluster holds what it should: every partition compared by count and SHA-256 of its records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256

from postlane.eventlog.ports import Log, Partition, Received
from postlane.eventlog.topics import TopicNames
from postlane.ops.backup.archive import Archive
from postlane.ops.backup.chunks import framed
from postlane.ops.backup.jobs import GATE, Job, Jobs
from postlane.ops.backup.pending import Fate, Manner, Pending
from postlane.ops.backup.restore import READ_DEADLINE_S, Plan

PAUSE = b"pause/lane/"


@dataclass(slots=True)
class Compared:
    """What was compared; `differences` name each partition that is not as it should be."""

    partitions: int = 0
    records: int = 0
    differences: list[str] = field(default_factory=list)


class _Sum:
    """Count and digest of records in order, without their offsets."""

    def __init__(self) -> None:
        self._digest = sha256()
        self.count = 0

    def add(self, record: Received) -> None:
        self.count += 1
        self._digest.update(framed(record))

    @property
    def said(self) -> tuple[int, str]:
        return self.count, self._digest.hexdigest()


async def compare(log: Log, names: TopicNames, archive: Archive, made: Plan, flow_days: float) -> Compared:
    """After a restore of `made`, before anything was started. Raises what reading raises."""
    done = Compared()
    jobs = Jobs(archive, names, made.topics, made.manner, made.at, flow_days)
    for job in jobs.all():
        if job.kind == "gate":
            continue
        wanted = _wanted_keys(archive, job, made.manner, made) if job.kind == "intents" else _wanted(jobs, job)
        partition = Partition(f"{names.prefix}{job.topic}", job.number)
        found = await _found(log, partition, keys_only=job.kind == "intents")
        done.partitions += 1
        done.records += found.count
        if found.said != wanted.said:
            done.differences.append(
                f"{job.topic}[{job.number}]: {wanted.count} records expected, {found.count} found"
                + ("" if wanted.count != found.count else ", with another digest")
            )
    return done


def _wanted(jobs: Jobs, job: Job) -> _Sum:
    return _summed(
        Received("", 0, 0, item.record.timestamp_ms, item.record.key, item.record.value, item.record.headers)
        for item in jobs.items(job)
    )


def _wanted_keys(archive: Archive, job: Job, manner: Manner, made: Plan) -> _Sum:
    lane = job.topic.removeprefix("mail.state.")
    doubts = (
        placed.key.encode()
        for placed in Pending(archive, job.number, manner, made.at).placed()
        if placed.lane == lane and placed.fate in (Fate.IN_DOUBT, Fate.UNCERTAIN)
    )
    return _summed(Received("", 0, 0, 0, key, None) for key in doubts)


async def _found(log: Log, partition: Partition, keys_only: bool) -> _Sum:
    low = (await log.low_watermarks([partition]))[partition]
    end = (await log.high_watermarks([partition]))[partition]
    total = _Sum()
    async for batch in log.read(partition, low, end, deadline_s=READ_DEADLINE_S):
        for record in batch:
            key = record.key or b""
            if key.startswith((GATE.encode(), PAUSE)):
                continue  # the restore's own
            if keys_only:
                total.add(Received("", 0, 0, 0, record.key, None))
            else:
                total.add(Received("", 0, 0, record.timestamp_ms, record.key, record.value, record.headers))
    return total


def _summed(records: Iterable[Received]) -> _Sum:
    total = _Sum()
    for record in records:
        total.add(record)
    return total
