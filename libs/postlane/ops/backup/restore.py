"""Restore: plan, then write it, so that nothing is mailed by it and a killed one goes on where it was.

1. The backup is checked whole, and whether it fits; the target is looked at. Nothing was written until here.
2. The transactional producer of restores is begun, which settles what a killed one left open; missing topics are made.
3. What is asked for goes on record (`mail.restores`), together with a pause of every lane.
4. The jobs (`jobs.py`), each batch in one transaction with how far it is.
5. The positions of the senders (O, and S in the metadata) and of the router are put down.
6. It goes on record that it is finished. The lanes stay paused until `postlane resume`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson

from postlane.core.policy import Config
from postlane.eventlog.errors import Retriable, UnknownTopic
from postlane.eventlog.ports import Committed, Log, Partition
from postlane.eventlog.topics import TopicNames
from postlane.ops.backup.archive import Archive
from postlane.ops.backup.errors import Refused
from postlane.ops.backup.jobs import Item, Job, Jobs
from postlane.ops.backup.pending import REQUESTS, Manner, Pending
from postlane.ops.backup.progress import Begun, Done, Progress, restores_topic
from postlane.ops.backup.target import Target, check_at_rest, check_topics
from postlane.ops.topics import USABLE_ASK_AGAIN_S, USABLE_TIMEOUT_S, apply, plan

BATCH_RECORDS_MAX = 5_000
BATCH_MAX_BYTES = 4_000_000
READ_DEADLINE_S = 600.0
FLOOR_MARK = "S1:"  # what the senders' commit metadata begins with (postlane_sender.takeover)
ROUTER_MARK = "R1"  # what the router's is (postlane_router.ownership)
Told = Callable[[str, int, int], None]  # (what, records written so far, about how many)


@dataclass(slots=True)
class Plan:
    """What a restore would do."""

    backup: str
    point: datetime
    at: datetime
    manner: Manner
    topics: tuple[str, ...]
    records: dict[str, int] = field(default_factory=dict)  # in the backup, by topic
    pending: dict[str, dict[str, int]] = field(default_factory=dict)  # lane -> fate -> deliveries
    unrouted: int = 0  # requests that the router had not passed: it routes them when it is started
    missing: list[str] = field(default_factory=list)  # topics that will be made
    resumed: bool = False  # a restore of this backup was begun and not finished
    done: dict[str, Any] | None = None  # it was finished before: nothing to do

    @property
    def total(self) -> int:
        return sum(self.records.values())


def make_plan(archive: Archive, topics: Sequence[str], manner: Manner, at: datetime) -> Plan:
    """From the backup alone. Raises Damaged."""
    newest = archive.newest
    made = Plan(newest.ident, newest.point, at, manner, tuple(topics))
    made.records = {t: sum(archive.count(t, n) for n in range(archive.topics[t])) for t in topics}
    if REQUESTS not in topics:
        return made
    for number in range(archive.topics[REQUESTS]):
        pending = Pending(archive, number, manner, at)
        made.unrouted += pending.unrouted()
        for placed in pending.placed():
            fates = made.pending.setdefault(placed.lane, {})
            fates[placed.fate.value] = fates.get(placed.fate.value, 0) + 1
    return made


class Restorer:
    """One restore of one backup into one cluster."""

    def __init__(
        self,
        log: Log,
        admin: Target,
        names: TopicNames,
        config: Config,
        archive: Archive,
        told: Told = lambda *_: None,
    ) -> None:
        self._log = log
        self._admin = admin
        self._names = names
        self._config = config
        self._archive = archive
        self._told = told
        self._written = Counter[str]()

    async def look(self, topics: Sequence[str], manner: Manner, at: datetime) -> Plan:
        """The plan, and whether the target takes it. Writes nothing. Raises Refused, Foreign, Damaged."""
        await check_at_rest(self._admin, self._names, self._config)
        begun, finished = await self._recorded()
        resumed = begun is not None and finished is None
        if begun is not None and resumed:
            self._check_same(begun, topics, manner)
            at = begun.at
        missing: list[str] = []
        done = None
        try:
            missing = await check_topics(self._admin, self._names, self._archive, topics, resumed)
        except Refused:
            if begun is None or finished is None or not self._is_same(begun, topics):
                raise
            # Not empty, because this very backup was put there: the plan of that time, when less was due.
            done, manner, at = finished, Manner(begun.manner), begun.at
        made = make_plan(self._archive, topics, manner, at)  # reads all that is pending
        made.resumed, made.missing, made.done = resumed, missing, done
        return made

    async def run(self, made: Plan) -> dict[str, Any]:
        """Write it; what was written, by topic. Raises RestoreFailed, Refused, LogError: run again to go on."""
        if made.done is not None:
            return made.done
        await self._make_topics()
        transactor = await self._log.transactor(f"{self._names.prefix}restore")
        try:
            progress = Progress(self._log, self._names, transactor)
            await progress.load()
            await check_at_rest(self._admin, self._names, self._config)
            jobs = Jobs(
                self._archive, self._names, made.topics, made.manner, made.at, self._config.topics.dispatch_days
            )
            if progress.begun is None or progress.finished is not None:
                await progress.begin(self._begun(made))
            reason = f"restored from backup {made.backup}; `postlane resume --lane NAME` when it has been looked at"
            await progress.write(jobs.pauses(tuple(self._config.lanes), reason))
            for job in jobs.all():
                await self._do(job, jobs, progress, made.total)
            if REQUESTS in made.topics:
                await self._put_down_positions(progress)
            summary = {"backup": made.backup, "point": made.point, "written": dict(self._written)}
            await progress.finish(summary, made.at)
            return summary
        finally:
            await transactor.close()

    # --------------------------------------------------------------------------------------------------- on record

    async def _recorded(self) -> tuple[Begun | None, dict[str, Any] | None]:
        topic = restores_topic(self._names).name
        if topic not in await self._admin.topics([topic]):
            return None, None
        progress = Progress(self._log, self._names, _NoTransactor())
        await progress.load()
        return progress.begun, progress.finished

    def _begun(self, made: Plan) -> Begun:
        return Begun(
            backup=made.backup, seal=self._archive.newest.seal, manner=made.manner, topics=made.topics, at=made.at
        )

    def _is_same(self, begun: Begun, topics: Sequence[str]) -> bool:
        return begun.seal == self._archive.newest.seal and begun.topics == tuple(topics)

    def _check_same(self, begun: Begun, topics: Sequence[str], manner: Manner) -> None:
        if not self._is_same(begun, topics) or begun.manner != manner:
            raise Refused(
                f"a restore of backup {begun.backup} (--pending {begun.manner}; {len(begun.topics)} topics) was begun "
                "here and not finished: go on with the same, or begin anew in empty topics"
            )

    async def _make_topics(self) -> None:
        want, found = await plan(self._admin, self._names, self._config)
        await apply(self._admin, want, [d for d in found if d.action == "create"])
        await self._admin.create_topics([restores_topic(self._names)], want.replication)
        await self._until_known(Partition(restores_topic(self._names).name, 0))

    async def _until_known(self, partition: Partition) -> None:
        """Brokers hear of a new topic one after the other, and tell of it in one answer before they do in another."""
        for left in reversed(range(int(USABLE_TIMEOUT_S / USABLE_ASK_AGAIN_S))):
            try:
                await self._log.partition_count(partition.topic)
                await self._log.high_watermarks([partition])
                return
            except (UnknownTopic, Retriable):
                if not left:
                    raise
            await asyncio.sleep(USABLE_ASK_AGAIN_S)

    # -------------------------------------------------------------------------------------------------------- jobs

    async def _do(self, job: Job, jobs: Jobs, progress: Progress, total: int) -> None:
        done = progress.of(job.name)
        if not done.over:
            items = jobs.items(job) if job.kind != "intents" else jobs.intents(job, await self._offsets(job, progress))
            done = await self._write(job, items, progress, done, total)
        self._written[job.topic] += done.written

    async def _write(self, job: Job, items: Any, progress: Progress, done: Done, total: int) -> Done:
        partition = Partition(f"{self._names.prefix}{job.topic}", job.number)
        batch: list[Item] = []
        size, skip = 0, done.passed
        for item in items:
            if skip:
                skip -= 1
                continue
            splits = job.split is not None and done.split is None and item.offset >= job.split
            if batch and (splits or len(batch) >= BATCH_RECORDS_MAX or size >= BATCH_MAX_BYTES):
                done = await self._advance(job, batch, progress, done, total)
                batch, size = [], 0
            if splits:
                done = done.model_copy(update={"split": await self._end(partition)})
            batch.append(item)
            size += len(item.record.value or b"")
        if batch:  # the last one says that it is; a job that had nothing to write is looked at again by a later life
            done = await self._advance(job, batch, progress, done.model_copy(update={"over": True}), total)
        return done

    async def _advance(self, job: Job, batch: list[Item], progress: Progress, done: Done, total: int) -> Done:
        count = len(batch)
        following = done.model_copy(update={"passed": done.passed + count, "written": done.written + count})
        done = await progress.advance(job.name, [item.record for item in batch], following)
        self._told(job.topic, self._written.total() + done.written, total)
        return done

    async def _end(self, partition: Partition) -> int:
        return (await self._log.high_watermarks([partition]))[partition]

    async def _offsets(self, job: Job, progress: Progress) -> dict[str, int]:
        """Where the dispatch records of a lane are now, by `delivery_id#hop`."""
        lane = job.topic.removeprefix("mail.state.")
        partition = Partition(self._names.dispatch(lane), job.number)
        low = (await self._admin.low_watermarks([partition]))[partition]
        found: dict[str, int] = {}
        async for batch in self._log.read(partition, low, await self._end(partition), deadline_s=READ_DEADLINE_S):
            for record in batch:
                try:
                    body = orjson.loads(record.value or b"")
                    found[f"{body['delivery_id']}#{body.get('hop', 0)}"] = record.offset
                except (orjson.JSONDecodeError, KeyError, TypeError):
                    continue  # for the dead letters
        return found

    async def _put_down_positions(self, progress: Progress) -> None:
        """What was restored of dispatch and delay is all pending: positions are where it begins."""
        await check_at_rest(self._admin, self._names, self._config)
        numbers = range(self._archive.topics[REQUESTS])
        for lane in self._archive.newest.lanes:
            dispatch = {n: Partition(self._names.dispatch(lane), n) for n in numbers}
            state = {n: Partition(self._names.state(lane), n) for n in numbers}
            low = await self._admin.low_watermarks([*dispatch.values(), *state.values()])
            positions = {dispatch[n]: Committed(low[dispatch[n]], f"{FLOOR_MARK}{low[state[n]]}") for n in numbers}
            await self._admin.set_group_offsets(self._names.sender_group(lane), positions)
        delays = [Partition(topic, n) for topic in self._names.delays for n in numbers]
        router = {p: Committed(o, ROUTER_MARK) for p, o in (await self._admin.low_watermarks(delays)).items()}
        for number in numbers:
            split = progress.of(Job("requests", REQUESTS, number).name).split
            place = Partition(self._names.requests, number)
            # Where none was there to route, the router begins behind them all.
            router[place] = Committed(await self._end(place) if split is None else split, ROUTER_MARK)
        await self._admin.set_group_offsets(self._names.router_group, router)


class _NoTransactor:
    """Stands where progress is only read."""

    async def commit(self, transaction: Any) -> Any:
        raise Refused("nothing may be written yet")

    async def rebuild(self) -> None:
        raise Refused("nothing may be written yet")

    async def close(self) -> None:
        """Nothing to let go."""
