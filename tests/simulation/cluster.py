"""The in-memory cluster under observation: every committed transaction is shown to the oracles as it is decided.

Adds what the plain one does not do by itself: markers that come late. EndTxn is answered when the commit is decided;
readers see it, and its offsets become stable, when the markers are written. Until then the same producer cannot begin
again (CONCURRENT_TRANSACTIONS).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextvars import Context
from typing import Any

from postlane.core.rules import Rules
from postlane.eventlog.memory import MemoryLog
from postlane.eventlog.memory_broker import MemoryCluster, Producer
from postlane.eventlog.memory_faults import Faults
from postlane.eventlog.memory_group import Token
from postlane.eventlog.ports import Committed, Outgoing, Partition, Received


class SimulatedLog(MemoryLog):
    """The log of one process; without `restore_to_high_watermark` it takes the last stable offset for the end."""

    def __init__(self, cluster: MemoryCluster, name: str, faults: Faults | None, rules: Rules) -> None:
        super().__init__(cluster, name, faults)
        self._rules = rules

    async def high_watermarks(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        ends = await super().high_watermarks(partitions)
        return ends if self._rules.restore_to_high_watermark else self.cluster.last_stable_offsets(partitions)


Decided = Callable[[str, list[Received], Mapping[str, Mapping[Partition, Committed]]], None]


class WatchedCluster(MemoryCluster):
    """`decided(producer, records, offsets by group)` is called for what was committed, also outside transactions."""

    def __init__(self, decided: Decided, marker_delay_s: Callable[[], float], **options: Any) -> None:
        super().__init__(**options)
        self.decided = decided
        self.marker_delay_s = marker_delay_s
        self.checks_members = True
        self._ending: dict[int, asyncio.TimerHandle] = {}

    def write(self, record: Outgoing) -> tuple[int, int]:
        number, offset = super().write(record)
        written = self.log(Partition(record.topic, number)).entries[-1].record
        assert written is not None
        self.decided("-", [written], {})
        return number, offset

    def is_ending(self, transactional_id: str) -> bool:
        """Whether its last transaction's markers are still to come."""
        producer = self.producers.get(transactional_id)
        return producer is not None and producer.id in self._ending

    def init_producer(self, transactional_id: str) -> int:
        producer = self.producers.get(transactional_id)
        if producer is not None and producer.id in self._ending:
            self._write_markers(producer)
        return super().init_producer(transactional_id)

    def offsets_open(
        self, transactional_id: str, epoch: int, token: Token, offsets: Mapping[Partition, Committed]
    ) -> None:
        if not self.checks_members:
            token = token._replace(generation=-1, member_id="")
        super().offsets_open(transactional_id, epoch, token, offsets)

    def _end(self, producer: Producer, *, commit: bool) -> None:
        if producer.id in self._ending:
            return  # decided already; a repeated EndTxn changes nothing
        if commit and producer.is_open:
            name = next(name for name, it in self.producers.items() if it is producer)
            records = [e.record for entries in producer.written.values() for e in entries if e.record is not None]
            self.decided(name, records, producer.offsets)
            delay_s = self.marker_delay_s()
            if delay_s > 0:
                if producer.timer is not None:
                    producer.timer.cancel()
                    producer.timer = None
                loop = asyncio.get_running_loop()
                self._ending[producer.id] = loop.call_later(delay_s, self._write_markers, producer, context=Context())
                return
        super()._end(producer, commit=commit)

    def _write_markers(self, producer: Producer) -> None:
        self._ending.pop(producer.id).cancel()
        super()._end(producer, commit=True)
