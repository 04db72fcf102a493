"""Wires a sender process: the log, the tables, one loop per lane, their couriers, recorders and composer."""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from pathlib import Path

from postlane.bounce_keys import ReturnPaths
from postlane.clock import SystemClock
from postlane.config import ConfigurationError
from postlane.core.policy import Provider
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.ports import Log, Tail
from postlane.eventlog.tables import ControlTable, TemplateTable
from postlane.service import ServiceContext
from postlane.telemetry.tracing import Tracer
from postlane.twin import refuse_twin
from postlane_sender import tracing
from postlane_sender.advice import Advice
from postlane_sender.backlog import watch_backlog
from postlane_sender.composer import Composer
from postlane_sender.config import lanes_of, password_of, settings_of_tests
from postlane_sender.connection import Connection
from postlane_sender.courier import OpenSession, Pool
from postlane_sender.lane import LaneState
from postlane_sender.link import Link
from postlane_sender.loop import LaneLoop
from postlane_sender.observations import Observations
from postlane_sender.recorder import FlightRecorder, NoRecorder
from postlane_sender.session import ProviderDown, limits_of, open_session, tls_context_of

TABLES_TIMEOUT_S = 30.0
_log = logging.getLogger("postlane.sender")


class Sender:
    """A sender process (postlane.service.Service)."""

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._lanes = lanes_of(context.environment, context.config)
        self._rules, self._failpoints = settings_of_tests()
        self._sessions = _sessions(list(context.config.providers.values()), context.tracer)
        bounces = context.config.bounces
        self._return_paths = None if bounces is None else ReturnPaths(bounces, SystemClock())
        self._life = str(uuid.uuid4())
        self._observations = Observations(context.environment.instance_id, SystemClock())
        self._log: Log | None = None
        self._tails: list[Tail] = []
        self._links: list[Link] = []
        self._loops: list[LaneLoop] = []
        self._recorders: dict[str, FlightRecorder | NoRecorder] = {}
        self._problem: str | None = "starting"

    async def start(self) -> None:
        await self._let_go()
        environment = self._context.environment
        self._log = log = KafkaLog(environment.bootstrap_servers, environment.kafka, client_id=self._context.client_id)
        groups = [environment.names.sender_group(lane) for lane in self._lanes]
        await refuse_twin(log.admin, groups, environment.instance_id, self._context.nonce)
        control, templates = ControlTable(), TemplateTable()
        names = environment.names
        self._tails = [log.tail(names.control, control.apply), log.tail(names.templates, templates.apply)]
        for tail in self._tails:
            await tail.ready(TABLES_TIMEOUT_S)
        for name in self._lanes:
            loop = LaneLoop(self._lane(name, log, control, Composer(templates, self._return_paths)))
            self._loops.append(loop)
            await loop.start(client_id=self._context.client_id)
        self._problem = None

    def _lane(self, name: str, log: Log, control: ControlTable, composer: Composer) -> LaneState:
        context = self._context
        environment = context.environment
        lane = LaneState(
            name=name,
            policy=context.config.lanes[name],
            config=context.config,
            names=environment.names,
            log=log,
            clock=SystemClock(),
            dice=random.Random(),  # noqa: S311 jitter, not a secret
            instance=environment.instance_id,
            boot=self._life,
            compose=composer,
            control=control,
            recorder=self._recorder(name),
            metrics=context.metrics.sender,
            rules=self._rules,
            failpoints=self._failpoints,
            tracer=context.tracer,
            observer=self._observations,
        )
        lane.courier = pool = Pool(lane, self._sessions)
        self._links += pool.links
        lane.metrics.expect(name, lane.policy.providers, lane.policy.in_doubt)
        return lane

    def _recorder(self, lane: str) -> FlightRecorder | NoRecorder:
        """One file per lane, opened once in a process: it is this life's, whatever is started again."""
        if lane not in self._recorders:
            self._recorders[lane] = self._open_recorder(self._context.environment.data_dir, lane)
        return self._recorders[lane]

    def _open_recorder(self, folder: Path, lane: str) -> FlightRecorder | NoRecorder:
        path = folder / f"sender-{self._context.environment.instance_id}" / f"flight-{lane}.bin"
        try:
            return FlightRecorder(path, self._life)
        except OSError as error:
            _log.warning("no flight recorder", extra={"lane": lane, "path": str(path), "reason": str(error)})
            return NoRecorder()

    async def run(self) -> None:
        running = [asyncio.create_task(loop.run(), name=loop.lane.name) for loop in self._loops]
        lanes = [loop.lane for loop in self._loops]
        watching = asyncio.create_task(watch_backlog(lanes, links=self._links), name="backlog")
        advising = asyncio.create_task(self._advice().run(self._links), name="advice")
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            watching.cancel()
            advising.cancel()
            await self.stop()  # one lane that cannot go on ends the process: the others let go in order
            ended = await asyncio.gather(*running, return_exceptions=True)
            self._loops = []
            await self._let_go()
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    def _advice(self) -> Advice:
        assert self._log is not None
        context = self._context
        names, metrics = context.environment.names, context.metrics.sender
        return Advice(self._log, names, context.config, self._observations, metrics, SystemClock())

    async def stop(self) -> None:
        for loop in self._loops:
            loop.stop()

    async def _let_go(self) -> None:
        loops, self._loops, self._links = self._loops, [], []
        for loop in loops:
            await loop.abandon()
        tails, self._tails = self._tails, []
        for tail in tails:
            await tail.close()
        if self._log is not None:
            await self._log.close()
            self._log = None

    def not_ready(self) -> str | None:
        if self._problem is not None:
            return self._problem
        for loop in self._loops:
            reason = loop.not_ready()
            if reason is not None:
                return reason
        for tail in self._tails:
            try:
                _ = tail.lag  # a table that is no longer followed would let a cancelled mail go
            except Exception as error:
                return f"orders and templates are no longer read: {error}"
        return None


def _sessions(providers: list[Provider], tracer: Tracer) -> OpenSession:
    """Opens a session of a link. Certificates are read here, once; a password with each session, so that one that was
    rotated is used without a restart."""
    for provider in providers:
        password_of(provider)  # a file that is not there is said at the start
    contexts = {provider.name: tls_context_of(provider) for provider in providers}
    limits = {provider.name: limits_of(provider) for provider in providers}

    async def opened(link: Link) -> Connection:
        name = link.name
        try:
            password = password_of(link.provider)
        except ConfigurationError as error:
            raise ProviderDown(name, str(error)) from None

        def ends(at: float) -> None:  # no series without a certificate: one at 0 would be one that has ended
            link.pool.lane.metrics.certificate_expiry.labels(name).set(at)

        with tracing.session(tracer, link.provider):
            return await open_session(
                link.provider, password, link, limits=limits[name], tls_context=contexts[name], certificate_ends=ends
            )

    return opened
