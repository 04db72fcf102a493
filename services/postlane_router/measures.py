"""What the router tells of itself: counts of what was committed, lag, backlog of the delay stage."""

from __future__ import annotations

import asyncio

from postlane.eventlog.errors import LogError, Retriable
from postlane.eventlog.ports import Log
from postlane.eventlog.topics import TopicNames
from postlane.telemetry.metrics import RouterMetrics
from postlane_router import tracing
from postlane_router.batch import Batch
from postlane_router.ownership import Ownership
from postlane_router.store import SeenStore, StoreBroken
from postlane_router.tables import RouterTables


class Measures:
    """Sets the metrics of one router."""

    def __init__(
        self,
        cluster: Log,
        names: TopicNames,
        own: Ownership,
        store: SeenStore,
        metrics: RouterMetrics,
        every_s: float,
    ) -> None:
        self._cluster = cluster
        self._topics = (names.requests, *names.delays)
        self._own = own
        self._store = store
        self._metrics = metrics
        self._every_s = every_s

    def count(self, batch: Batch) -> None:
        """A batch was committed."""
        metrics = self._metrics
        tracing.over(batch)
        metrics.batch_records.observe(batch.read)
        for outcome, count in batch.outcomes.items():
            metrics.requests_total.labels(outcome).inc(count)
        for lane, count in batch.lanes.items():
            metrics.deliveries_total.labels(lane).inc(count)
        for step, count in batch.steps.items():
            metrics.delayed_total.labels(step).inc(count)
        for reason, count in batch.letters.items():
            metrics.dead_letters_total.labels(reason).inc(count)

    async def watch(self, tables: RouterTables) -> None:
        """Look at the lag now and then, and whether the tables are still followed (where not, ownership fails)."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                tables.check()
            except LogError as error:
                self._own.failure = error
                return
            try:
                await self._look()
            except (Retriable, StoreBroken):
                continue  # the loop meets it too, and says so

    async def _look(self) -> None:
        self._metrics.partitions.set(len(self._own.books))
        self._metrics.taking_over.set(len(self._own.unready()))
        self._metrics.remembered_keys.set(self._store.keys())
        moving = {p: book.next for p, book in self._own.books.items() if book.next is not None}
        ends = await self._cluster.high_watermarks(list(moving)) if moving else {}
        lag = dict.fromkeys(self._topics, 0)
        for partition, end in ends.items():
            lag[partition.topic] += max(0, end - moving[partition])
        for topic, records in lag.items():
            self._metrics.lag.labels(topic).set(records)
