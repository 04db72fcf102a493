"""The router: one consume-transform-produce loop over `mail.requests` and the delay topics.

One pass:
  1. wake the delay partitions whose time has come,
  2. poll (ownership changes happen here and nowhere else),
  3. read the requests and ask the memory of keys, for all of them at once,
  4. decide, in order,
  5. settle the transaction of the pass before; then, and only then, its keys go into the store,
  6. begin to commit: records, changelog of the memory, and positions in one transaction.
So one transaction is under way while the next records are read and decided, as if it were going to succeed: its keys
count as known. If it does not, what was decided on top of it is dropped. One that was rolled back is read again from
the committed positions. One whose outcome is unknown: a new producer (which settles it), and every partition is taken
over again from what the log says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from math import ceil
from typing import Protocol

from postlane.core.delay import STEPS
from postlane.core.policy import Config
from postlane.core.route import RoutePolicy
from postlane.core.rules import ALL_RULES, Rules
from postlane.eventlog.errors import Aborted, CommitUnknown, Fatal, Fenced, LogError, Retriable, TooLarge
from postlane.eventlog.ports import Committed, Log, Member, Partition, Received, Transaction, Transactor
from postlane.eventlog.topics import TopicNames
from postlane.telemetry.metrics import RouterMetrics
from postlane.telemetry.tracing import OFF, Tracer
from postlane_router.batch import Batch
from postlane_router.clock import Clock
from postlane_router.config import RouterSettings
from postlane_router.deciding import Decider
from postlane_router.measures import Measures
from postlane_router.ownership import POSITION_MARK, Ownership
from postlane_router.store import DAY_S, Applied, SeenStore, StoreBroken
from postlane_router.tables import RouterTables

log = logging.getLogger("postlane.router")

ABORTED_WAIT_FIRST_S = 0.02
ABORTED_WAIT_MAX_S = 1.0
WAKE_SLACK_MIN_MS = 50  # a delay partition is looked at no more often than this,
WAKE_SLACK_MAX_MS = 500  # or than a fiftieth of its step, up to this


class Router:
    """Fills `postlane.service.Service`. All state is of one event loop; `not_ready` may be asked from any thread."""

    def __init__(
        self,
        cluster: Log,
        names: TopicNames,
        config: Config,
        settings: RouterSettings,
        store: SeenStore,
        clock: Clock,
        metrics: RouterMetrics,
        rules: Rules = ALL_RULES,
        tracer: Tracer = OFF,
    ) -> None:
        self._cluster = cluster
        self._names = names
        self._lanes = tuple(config.lanes)
        self._settings = settings
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._tables = RouterTables()
        self._decider = Decider(names, RoutePolicy.of(config), self._tables, store, rules, tracer)
        self._own = Ownership(cluster, names, store, self, settings.restore_timeout_s, settings.retry_wait_s)
        self._measures = Measures(cluster, names, self._own, store, metrics, settings.lag_every_s)
        self._member: Member | None = None
        self._transactor: Transactor | None = None
        self._wakes: dict[Partition, tuple[int, int]] = {}  # (offset, unix ms)
        self._looked: dict[Partition, int] = {}
        self._under_way: tuple[Batch, asyncio.Task[Mapping[Partition, int]]] | None = None
        self._settling = asyncio.Lock()
        self._step_ms = {names.delay(step): seconds * 1000 for step, seconds in STEPS}
        self._read_max = settings.batch_records_max
        self._aborts = 0  # in a row
        self._day = 0
        self._trouble: str | None = None
        self._stopping = False
        self._ended = asyncio.Event()
        self._ended.set()

    # --------------------------------------------------------------------------------------------------- Service

    async def start(self) -> None:
        """Tables first, then the producer (which fences an older process that was us), then membership.

        Raises Retriable, UnknownTopic, Fatal (partition counts that do not fit), Fenced.
        """
        await self._let_go()
        names, instance = self._names, self._settings.instance
        await self._check_partitions()
        await self._tables.open(self._cluster, names, self._settings.tables_timeout_s)
        self._transactor = await self._cluster.transactor(f"{names.prefix}router.{instance}")
        try:
            self._forget()
        except StoreBroken as error:
            self._rebuild_store(error)
        topics = (names.requests, *names.delays)
        self._member = await self._cluster.member(names.router_group, topics, self._own, instance_id=instance)
        self._own.member = self._member

    async def run(self) -> None:
        """Route until `stop`."""
        self._ended.clear()
        measuring = asyncio.get_running_loop().create_task(self._measures.watch(self._tables), name="measure")
        try:
            while not self._stopping:
                await self._pass()
            await self.settle()
        except Fenced:
            self._metrics.fenced_total.inc()
            raise
        finally:
            measuring.cancel()
            self._ended.set()

    async def stop(self) -> None:
        """End the pass that is under way, leave the group's partitions, close."""
        self._stopping = True
        await self._ended.wait()
        try:
            await self._let_go()
        finally:
            self._store.close()
            await _take_leave(self._cluster)

    def not_ready(self) -> str | None:
        """None while everything that is ours moves."""
        if self._trouble is not None:
            return self._trouble
        if self._own.problem is not None:
            return self._own.problem
        if self._member is None or self._member.membership is None:
            return "waiting for partitions"
        unready = len(self._own.unready())
        return f"taking over {unready} partitions" if unready else None

    async def _let_go(self) -> None:
        self._own.cancel()
        member, self._member = self._member, None
        transactor, self._transactor = self._transactor, None
        for it in (member, transactor):
            if it is not None:
                await _take_leave(it)
        self._own.member = None
        self._own.cancel()
        await self._tables.close()

    async def _check_partitions(self) -> None:
        """A mail keeps its partition number everywhere, so all topics must have as many as the requests."""
        names = self._names
        wanted = await self._cluster.partition_count(names.requests)
        lanes = [names.dispatch(lane) for lane in self._lanes]
        for topic in (names.seen, names.events, names.dead_letters, *names.delays, *lanes):
            count = await self._cluster.partition_count(topic)
            if count != wanted:
                raise Fatal(
                    f"{topic} has {count} partitions, {names.requests} has {wanted}: they must have the same number; "
                    "run `postlane topics plan`"
                )

    # ------------------------------------------------------------------------------------------------- one pass

    async def _pass(self) -> None:
        if self._own.failure is not None:
            raise self._own.failure
        if self._member is None:
            raise Fatal("the router was not started")
        wait_s = self._wake()
        try:
            # While a transaction is under way, only what is there already: its outcome is awaited next.
            records = await self._member.poll(self._read_max, 0.0 if self._under_way else wait_s)
        except Retriable as error:
            await self.settle()
            await self._in_trouble(f"reading: {error}")
            return
        self._trouble = None
        records = [record for record in records if self._is_next(record)]
        if records:
            await self._handle(records)
        else:
            await self.settle()
            await self._open_books()

    def _wake(self) -> float:
        """Start the delay partitions whose time has come; returns how long (seconds) a poll may wait."""
        wait_s = self._settings.poll_wait_max_s
        if not self._wakes:
            return wait_s
        now_ms = self._now_ms()
        for partition, (offset, at_ms) in list(self._wakes.items()):
            if at_ms <= now_ms:
                del self._wakes[partition]
                if self._own.next(partition) is not None and self._member is not None:
                    self._looked[partition] = offset
                    self._member.start(partition, offset)
            else:
                wait_s = min(wait_s, (at_ms - now_ms) / 1000)
        return wait_s

    def _is_next(self, record: Received) -> bool:
        """Whether a record is ours, may move, and was not read before."""
        partition = Partition(record.topic, record.partition)
        offset = self._own.next(partition)
        return offset is not None and record.offset >= offset and partition not in self._wakes

    async def _handle(self, records: list[Received]) -> None:
        epoch = self._own.epoch
        try:
            pending = self._under_way[0] if self._under_way else None
            poll = self._decider.read(records, pending)
            if self._decider.names_unknown_template(poll):
                await self._tables.freshen_templates(self._cluster, self._names, self._settings.tables_timeout_s)
        except StoreBroken as error:
            await self.settle()
            self._rebuild_store(error)
            return
        except Retriable as error:
            await self.settle()
            self._own.rewind()
            await self._in_trouble(f"templates: {error}")
            return
        waits: dict[Partition, tuple[int, int]] = {}
        max_bytes = self._settings.batch_written_max_bytes
        for batch in self._decider.decide(poll, self._clock.now(), self._looked, waits, max_bytes):
            if not await self._commit(batch, epoch):
                return
        self._wait(waits)

    def _wait(self, waits: dict[Partition, tuple[int, int]]) -> None:
        """Let these delay partitions rest; what was fetched of them is fetched again when their time comes."""
        if not waits or self._member is None:
            return
        now_ms = self._now_ms()
        self._member.pause(waits.keys())
        for partition, (offset, at_ms) in waits.items():
            slack_ms = min(WAKE_SLACK_MAX_MS, max(WAKE_SLACK_MIN_MS, self._step_ms[partition.topic] // 50))
            self._wakes[partition] = offset, max(at_ms, now_ms + slack_ms)

    def forget_wakes(self, partitions: Collection[Partition]) -> None:
        """These are no longer ours, or start again."""
        for partition in partitions:
            self._wakes.pop(partition, None)
            self._looked.pop(partition, None)

    # --------------------------------------------------------------------------------------------------- commit

    async def _open_books(self) -> None:
        """Give every partition a position also when there is nothing to route."""
        if self._own.unopened:
            await self._commit(Batch(), self._own.epoch)

    async def _commit(self, batch: Batch, epoch: int) -> bool:
        """Begin to commit a batch once the one before is settled; False where all is read again.

        `epoch` is that of ownership when the batch's records were read.
        """
        if not await self.settle() or epoch != self._own.epoch:
            return False
        # The first transaction gives every partition a position: later on, a missing one is a sign.
        for partition in sorted(self._own.unopened):
            offset = self._own.next(partition)
            if offset is not None:
                batch.offsets.setdefault(partition, offset)
        if not batch.offsets:
            return True
        membership = self._own.membership
        if membership is None or self._transactor is None or not membership.partitions.issuperset(batch.offsets):
            self._own.rewind()
            return False
        offsets = {partition: Committed(offset, POSITION_MARK) for partition, offset in batch.offsets.items()}
        committing = self._timed(self._transactor, Transaction(batch.records, offsets, membership))
        self._under_way = batch, asyncio.get_running_loop().create_task(committing, name="commit")
        self._own.read(batch.offsets)
        for partition in batch.offsets:
            self._looked.pop(partition, None)
        return True

    async def _timed(self, transactor: Transactor, transaction: Transaction) -> Mapping[Partition, int]:
        with self._metrics.batch_seconds.time():
            return await transactor.commit(transaction)

    async def settle(self) -> bool:
        """Wait for the transaction that is under way; False where it failed and everything is set to read it again."""
        async with self._settling:  # the loop, or a change of ownership within its poll
            if self._under_way is None:
                return True
            batch, committing = self._under_way
            await asyncio.wait({committing})  # whoever waits may be cancelled, the transaction not
            self._under_way = None
            try:
                ends = committing.result()
            except Aborted as error:
                await self._aborted(error)
                return False
            except TooLarge as error:
                self._too_large(batch, error)
                return False
            except (CommitUnknown, Retriable) as error:
                await self._unknown(error)
                return False
            self._aborts = 0
            self._read_max = min(self._read_max * 2, self._settings.batch_records_max)
            self._own.committed(batch.offsets)
            self._measures.count(batch)
            try:
                self._remember(batch, {p.number: end for p, end in ends.items() if p.topic == self._names.seen})
            except StoreBroken as error:
                self._rebuild_store(error)
                return False
            return True

    def _remember(self, batch: Batch, positions: dict[int, int]) -> None:
        for number, entries in batch.entries.items():
            before = self._store.applied(number)
            if before is None:
                continue  # emptied meanwhile: it will be read from the log with all that was before it
            self._store.add(number, entries, Applied(positions[number], before.entries + len(entries)))
        self._forget()

    async def _aborted(self, error: Aborted) -> None:
        self._metrics.aborted_total.inc()
        self._own.rewind()
        wait_s = min(ABORTED_WAIT_FIRST_S * 2 ** min(self._aborts, 10), ABORTED_WAIT_MAX_S)
        self._aborts += 1
        log.warning(
            "a transaction was rolled back; reading again", extra={"error": str(error), "in_a_row": self._aborts}
        )
        await asyncio.sleep(wait_s)

    def _too_large(self, batch: Batch, error: TooLarge) -> None:
        """Find the record that makes it so, one by one, and let it go to the dead letters."""
        log.warning("a transaction holds more than the broker takes", extra={"error": str(error), "read": batch.read})
        if batch.read == 1 and batch.last is not None:
            self._decider.refuse(*batch.last)
        else:
            self._read_max = 1
        self._own.rewind()

    async def _unknown(self, error: Exception) -> None:
        """Never assume: a new producer settles what the old one left, then the log is asked what happened."""
        assert self._transactor is not None
        log.error("the outcome of a transaction is unknown", extra={"error": str(error)})
        self._own.stand_still()
        self._own.cancel()
        while not self._stopping:
            self._metrics.rebuilds_total.inc()
            try:
                await self._transactor.rebuild()
                break
            except Retriable as again:
                await self._in_trouble(f"after a transaction of unknown outcome: {again}")
        self._trouble = None
        self._own.take_over()

    def _rebuild_store(self, error: StoreBroken) -> None:
        log.error("the store is damaged and is rebuilt from the log", extra={"error": str(error)})
        self._metrics.store_rebuilds_total.inc()
        self._store.reset()
        self._own.stand_still()
        self._own.take_over()

    async def _in_trouble(self, reason: str) -> None:
        if reason != self._trouble:
            log.error("trouble with the log", extra={"reason": reason})
        self._trouble = reason
        await asyncio.sleep(self._settings.retry_wait_s)

    # ------------------------------------------------------------------------------------------------ on the side

    def _forget(self) -> None:
        """Once a day: keys past the horizon."""
        today = self._now_ms() // 1000 // DAY_S
        if today != self._day:
            self._day = today
            self._own.oldest_day = today - ceil(self._settings.dedup_days) - 1
            self._store.forget(self._own.oldest_day)

    def _now_ms(self) -> int:
        return int(self._clock.now().timestamp() * 1000)


class _Closable(Protocol):
    async def close(self) -> None: ...


async def _take_leave(it: _Closable) -> None:
    """Close. A log that does not answer any more changes nothing: positions are committed, sessions time out."""
    try:
        await it.close()
    except LogError as error:
        log.warning("could not take leave of the log", extra={"error": str(error)})
