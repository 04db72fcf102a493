"""What this process sees of each provider: its results, by recipient domain, summed and published once a second.

Advisory (`mail.observations`): outside the transactions, bounded, and no trouble of it ever reaches a mail. While Kafka
does not acknowledge what was said last, nothing more is said and the sums go on growing, which they do within bounds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from postlane.clock import Clock
from postlane.core.breaker import BreakerState
from postlane.core.health_facts import OTHER, Observed
from postlane.core.health_sums import OF_REPLY, ByDomain, Kind
from postlane.core.replies import classify
from postlane.core.smtp_events import Accepted, InDoubt, Refused
from postlane.eventlog.codec import encode, headers
from postlane.eventlog.errors import LogError
from postlane.eventlog.ports import Appender, Outgoing
from postlane.telemetry.metrics import SenderMetrics

if TYPE_CHECKING:
    from postlane_sender.link import Link

EVERY_S = 1.0
DOMAIN_MAX_CHARS = 255
_SHUT = (BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN)
_log = logging.getLogger("postlane.sender")


class Observer(Protocol):
    """Told by the links of what happens at their providers; never raises."""

    def dot_sent(self, provider: str, item: Any) -> None:
        """Body and dot of this mail were handed over: the answer to it is awaited from now on."""

    def result(self, provider: str, item: Any, result: object) -> None:
        """The one result of a mail that was offered to a session."""

    def unreached(self, provider: str) -> None:
        """A session could not be opened, or was lost."""


class Unobserved:
    """Nobody looks."""

    def dot_sent(self, provider: str, item: Any) -> None:
        return

    def result(self, provider: str, item: Any, result: object) -> None:
        return

    def unreached(self, provider: str) -> None:
        return


class Observations:
    """The sums of one process (Observer), and what publishes them."""

    def __init__(self, instance: str, clock: Clock) -> None:
        self._instance = instance
        self._clock = clock
        self._sums: dict[str, ByDomain] = {}
        self._awaited: dict[str, dict[Any, float]] = {}  # by provider: mails and since when, the oldest first

    def dot_sent(self, provider: str, item: Any) -> None:
        self._awaited.setdefault(provider, {})[item] = self._clock.monotonic()

    def result(self, provider: str, item: Any, result: object) -> None:
        sent_at = self._awaited.get(provider, {}).pop(item, None)
        if isinstance(result, Accepted):
            kind = Kind.DELIVERED
        elif isinstance(result, Refused):
            kind = OF_REPLY[classify(result.reply, result.phase)]
        elif isinstance(result, InDoubt):
            kind, sent_at = Kind.FAILED, None  # it was not answered
        else:
            return  # not begun, or not sendable: nothing was asked of the provider
        answer_s = None if sent_at is None else self._clock.monotonic() - sent_at
        domain = item.recipient.rpartition("@")[2].lower()
        self._of(provider).note(domain if 0 < len(domain) <= DOMAIN_MAX_CHARS else OTHER, kind, answer_s)

    def unreached(self, provider: str) -> None:
        self._of(provider).total.note(Kind.UNREACHED)

    def _of(self, provider: str) -> ByDomain:
        sums = self._sums.get(provider)
        if sums is None:
            sums = self._sums[provider] = ByDomain()
        return sums

    def take(self, shut: dict[str, BreakerState]) -> list[Observed]:
        """What there is to say of the providers since the last time, by how their breakers stand; it is then said."""
        now, at, said = self._clock.monotonic(), self._clock.now(), []
        for provider, breaker in shut.items():
            sums = self._sums.pop(provider, None)
            awaited = self._awaited.get(provider)
            wait_s = now - next(iter(awaited.values())) if awaited else 0.0
            if sums is None and breaker is BreakerState.CLOSED and wait_s < EVERY_S:
                continue
            sums = sums or ByDomain()
            said.append(
                Observed(
                    provider=provider,
                    instance=self._instance,
                    at=at,
                    breaker=breaker,
                    oldest_wait_s=round(max(0.0, wait_s), 3),
                    total=sums.total.tally,
                    domains={domain: of_one.tally for domain, of_one in sums.named().items()},
                )
            )
        return said


class Reporter:
    """Publishes what was observed, at most one batch at a time."""

    def __init__(self, observations: Observations, topic: str, appender: Appender, metrics: SenderMetrics) -> None:
        self._observations = observations
        self._topic = topic
        self._appender = appender
        self._metrics = metrics
        self._under_way: set[asyncio.Task[None]] = set()

    def report(self, links: Sequence[Link]) -> None:
        """Say what there is to say, unless what was said before is not acknowledged yet."""
        if self._under_way:
            return
        shut: dict[str, BreakerState] = {}
        for link in links:
            shut[link.name] = max(shut.get(link.name, BreakerState.CLOSED), link.breaker.state, key=_SHUT.index)
        for one in self._observations.take(shut):
            task = asyncio.get_running_loop().create_task(self._say(one))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _say(self, one: Observed) -> None:
        ident = f"{self._topic}/{one.provider}/{one.instance}/{one.at.timestamp():.3f}"
        about = headers(Observed, f"postlane/sender/{one.instance}", ident, one.at)
        try:
            await self._appender.append(Outgoing(self._topic, None, one.provider.encode(), encode(one), about))
        except LogError as error:
            # It may have been written after all, so it is not said again: too little rather than twice.
            self._metrics.observations_total.labels("lost").inc()
            _log.debug("an observation was lost", extra={"provider": one.provider, "reason": str(error)})
        else:
            self._metrics.observations_total.labels("published").inc()

    def close(self) -> None:
        """Wait for nothing any more."""
        for task in self._under_way:
            task.cancel()
