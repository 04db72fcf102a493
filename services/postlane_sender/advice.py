"""Once a second: what this process observed goes out, and what the fleet says of each provider goes to the breakers.

Both are advisory. Whatever happens here is said in the log and the metrics, and sending goes on as it did: a health
topic that is missing, forbidden or silent means that each breaker stands alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from postlane.clock import Clock
from postlane.core.health_state import HealthState
from postlane.core.policy import Config
from postlane.eventlog.health_table import HealthTable
from postlane.eventlog.ports import Log, Tail
from postlane.eventlog.topics import TopicNames
from postlane.telemetry.metrics import SenderMetrics
from postlane_sender.link import Link
from postlane_sender.observations import EVERY_S, Observations, Reporter

LISTEN_AGAIN_S = 30.0  # after the topic could not be followed
CLOSE_TIMEOUT_S = 1.0
_VALUES = {HealthState.UNKNOWN: 0, HealthState.UP: 1, HealthState.DEGRADED: 2, HealthState.DOWN: 3}
_log = logging.getLogger("postlane.sender")


class Advice:
    """What one process tells the fleet of its providers, and hears from it."""

    def __init__(
        self,
        log: Log,
        names: TopicNames,
        config: Config,
        observations: Observations,
        metrics: SenderMetrics,
        clock: Clock,
    ) -> None:
        self._log = log
        self._topic = names.health
        self._metrics = metrics
        self._clock = clock
        self._reporter = Reporter(
            observations, names.observations, log.appender(close_timeout_s=CLOSE_TIMEOUT_S), metrics
        )
        self._table = HealthTable(config.providers, clock, config.health.hint_s)
        self._listens = config.health.hint_s > 0
        self._tail: Tail | None = None
        self._listen_at = 0.0

    async def run(self, links: Sequence[Link]) -> None:
        """Until cancelled."""
        try:
            while True:
                await asyncio.sleep(EVERY_S)
                try:
                    await self._listen()
                    self._hand_on(links)
                    self._reporter.report(links)
                except Exception:  # no mail depends on this, and none may suffer from it
                    _log.exception("provider health: this second is skipped")
                    self._metrics.observations_total.labels("failed").inc()
        finally:
            self._reporter.close()

    async def _listen(self) -> None:
        now = self._clock.monotonic()
        if self._tail is None:
            if self._listens and now >= self._listen_at:
                self._tail = self._log.tail(self._topic, self._table.apply)
            return
        try:
            _ = self._tail.lag
        except Exception as error:
            _log.warning("the fleet's provider health is not heard", extra={"reason": str(error)})
            tail, self._tail = self._tail, None
            self._listen_at = now + LISTEN_AGAIN_S
            await tail.close()

    def _hand_on(self, links: Sequence[Link]) -> None:
        now = self._clock.monotonic()
        for link in links:
            hint = self._table.state(link.name)
            link.breaker.hinted(hint, now)
            self._metrics.provider_hint.labels(link.name).set(_VALUES[hint])
