"""Asks the cluster now and then how many brokers it has and whether replicas are in sync, and says so in /metrics."""

from __future__ import annotations

import asyncio
from typing import Protocol

from postlane.eventlog.admin import ClusterHealth
from postlane.eventlog.errors import LogError
from postlane.telemetry.metrics import KafkaMetrics

EVERY_S = 15.0


class Asks(Protocol):
    async def health(self) -> ClusterHealth:
        """Raises LogError."""


async def watch_brokers(admin: Asks, metrics: KafkaMetrics, every_s: float = EVERY_S) -> None:
    """Look every `every_s` seconds until cancelled. A cluster that does not answer has no broker; what was known of
    its partitions stays."""
    while True:
        try:
            found = await admin.health()
        except LogError:
            metrics.brokers.set(0)
        else:
            metrics.brokers.set(found.brokers)
            metrics.under_replicated.set(found.under_replicated)
            metrics.offline.set(found.offline)
        await asyncio.sleep(every_s)
