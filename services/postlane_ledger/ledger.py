"""The ledger: one loop that reads `mail.events` and folds it, while the next batch is being fetched.

The group only shares the partitions out; where each goes on is what the database says. A partition is *placed* when
that was asked and its reading has begun there. Whatever goes wrong (another ledger folded it, the database was away,
a rebuild was swapped in), the partition is placed anew and nothing of what had been fetched is used.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Engine

from postlane.clock import Clock
from postlane.config import ConfigurationError
from postlane.core.rules import ALL_RULES, Rules
from postlane.eventlog.errors import Fatal, LogError, Retriable
from postlane.eventlog.ports import Log, Member, Membership, Partition, Received
from postlane.ops.books_database import DatabaseUnavailable
from postlane.ops.books_schema import books
from postlane.telemetry.metrics import LedgerMetrics
from postlane_ledger.batch import prepare
from postlane_ledger.fold import PRUNE_MAX_ROWS, Fold, Folded, Overtaken
from postlane_ledger.migrate import upgrade

log = logging.getLogger("postlane.ledger")
PRUNE_AGAIN_S = 1.0  # while there is more to forget than one go takes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """The bounds of a ledger process."""

    topic: str
    group: str
    instance: str
    client_id: str = ""  # empty: the cluster's
    timeline_days: float = 90
    batch_events_max: int = 10_000
    poll_wait_s: float = 0.25
    retry_first_s: float = 0.1
    retry_max_s: float = 5.0
    prune_every_s: float = 30.0
    measure_every_s: float = 5.0


class Ledger:
    """A ledger process (postlane.service.Service, ports.Listener)."""

    def __init__(
        self,
        cluster: Log,
        engine: Engine,
        settings: LedgerSettings,
        metrics: LedgerMetrics,
        clock: Clock,
        *,
        threaded: bool = True,
        rules: Rules = ALL_RULES,
    ) -> None:
        """`threaded` False: the database is used in the event loop itself, as a simulation needs it."""
        self._cluster = cluster
        self._engine = engine
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._fold = Fold(engine, books(), settings.topic, self._now_ms, rules)
        self._database = ThreadPoolExecutor(1, thread_name_prefix="database") if threaded else None
        self._member: Member | None = None
        self._next: dict[int, int] = {}  # placed partitions: the offset that the database expects next
        self._unplaced: set[int] = set()
        self._fetched: list[Received] = []
        self._fold_idle = asyncio.Event()
        self._fold_idle.set()
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()
        self._trouble: str | None = None  # with the database, or with a partition's place
        self._deaf: str | None = None  # the log cannot be read
        self._folded_ms = self._now_ms()  # the time of the newest event folded

    # -------------------------------------------------------------------------------------------- Service

    async def start(self) -> None:
        """Migrate the database, check that it belongs to this log, join the group.

        Raises ConfigurationError (schema newer, another log's database), UnknownTopic, Retriable.
        """
        await self._leave()
        try:
            await self._in_database(lambda: upgrade(self._engine))
            others = await self._in_database(self._fold.other_topics)
        except DatabaseUnavailable as error:
            raise Retriable(f"the ledger's database: {error}") from None
        if others:
            raise ConfigurationError(
                f"POSTLANE_DATABASE_URL: this database keeps the books of {', '.join(others)}, not of "
                f"{self._settings.topic}; give each installation a database of its own"
            )
        await self._cluster.partition_count(self._settings.topic)
        settings = self._settings
        self._member = await self._cluster.member(
            settings.group,
            [settings.topic],
            self,
            instance_id=settings.instance,
            client_id=settings.client_id or None,
        )

    async def run(self) -> None:
        """Fold until `stop`."""
        self._ended.clear()
        aside = [asyncio.create_task(self._measure(), name="measure"), asyncio.create_task(self._prune(), name="prune")]
        try:
            await self._loop()
        finally:
            for task in aside:
                task.cancel()
            self._ended.set()

    async def stop(self) -> None:
        """Finish the batch under way, leave the group, close."""
        self._stopping.set()
        await self._ended.wait()
        try:
            await self._leave()
        finally:
            await self._cluster.close()
            if self._database is not None:
                self._database.shutdown(wait=False, cancel_futures=True)
            self._engine.dispose()

    def not_ready(self) -> str | None:
        """None while everything that is ours is being folded."""
        trouble = self._deaf or self._trouble
        if trouble is not None:
            return trouble
        if self._member is None or self._member.membership is None:
            return "waiting for partitions"
        return f"finding the place in {len(self._unplaced)} partitions" if self._unplaced else None

    async def _leave(self) -> None:
        member, self._member = self._member, None
        if member is not None:
            await member.close()
        self._next.clear()
        self._unplaced.clear()

    # ------------------------------------------------------------------------------------------- Listener

    async def assigned(self, membership: Membership, added: frozenset[Partition]) -> None:
        """`added` are ours; the loop places them."""
        self._unplaced |= {partition.number for partition in added}
        log.info("assigned", extra={"partitions": len(added), "generation": membership.generation})

    async def revoked(self, removed: frozenset[Partition]) -> None:
        """Let the batch under way end, so that the next owner finds the offsets where they will stay."""
        await self._fold_idle.wait()
        self._forget(removed)

    async def lost(self, removed: frozenset[Partition]) -> None:
        """Another folds them already; what we still try fails on the stored offset."""
        self._forget(removed)

    def _forget(self, removed: frozenset[Partition]) -> None:
        for partition in removed:
            self._next.pop(partition.number, None)
            self._unplaced.discard(partition.number)

    # ----------------------------------------------------------------------------------------------- loop

    async def _loop(self) -> None:
        """Three things at once, each at most once: fetch, fold what was fetched, place partitions."""
        polling: asyncio.Task[Sequence[Received]] | None = None
        folding: asyncio.Task[None] | None = None
        placing: asyncio.Task[None] | None = None
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while not self._stopping.is_set():
                room = self._settings.batch_events_max - len(self._fetched)
                if polling is None and room > 0:
                    polling = asyncio.create_task(self._poll(room))
                if folding is None and self._fetched:
                    taken, self._fetched = self._fetched, []
                    folding = asyncio.create_task(self._apply(taken))
                if placing is None and self._unplaced:
                    placing = asyncio.create_task(self._place_all())
                running = {task for task in (polling, folding, placing, stopping) if task is not None}
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                if polling is not None and polling.done():
                    self._fetched.extend(polling.result())
                    polling = None
                if folding is not None and folding.done():
                    folding.result()
                    folding = None
                if placing is not None and placing.done():
                    placing.result()
                    placing = None
        finally:
            stopping.cancel()
            await _ended(folding, cancel=False)
            await _ended(placing, cancel=True)
            await _ended(polling, cancel=True)

    async def _poll(self, room: int) -> Sequence[Received]:
        if self._member is None:
            raise Fatal("the ledger was not started")
        try:
            records = await self._member.poll(room, self._settings.poll_wait_s)
        except Retriable as error:
            self._deaf = f"reading: {error}"
            log.warning("cannot read", extra={"reason": str(error)})
            await asyncio.sleep(self._settings.poll_wait_s)
            return ()
        self._deaf = None
        return records

    async def _apply(self, fetched: Sequence[Received]) -> None:
        """Fold what is still ours and was not folded before."""
        expected = dict(self._next)
        records = [r for r in fetched if r.offset >= expected.get(r.partition, r.offset + 1)]
        if not records:
            return
        self._fold_idle.clear()
        began = self._clock.monotonic()
        try:
            folded = await self._in_database(lambda: self._fold.apply(prepare(records), expected))
        except Overtaken as error:
            self._metrics.conflicts_total.inc()
            log.warning("another ledger was here; reading the offsets again", extra={"reason": str(error)})
            self._displace()
        except DatabaseUnavailable as error:
            self._in_trouble(f"the ledger's database: {error}")
            self._displace()
        else:
            self._trouble = None
            self._folded_ms = max(record.timestamp_ms for record in records)
            self._count(folded, len(records), self._clock.monotonic() - began)
            for partition, following in folded.next_offsets.items():
                if partition in self._next:
                    self._next[partition] = following
        finally:
            self._fold_idle.set()

    def _displace(self) -> None:
        """Nothing that was fetched may be used: every partition is placed again."""
        if self._member is not None:
            self._member.pause([Partition(self._settings.topic, number) for number in self._next])
        self._unplaced |= self._next.keys()
        self._next.clear()
        self._fetched.clear()

    # --------------------------------------------------------------------------------------------- placing

    async def _place_all(self) -> None:
        """Until every partition that is ours has been placed; a database or a broker that is away is waited for."""
        wait_s = self._settings.retry_first_s
        while self._unplaced:
            try:
                await self._place(sorted(self._unplaced))
                self._trouble = None
            except (Retriable, DatabaseUnavailable, Overtaken) as error:
                self._in_trouble(f"finding the place: {error}")
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, self._settings.retry_max_s)

    async def _place(self, numbers: Sequence[int]) -> None:
        topic = self._settings.topic
        partitions = [Partition(topic, number) for number in numbers]
        low = await self._cluster.low_watermarks(partitions)
        high = await self._cluster.high_watermarks(partitions)
        starts = {partition.number: low[partition] for partition in partitions}
        stored = await self._in_database(lambda: self._fold.begin(starts))
        for partition in partitions:
            number, offset = partition.number, stored[partition.number]
            if offset > high[partition]:
                raise Fatal(
                    f"the ledger has folded {topic}[{number}] to {offset}, but it ends at {high[partition]}: the topic "
                    "was made anew or truncated; run `postlane ledger rebuild`"
                )
            if offset < low[partition]:
                offset = await self._skip(partition, offset, low[partition])
            if number in self._unplaced and self._member is not None:
                self._unplaced.discard(number)
                self._next[number] = offset
                self._member.start(partition, offset)

    async def _skip(self, partition: Partition, offset: int, low: int) -> int:
        reason = f"retention took offsets {offset} to {low - 1} before they were folded"
        log.error("a gap in the books", extra={"partition": partition.number, "reason": reason})
        await self._in_database(lambda: self._fold.skip(partition.number, offset, low, reason))
        return low

    # ---------------------------------------------------------------------------------------------- aside

    async def _prune(self) -> None:
        """Forget timeline rows past their days, a bounded number at a time, between batches."""
        wait_s = self._settings.prune_every_s
        while True:
            await asyncio.sleep(wait_s)
            before_ms = self._now_ms() - int(self._settings.timeline_days * 86_400_000)
            owned = sorted(self._next)
            try:
                gone = await self._in_database(partial(self._fold.prune, owned, before_ms))
            except DatabaseUnavailable:
                continue  # the loop meets it too, and says so
            self._metrics.pruned_total.inc(gone)
            wait_s = PRUNE_AGAIN_S if gone >= PRUNE_MAX_ROWS else self._settings.prune_every_s

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(self._settings.measure_every_s)
            placed = {Partition(self._settings.topic, number): offset for number, offset in self._next.items()}
            try:
                ends = await self._cluster.high_watermarks(list(placed)) if placed else {}
            except LogError:
                continue  # the loop meets it too, and says so
            lag = sum(max(0, end - placed[partition]) for partition, end in ends.items())
            self._metrics.lag.set(lag)
            self._metrics.behind_seconds.set(max(0, self._now_ms() - self._folded_ms) / 1000 if lag else 0)

    def _count(self, folded: Folded, records: int, seconds: float) -> None:
        self._metrics.batch_seconds.observe(seconds)
        self._metrics.batch_events.observe(records)
        self._metrics.unreadable_total.inc(folded.unreadable)
        for kind, count in folded.types.items():
            self._metrics.events_total.labels(kind).inc(count)
        if folded.unreadable:
            log.warning("records that could not be read were kept and passed over", extra={"count": folded.unreadable})

    def _now_ms(self) -> int:
        return int(self._clock.now().timestamp() * 1000)

    def _in_trouble(self, reason: str) -> None:
        if reason != self._trouble:
            log.error("trouble", extra={"reason": reason})
        self._trouble = reason

    async def _in_database(self, call: Callable[[], T]) -> T:
        """On the one database thread, in order."""
        if self._database is None:
            return call()
        return await asyncio.get_running_loop().run_in_executor(self._database, call)


async def _ended(task: asyncio.Task[Any] | None, *, cancel: bool) -> None:
    if task is None:
        return
    if cancel:
        task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # taken note of; what ends the loop is raised by the loop
