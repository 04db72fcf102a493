"""The ledger as a process of the simulation, on a real SQLite file; it may die within any database transaction."""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, event

from postlane.eventlog.errors import Retriable
from postlane.eventlog.memory_faults import ProcessDied
from postlane.eventlog.ports import Received
from postlane.ops.books_database import open_database
from postlane.telemetry.metrics import LedgerMetrics
from postlane_ledger.ledger import Ledger, LedgerSettings
from tests.ledger_corpus import assert_is_fold_of
from tests.simulation.lives import current
from tests.simulation.processes import AGAIN_S, LoopClock, Process

if TYPE_CHECKING:
    from tests.simulation.world import World

METRICS = LedgerMetrics(CollectorRegistry())


class LedgerProcess(Process):
    """As postlane_ledger.bootstrap wires it, on the database of its world."""

    def __init__(self, world: World, instance: str, engine: Engine) -> None:
        self._engine = engine
        self._ledger: Ledger | None = None
        super().__init__(world, instance)

    async def _work(self) -> None:
        names = self.world.names
        settings = LedgerSettings(names.events, "ledger", self.instance, poll_wait_s=0.5)
        clock, rules = LoopClock(), self.world.rules
        self._ledger = ledger = Ledger(self.log, self._engine, settings, METRICS, clock, threaded=False, rules=rules)
        while True:
            try:
                await ledger.start()
                break
            except Retriable:
                await asyncio.sleep(AGAIN_S)
        await ledger.run()

    def order_stop(self) -> None:
        if self._ledger is not None:
            self._stopping = asyncio.get_running_loop().create_task(self._ledger.stop())


class Bookkeeper:
    """The database, and the ledger that keeps it: started again whenever it died."""

    def __init__(self, world: World, folder: Path, dice: Random, deaths: float) -> None:
        """`deaths`: the probability that a commit of the database is the last thing that its process tried."""
        self._world, self._dice, self._deaths = world, dice, deaths
        self._engine = open_database(f"sqlite:///{folder}/books.db")
        self.process: LedgerProcess | None = None
        event.listen(self._engine, "commit", self._perhaps_die)

    def tend(self) -> None:
        if self.process is None or self.process.gone:
            self.process = LedgerProcess(self._world, "l1", self._engine)

    def quiet(self) -> None:
        """Nothing dies any more."""
        self._deaths = 0.0

    def _perhaps_die(self, _: object) -> None:
        process, life = self.process, current()
        if process is not None and life is process.life and self._dice.random() < self._deaths:
            self._world.history.say("nemesis", f"{life.name} dies before a commit of its database")
            process.kill()
            raise ProcessDied(life.name)

    def check(self) -> None:
        """The database is the fold of mail.events."""
        records: list[Received] = []
        for log in self._world.cluster.topics[self._world.names.events]:
            records += log.fetch(log.start, 1_000_000, committed=True)[0]
        try:
            assert_is_fold_of(self._engine, records)
        except AssertionError as error:
            line = traceback.extract_tb(error.__traceback__)[-1].line
            self._world.history.breaks("the ledger is the fold of the log", f"not so: {line}")
        self._engine.dispose()
