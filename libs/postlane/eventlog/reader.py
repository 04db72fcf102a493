"""Ranges of a partition read to their real end, past control records and open transactions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from postlane.eventlog.errors import EndNotReached
from postlane.eventlog.kafka_config import LIBRARY_LOG, ClientConfig
from postlane.eventlog.kafka_errors import translate, translated
from postlane.eventlog.ports import Partition, Received
from postlane.eventlog.records import received
from postlane.eventlog.worker import Worker

BATCH_RECORDS_MAX = 1_000
_IDLE_MAX = 2  # consumers kept for the next read, per isolation level
_SLICE_S = 0.1
_LOOK_UP_S = 5.0


class Readers:
    """Assign-based consumers, reused for successive reads; several reads at once each get their own."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._idle: dict[bool, list[_Reader]] = {True: [], False: []}
        self._made = 0

    async def read(
        self, partition: Partition, start: int, end: int, *, deadline_s: float, committed: bool
    ) -> AsyncIterator[Sequence[Received]]:
        if start >= end:
            return
        reader = self._take(committed)
        healthy = False
        try:
            async for batch in reader.range(partition, start, end, deadline_s):
                yield batch
            healthy = True
        finally:
            if healthy and len(self._idle[committed]) < _IDLE_MAX:
                self._idle[committed].append(reader)
            else:
                reader.close_soon()

    def _take(self, committed: bool) -> _Reader:
        if self._idle[committed]:
            return self._idle[committed].pop()
        self._made += 1
        return _Reader(self._config, committed, self._made)

    async def close(self) -> None:
        for idle in self._idle.values():
            while idle:
                await idle.pop().close()


class _Reader:
    def __init__(self, config: ClientConfig, committed: bool, number: int) -> None:
        self._conf = config.reader(committed=committed)
        self._worker = Worker(f"postlane-read-{number}")
        self._consumer: Any = None
        self._topics: set[str] = set()  # those that it has read
        self._reached = 0

    async def range(
        self, partition: Partition, start: int, end: int, deadline_s: float
    ) -> AsyncIterator[Sequence[Received]]:
        deadline = time.monotonic() + deadline_s
        try:
            await self._worker.call(self._assign, partition, start)
            while self._reached < end:
                batch = await self._worker.call(self._next, partition, end, deadline)
                if batch:
                    yield batch
                elif time.monotonic() >= deadline and self._reached < end:
                    raise EndNotReached(
                        f"{partition.topic}[{partition.number}]: at {self._reached} of {end} after {deadline_s} s; "
                        "a dead writer's transaction may still be open, or no broker answers"
                    )
            await self._worker.call(self._consumer.unassign)
        except KafkaException as error:
            raise translated(error, f"read {partition.topic}[{partition.number}]") from error

    def _assign(self, partition: Partition, start: int) -> None:
        if self._consumer is None:
            self._consumer = Consumer(self._conf, logger=LIBRARY_LOG)
        if self._topics and partition.topic not in self._topics:
            # A consumer that has read another topic learns of a new one's leader only at its next one-second timer.
            self._consumer.list_topics(partition.topic, timeout=_LOOK_UP_S)
        self._topics.add(partition.topic)
        self._reached = start
        self._consumer.assign([TopicPartition(partition.topic, partition.number, start)])

    def _next(self, partition: Partition, end: int, deadline: float) -> list[Received]:
        """The next records below `end`; moves `_reached`, which control records and gaps move too."""
        wait_s = max(0.0, min(_SLICE_S, deadline - time.monotonic()))
        messages = self._consumer.consume(1, wait_s)
        if messages:
            messages += self._consumer.consume(BATCH_RECORDS_MAX - 1, 0)
        records = []
        for message in messages:
            error = message.error()
            if error is None:
                if message.offset() < end:
                    records.append(received(message))
                self._reached = max(self._reached, message.offset() + 1)
            elif error.code() == KafkaError._PARTITION_EOF:
                self._reached = max(self._reached, message.offset())
            else:
                raise translate(error, f"read {partition.topic}[{partition.number}] from {self._reached}")
        position = self._consumer.position([TopicPartition(partition.topic, partition.number)])[0].offset
        self._reached = max(self._reached, position)
        return records

    def close_soon(self) -> None:
        if self._consumer is not None:
            self._worker.call(self._consumer.close)
        self._worker.stop()

    async def close(self) -> None:
        if self._consumer is not None:
            await self._worker.call(self._consumer.close)
        self._worker.stop()
