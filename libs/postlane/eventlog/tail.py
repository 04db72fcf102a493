"""A compact topic followed as a table."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from postlane.eventlog.errors import Fatal, Retriable
from postlane.eventlog.kafka_config import LIBRARY_LOG, Conf
from postlane.eventlog.kafka_errors import translate
from postlane.eventlog.ports import Partition, Received
from postlane.eventlog.records import received
from postlane.eventlog.worker import Worker

BATCH_RECORDS_MAX = 500
_SLICE_S = 0.25
_RETRY_WAIT_S = 0.5
Ends = Callable[[], Awaitable[Mapping[Partition, int]]]


class _Batch(NamedTuple):
    """What one fetch brought: records, how far each partition was read, and where each is known to end."""

    records: list[Received]
    reached: dict[int, int]
    ends: dict[int, int]


class KafkaTail:
    """Fills `ports.Tail`: a task on the caller's loop that applies what a thread of its own fetches.

    What it cannot mend (no access, an exception of `apply`) ends it, and `ready` and `lag` raise that from then on.
    """

    def __init__(self, conf: Conf, topic: str, ends: Ends, apply: Callable[[Received], None]) -> None:
        self._conf = conf
        self._topic = topic
        self._ends = ends
        self._apply = apply
        self._worker = Worker(f"postlane-tail-{topic}")
        self._consumer: Any = None
        self._reached: dict[int, int] = {}
        self._known: dict[int, int] = {}
        self._first: dict[int, int] = {}
        self._ready = asyncio.Event()
        self._trouble: Exception | None = None
        self._task = asyncio.get_running_loop().create_task(self._follow(), name=f"tail {topic}")

    async def ready(self, timeout_s: float) -> None:
        waiter = asyncio.ensure_future(self._ready.wait())
        try:
            await asyncio.wait({waiter, self._task}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
        self._check()
        if not self._ready.is_set():
            why = f": {self._trouble}" if self._trouble else f", {self.lag} records are missing"
            raise Retriable(f"{self._topic} was not read to its end in {timeout_s} s{why}")

    @property
    def lag(self) -> int:
        self._check()
        return sum(max(0, end - self._reached.get(number, 0)) for number, end in self._known.items())

    def _check(self) -> None:
        if self._task.done() and not self._task.cancelled():
            error = self._task.exception()
            if error is not None:
                raise error

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await self._worker.call(consumer.close)
        self._worker.stop()

    async def _follow(self) -> None:
        await self._begin()
        while True:
            try:
                batch = await self._worker.call(self._next)
            except Retriable as error:
                self._trouble = error
                await asyncio.sleep(_RETRY_WAIT_S)
                continue
            for record in batch.records:
                self._apply(record)
            self._reached.update(batch.reached)
            self._known.update(batch.ends)
            self._look()

    async def _begin(self) -> None:
        while not self._first:
            try:
                self._first = {p.number: end for p, end in (await self._ends()).items()}
                self._known = dict(self._first)
                await self._worker.call(self._assign)
            except Retriable as error:
                self._trouble = error
                await asyncio.sleep(_RETRY_WAIT_S)
        self._look()

    def _look(self) -> None:
        if not self._ready.is_set() and all(self._reached.get(n, 0) >= end for n, end in self._first.items()):
            self._ready.set()

    # -- on the worker's thread

    def _assign(self) -> None:
        try:
            self._consumer = Consumer(self._conf, logger=LIBRARY_LOG)
            self._consumer.assign([TopicPartition(self._topic, n, OFFSET_BEGINNING) for n in sorted(self._first)])
        except KafkaException as error:
            raise translate(error.args[0], f"follow {self._topic}") from error

    def _next(self) -> _Batch:
        messages = self._consumer.consume(1, _SLICE_S)
        if messages:
            messages += self._consumer.consume(BATCH_RECORDS_MAX - 1, 0)
        batch = _Batch([], {}, {})
        for message in messages:
            error = message.error()
            if error is None:
                batch.records.append(received(message))
                batch.reached[message.partition()] = message.offset() + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                batch.reached[message.partition()] = message.offset()
            else:
                self._trouble = translate(error, f"follow {self._topic}")
                if isinstance(self._trouble, Fatal):
                    raise self._trouble
        for number in self._first:
            _, end = self._consumer.get_watermark_offsets(TopicPartition(self._topic, number), cached=True)
            if end >= 0:
                batch.ends[number] = end
        return batch
