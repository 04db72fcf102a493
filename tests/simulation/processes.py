"""The services as processes of the simulation: wired as their bootstraps wire them, over the log in memory."""

from __future__ import annotations

import asyncio
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from postlane.eventlog.errors import LogError, Retriable
from postlane.eventlog.memory import EPOCH_MS, MemoryLog
from postlane.eventlog.tables import ControlTable, TemplateTable
from postlane.telemetry.metrics import RouterMetrics, SenderMetrics
from postlane_router.config import RouterSettings
from postlane_router.loop import Router
from postlane_router.store import MemoryStore
from postlane_sender.composer import Composer
from postlane_sender.connection import Connection
from postlane_sender.courier import Pool
from postlane_sender.lane import LaneState
from postlane_sender.link import Link
from postlane_sender.loop import LaneLoop
from postlane_sender.recorder import NoRecorder
from postlane_sender.session import limits_of
from tests.simulation.lives import Life
from tests.simulation.smtp import open_session

if TYPE_CHECKING:
    from tests.simulation.world import World

TABLES_TIMEOUT_S = 30.0
AGAIN_S = 0.5
SENDER_METRICS = SenderMetrics(CollectorRegistry())
ROUTER_METRICS = RouterMetrics(CollectorRegistry())


class LoopClock:
    """The loop's time, as the in-memory log stamps records with it."""

    def now(self) -> datetime:
        return datetime.fromtimestamp(EPOCH_MS / 1000, UTC) + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class Process:
    """A service process: `kill`, `freeze`, `thaw`, `stop` are SIGKILL, SIGSTOP, SIGCONT, SIGTERM."""

    def __init__(self, world: World, instance: str) -> None:
        self.world, self.instance = world, instance
        self.number = world.next_number()
        self.life = Life(f"{instance}~{self.number}")
        self.log = world.open_log(self.life)
        self.task = self.life.spawn(self._live())

    async def _live(self) -> None:
        try:
            await self._work()
            self.world.history.say(self.life.name, "ended")
        except LogError as error:
            self.world.history.say(self.life.name, f"ended: {type(error).__name__}: {error}")
        except Exception as error:  # nothing else may end a service
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}, {frame.name}: {frame.line}"
            text = f"{self.life.name}: {type(error).__name__}: {error} ({where})"
            self.world.history.breaks("nothing unforeseen", text)
            raise

    async def _work(self) -> None:
        raise NotImplementedError

    def order_stop(self) -> None:
        raise NotImplementedError

    @property
    def gone(self) -> bool:
        return self.life.dead or self.task.done()

    def kill(self) -> None:
        self.life.dead = True
        self.log.crash()

    def freeze(self) -> None:
        self.life.frozen = True
        self.log.freeze()

    def thaw(self) -> None:
        if not self.life.dead and self.life.frozen:
            self.log.thaw()
            self.life.thaw()

    def stop(self) -> None:
        if not self.gone and not self.life.frozen:
            self.life.context.run(self.order_stop)


class Sender(Process):
    """As postlane_sender.bootstrap wires it."""

    def __init__(self, world: World, instance: str, lanes: tuple[str, ...]) -> None:
        self.lanes = lanes
        self.loops: list[LaneLoop] = []
        super().__init__(world, instance)

    async def _work(self) -> None:
        world, log = self.world, self.log
        control, templates = ControlTable(), TemplateTable()
        for topic, apply in ((world.names.control, control.apply), (world.names.templates, templates.apply)):
            await log.tail(topic, apply).ready(TABLES_TIMEOUT_S)
        for name in self.lanes:
            loop = LaneLoop(self._lane(name, log, control, Composer(templates)))
            while True:
                try:
                    await loop.start(client_id=self.life.name)
                    break
                except Retriable:
                    await asyncio.sleep(AGAIN_S)
            self.loops.append(loop)
        running = [asyncio.create_task(loop.run(), name=loop.lane.name) for loop in self.loops]
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            self.order_stop()
            ended = await asyncio.gather(*running, return_exceptions=True)
        await log.close()
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    def _lane(self, name: str, log: MemoryLog, control: ControlTable, composer: Composer) -> LaneState:
        world = self.world
        lane = LaneState(
            name=name,
            policy=world.config.lanes[name],
            config=world.config,
            names=world.names,
            log=log,
            clock=LoopClock(),
            dice=Random(f"{world.seed}/{self.life.name}/{name}"),
            instance=self.instance,
            boot=self.life.name,
            compose=composer,
            control=control,
            recorder=NoRecorder(),
            metrics=SENDER_METRICS,
            rules=world.rules,
        )
        lane.courier = Pool(lane, self._session)
        return lane

    async def _session(self, link: Link) -> Connection:
        world = self.world
        provider = world.providers[link.name]
        return await open_session(provider, world.next_number(), link, limits_of(link.provider), world.wire_dice)

    def order_stop(self) -> None:
        for loop in self.loops:
            loop.stop()

    def problem(self) -> str | None:
        """Why it is not ready, if it is not."""
        return next((reason for loop in self.loops if (reason := loop.not_ready())), None)


class RouterProcess(Process):
    """As postlane_router.bootstrap wires it; its store is kept by the world or lost."""

    def __init__(self, world: World, instance: str, store: MemoryStore) -> None:
        self.store = store
        self.router: Router | None = None
        super().__init__(world, instance)

    async def _work(self) -> None:
        world = self.world
        settings = RouterSettings(
            instance=self.instance, store_path=Path("unused"), batch_records_max=world.router_batch_max
        )
        self.router = router = Router(
            self.log, world.names, world.config, settings, self.store, LoopClock(), ROUTER_METRICS, world.rules
        )
        while True:
            try:
                await router.start()
                break
            except Retriable:
                await asyncio.sleep(AGAIN_S)
        await router.run()

    def order_stop(self) -> None:
        if self.router is not None:
            self._stopping = asyncio.get_running_loop().create_task(self.router.stop())
