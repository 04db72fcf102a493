"""A bounce intake on the in-memory log, which can fail at a chosen append, and what it wrote."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry
from tests.unit.dsn_samples import DELIVERY

from postlane.bounce_keys import ReturnPaths
from postlane.clock import SystemClock
from postlane.core.policy import Bounces, Config
from postlane.eventlog.memory import MemoryCluster, MemoryLog
from postlane.eventlog.memory_faults import Fault
from postlane.eventlog.ports import Partition, Received
from postlane.eventlog.topics import TopicNames, declare
from postlane.telemetry.metrics import BOUNCE_OUTCOMES, ProducerMetrics
from postlane.telemetry.tracing import OFF
from postlane_producer.bounces import BounceIntake

NAMES = TopicNames("b.")


class Fails:
    """Kafka fails at the n-th append, once."""

    def __init__(self) -> None:
        self.at_append = 0
        self.seen = 0

    async def at(self, point: str, who: str) -> Fault | None:
        if point != "append":
            return None
        self.seen += 1
        return Fault.UNREACHABLE if self.seen == self.at_append else None


class Gate:
    """An intake on the in-memory log, and what it wrote."""

    def __init__(self, folder: Path, suppress: bool = True) -> None:
        (folder / "key").write_text("a-key-of-sixteen-bytes")
        self.paths = ReturnPaths(Bounces(address="bounces@mail.example.org", key_file=folder / "key"), SystemClock())
        self.faults = Fails()
        self.cluster = MemoryCluster()
        self.cluster.create_topics(declare(NAMES, ("bulk",), Config().topics))
        self.log = MemoryLog(self.cluster, "gateway", self.faults)
        self.registry = CollectorRegistry()
        self.intake = BounceIntake(
            self.log.appender(),
            NAMES,
            self.paths,
            suppress=suppress,
            clock=SystemClock(),
            tracer=OFF,
            metrics=ProducerMetrics(self.registry),
        )

    @property
    def address(self) -> str:
        path = self.paths.of(DELIVERY)
        assert path is not None
        return path

    async def written(self, topic: str) -> list[Received]:
        found: list[Received] = []
        for number in range(await self.log.partition_count(topic)):
            place = Partition(topic, number)
            end = (await self.log.high_watermarks([place]))[place]
            async for records in self.log.read(place, 0, end, deadline_s=1):
                found += records
        return found

    def counted(self) -> dict[str, float]:
        counts = {
            outcome: self.registry.get_sample_value("postlane_producer_bounces_total", {"outcome": outcome}) or 0.0
            for outcome in BOUNCE_OUTCOMES
        }
        return {outcome: count for outcome, count in counts.items() if count}
