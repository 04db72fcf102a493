"""A health worker (postlane.service.Service): observations in, the fleet's view out once a second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from postlane.clock import Clock
from postlane.config import Environment
from postlane.core.health_facts import Observed, ProviderHealth
from postlane.core.policy import Health
from postlane.eventlog.codec import Unreadable, decode_record, encode, headers
from postlane.eventlog.errors import Retriable
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.ports import Received
from postlane_health.app import FaustApp
from postlane_health.measures import Measures
from postlane_health.watch import Watch, Word

EVERY_S = 1.0
WRITE_TIMEOUT_S = 5.0
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
STUCK_S = 10.0  # the view is made every second
_log = logging.getLogger("postlane.health")


class HealthService:
    """One worker; as many as there are partitions may run, each watches the providers of its own."""

    def __init__(self, environment: Environment, policy: Health, measures: Measures, clock: Clock) -> None:
        self._environment = environment
        self._clock = clock
        self._measures = measures
        self._watch = Watch(policy, environment.instance_id)
        self._app: FaustApp | None = None
        self._stopping = asyncio.Event()
        self._joined = False
        self._problem: str | None = None
        self._looked_at = clock.monotonic()

    async def start(self) -> None:
        await self._let_go()
        await self._topics_are_there()
        self._app = app = FaustApp(self._environment, self._receive, self._assigned)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await app.start()
        except TimeoutError:
            raise Retriable(f"not started within {START_TIMEOUT_S:g} s") from None
        except (ConnectionError, OSError) as error:
            raise Retriable(str(error) or type(error).__name__) from None
        self._looked_at = self._clock.monotonic()

    async def _topics_are_there(self) -> None:
        """Faust would wait for a missing topic without a word."""
        environment = self._environment
        log = KafkaLog(environment.bootstrap_servers, environment.kafka, f"postlane-health-{environment.instance_id}")
        try:
            for topic in (environment.names.observations, environment.names.health):
                await log.partition_count(topic)
        finally:
            await log.close()

    async def run(self) -> None:
        app = self._app
        assert app is not None
        while not self._stopping.is_set():
            reason = app.broken()
            if reason is not None:
                raise reason
            await self._look(app)
            try:
                async with asyncio.timeout(EVERY_S):
                    await self._stopping.wait()
            except TimeoutError:
                pass
        await self._look(app)
        await self._let_go()

    async def stop(self) -> None:
        self._stopping.set()

    async def _let_go(self) -> None:
        app, self._app = self._app, None
        if app is None:
            return
        stopping = asyncio.ensure_future(app.stop())
        # Not a time-out around the await: what Faust waits for within may swallow the cancellation.
        await asyncio.wait({stopping}, timeout=STOP_TIMEOUT_S)
        if not stopping.done():
            stopping.cancel()
            _log.warning("Faust did not stop in time", extra={"timeout_s": STOP_TIMEOUT_S})
        elif (error := stopping.exception()) is not None:
            _log.warning("Faust did not stop in order", extra={"reason": f"{type(error).__name__}: {error}"})

    def not_ready(self) -> str | None:
        if not self._joined:
            return "not a member of the group yet"
        if self._clock.monotonic() - self._looked_at > STUCK_S:
            return f"nothing was looked at for {STUCK_S:g} s"
        return self._problem

    # ------------------------------------------------------------------------------------------------ what Faust tells

    def _assigned(self, numbers: Iterable[int]) -> None:
        before = self._watch.partitions
        self._watch.assigned(numbers, self._clock.monotonic())
        self._joined = True
        now = self._watch.partitions
        self._measures.partitions.set(len(now))
        _log.info("partitions", extra={"owned": sorted(now), "new": sorted(now - before)})

    def _receive(self, record: Received) -> None:
        try:
            seen: Observed | None = decode_record(Observed, record)
        except Unreadable as error:
            _log.debug("an observation cannot be read", extra={"offset": record.offset, "reason": error.reason})
            seen = None
        now, at = self._clock.monotonic(), self._clock.now()
        outcome = self._watch.receive(record.partition, record.offset, seen, now, at)
        self._measures.observations.labels(outcome).inc()

    # ------------------------------------------------------------------------------------------------------ the view

    async def _look(self, app: FaustApp) -> None:
        now, at = self._clock.monotonic(), self._clock.now()
        self._looked_at = now
        view = self._watch.view(now, at)
        self._measures.tell([word.health for word in view])
        news = self._watch.news(view, now)
        if not news:
            return
        results = await asyncio.gather(*(self._say(app, word) for word in news), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        self._measures.written.inc(len(results) - len(failures))
        self._measures.failed.inc(len(failures))
        self._problem = None
        if failures:
            self._problem = f"mail.health cannot be written: {type(failures[0]).__name__}: {failures[0]}"
            _log.warning("mail.health cannot be written", extra={"reason": self._problem})

    async def _say(self, app: FaustApp, word: Word) -> None:
        health = word.health
        ident = f"{health.provider}/{health.instance}/{health.at.timestamp():.3f}"
        about = list(headers(ProviderHealth, f"postlane/health/{health.instance}", ident, health.at))
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await app.send(word.partition, health.provider.encode(), encode(health), about)
        self._watch.said(word, self._clock.monotonic())
        if health.reason:
            _log.debug("said", extra={"provider": health.provider, "state": health.state, "reason": health.reason})
