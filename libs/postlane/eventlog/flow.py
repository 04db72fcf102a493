"""What the caller of a Kafka member wants of each partition, and how it gets there.

Decided on the event loop (start, pause, resume), told to the library by the poll thread before each fetch. What had
been fetched before a command is sorted here when it reaches the loop: dropped, kept for later, or delivered.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from postlane.eventlog.errors import LogError
from postlane.eventlog.kafka_errors import translate
from postlane.eventlog.ports import Partition, Received

_TRIES_MAX = 2_000  # of a start before the fetcher is ready, one every few milliseconds


@dataclass(slots=True)
class _Flow:
    """One partition; `offset` is None once the library has been told."""

    offset: int | None = None
    running: bool = False
    started: bool = False
    tries: int = 0
    kept: deque[Received] = field(default_factory=deque)


class Flows:
    """The partitions that are ours. Commands come from the event loop, `apply` from the poll thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flows: dict[Partition, _Flow] = {}
        self._dirty: set[Partition] = set()
        self.moves = 0  # counts commands, to tell a batch that was fetched before one

    # -- on the event loop

    def add(self, partitions: Iterable[Partition]) -> None:
        with self._lock:
            self._flows.update((p, _Flow()) for p in partitions)
            self.moves += 1

    def remove(self, partitions: Iterable[Partition]) -> None:
        with self._lock:
            for partition in partitions:
                self._flows.pop(partition, None)
                self._dirty.discard(partition)
            self.moves += 1

    def start(self, partition: Partition, offset: int) -> bool:
        """False when the partition is not ours."""
        with self._lock:
            flow = self._flows.get(partition)
            if flow is None:
                return False
            flow.offset, flow.running, flow.started, flow.tries = offset, True, True, 0
            flow.kept.clear()
            self._command(partition)
            return True

    def set_running(self, partitions: Collection[Partition], running: bool) -> None:
        with self._lock:
            for partition in partitions:
                flow = self._flows.get(partition)
                if flow is not None and flow.started and flow.running != running:
                    flow.running = running
                    self._command(partition)

    def _command(self, partition: Partition) -> None:
        self._dirty.add(partition)
        self.moves += 1

    def sort(self, records: list[Received], moves: int) -> list[Received]:
        """What may be delivered of a batch that was fetched when `moves` commands had been given."""
        if moves == self.moves and not self._dirty:
            return records
        through = []
        for record in records:
            flow = self._flows.get(Partition(record.topic, record.partition))
            if flow is None or flow.offset is not None:
                continue  # no longer ours, or fetched before the start that is still to come
            if flow.running and not flow.kept:
                through.append(record)
            else:
                flow.kept.append(record)
        return through

    def take_kept(self, max_records: int) -> list[Received]:
        taken: list[Received] = []
        for flow in self._flows.values():
            while flow.running and flow.kept and len(taken) < max_records:
                taken.append(flow.kept.popleft())
        return taken

    # -- on the poll thread

    def is_started(self, topic: str, partition: int) -> bool:
        flow = self._flows.get(Partition(topic, partition))
        return flow is not None and flow.started

    def apply(self, consumer: Any) -> bool:
        """Tell the library what is wanted; False while something has to be tried again soon. Raises LogError."""
        if not self._dirty:
            return True
        with self._lock:
            for partition in sorted(self._dirty):
                flow = self._flows.get(partition)
                if flow is None or _apply(consumer, partition, flow):
                    self._dirty.discard(partition)
            return not self._dirty


def _apply(consumer: Any, partition: Partition, flow: _Flow) -> bool:
    here = TopicPartition(partition.topic, partition.number)
    if flow.offset is not None:
        # Resume first: a seek of a partition that is still paused can be forgotten or wait a second (librdkafka 2.16,
        # found by trial); what a fetch in between brings belongs to an older version and is dropped.
        consumer.resume([here])
        try:
            consumer.seek(TopicPartition(partition.topic, partition.number, flow.offset))
        except KafkaException as error:
            flow.tries += 1
            if error.args[0].code() == KafkaError._STATE and flow.tries < _TRIES_MAX:
                return False  # the fetcher has not begun yet
            raise _failed(error, partition, flow) from error
        flow.offset = None
    if flow.running:
        consumer.resume([here])
    else:
        consumer.pause([here])
    return True


def _failed(error: KafkaException, partition: Partition, flow: _Flow) -> LogError:
    return translate(error.args[0], f"start {partition.topic}[{partition.number}] at {flow.offset}")
