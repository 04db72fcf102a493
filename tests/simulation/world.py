"""One run: a cluster, providers, processes, a workload and a nemesis from one seed; then quiet, then the checks."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from postlane.core.events import MailRequested
from postlane.core.identity import delivery_id, message_id_from_key
from postlane.core.policy import Config, Lane, Retry, Topics
from postlane.core.policy import Provider as ProviderPolicy
from postlane.core.rules import ALL_RULES, Rules
from postlane.eventlog.codec import encode, headers
from postlane.eventlog.memory import MemoryLog
from postlane.eventlog.memory_faults import Faults
from postlane.eventlog.ports import Outgoing
from postlane.eventlog.topics import TopicNames, declare
from tests.simulation.bookkeeper import Bookkeeper
from tests.simulation.cluster import SimulatedLog, WatchedCluster
from tests.simulation.history import Broken, History
from tests.simulation.lives import Life, LivingLoop
from tests.simulation.nemesis import Nemesis
from tests.simulation.oracles import Oracles
from tests.simulation.processes import LoopClock
from tests.simulation.smtp import Provider
from tests.simulation.workload import Workload

PARTITIONS = 2
QUIET_S = 400.0  # virtual: within this everything has to end once the faults are over
LEDGER_EVERY = 4  # one seed in so many has a ledger: SQLite takes most of its time
LEDGER_DEATHS = 0.15
LAST_WORDS_S = 5.0  # virtual: for what comes after the last end, and for the ledger
TROUBLE_S = 30.0  # virtual: how long things go wrong


@dataclass(slots=True)
class Result:
    """What a run came to."""

    seed: int
    history: History
    virtual_s: float = 0.0
    mails: int = 0
    lives: int = 0
    ends: Counter[str] = field(default_factory=Counter)

    @property
    def broken(self) -> Broken | None:
        return self.history.broken


class World:
    """Everything that a run consists of. A scripted scenario makes one with its own nemesis."""

    def __init__(self, seed: int, rules: Rules | None = None, *, policy: dict[str, float] | None = None) -> None:
        self.seed, self.rules = seed, rules or ALL_RULES
        self.names = TopicNames()
        self.history = History()
        self.dice = Random(f"{seed}/world")
        self.wire_dice = Random(f"{seed}/wire")
        self.config = configuration(policy or {})
        self.router_batch_max = self.dice.choice((1, 4, 50))
        self.oracles = Oracles(self.names, tuple(self.config.lanes), self.history)
        self.marker_delay_s: Callable[[], float] = lambda: 0.0
        self.faults: Faults | None = None
        self.cluster = WatchedCluster(self.oracles.decided, lambda: self.marker_delay_s())
        self.cluster.checks_members = self.rules.group_metadata
        self.cluster.create_topics(declare(self.names, tuple(self.config.lanes), self.config.topics))
        self.providers = {
            name: Provider(name, Random(f"{seed}/{name}"), self.history, self.oracles.body_written)
            for name in self.config.providers
        }
        self.bookkeeper: Bookkeeper | None = None
        self._number = 0

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def open_log(self, life: Life) -> MemoryLog:
        """The log as a process sees it."""
        return SimulatedLog(self.cluster, life.name, self.faults, self.rules)

    def put(self, topic: str, key: str, value: bytes | None) -> None:
        """An acknowledged record of a producer."""
        self.cluster.write(Outgoing(topic, None, key.encode(), value))

    def publish(self, key: str, **changes: object) -> MailRequested:
        """An acknowledged request; what has to come of it is expected from now on."""
        base = {
            "message_id": message_id_from_key("default", key),
            "key": key,
            "sender": "shop@example.org",
            "to": ("ada@example.com",),
            "subject": f"Order {key}",
            "text": "On its way.",
            "requested_at": LoopClock().now(),
        }
        request = MailRequested.model_validate({**base, **changes})
        wire = headers(MailRequested, "simulation", request.message_id, request.requested_at, [])
        self.cluster.write(
            Outgoing(self.names.requests, None, request.message_id.encode(), encode(request), wire),
        )
        for recipient in (*request.to, *request.cc, *request.bcc):
            ident = delivery_id(request.message_id, recipient, request.generation)
            self.oracles.expected.setdefault(ident, request.message_id)
        return request

    async def until_quiet(self, senders: Callable[[], None]) -> None:
        """Time passes until every delivery has ended, or a bound; `senders` is called now and then."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + QUIET_S
        while self.history.broken is None and loop.time() < deadline:
            await asyncio.sleep(1.0)
            senders()
            if not self.oracles.pending():
                return

    def check(self) -> None:
        """The oracles of the end."""
        copies: Counter[str] = Counter()
        digests: dict[str, set[str]] = {}
        for provider in self.providers.values():
            copies.update(provider.accepted)
            for ident, found in provider.bytes.items():
                digests.setdefault(ident, set()).update(found)
        self.oracles.at_the_end(copies, digests)


def configuration(policy: dict[str, float]) -> Config:
    """Small bounds, so that a short run meets them all."""
    both = ("alpha", "beta")
    times = {"intent_ttl_s": 7.0, "drain_timeout_s": 5.0, "takeover_timeout_s": 30.0, "max_span": 64, **policy}
    provider = {
        "tls": "none",
        "connections": 2,
        "connect_timeout_s": 5,
        "command_timeout_s": 10,
        "data_timeout_s": 10,
        "dot_timeout_s": 12,
        "idle_close_s": 20,
        "breaker_failures": 3,
        "breaker_probe_max_s": 4,
    }
    return Config(
        lanes={
            "transactional": Lane.model_validate({"in_doubt": "resend", "providers": both, **times}),
            "bulk": Lane.model_validate({"in_doubt": "park", "providers": both, **times}),
        },
        providers={name: ProviderPolicy.model_validate({"name": name, "host": name, **provider}) for name in both},
        retry=Retry(first_s=1, factor=2, max_s=6, give_up_after=4),
        topics=Topics(partitions=PARTITIONS),
    )


async def _run(world: World) -> Result:
    nemesis = Nemesis(world)
    world.faults, world.marker_delay_s = nemesis, nemesis.marker_delay_s
    nemesis.begin()
    keeps_books = world.seed % LEDGER_EVERY == 0
    with TemporaryDirectory(prefix="postlane-simulation-") as folder:
        if keeps_books:
            world.bookkeeper = Bookkeeper(world, Path(folder), Random(f"{world.seed}/ledger"), LEDGER_DEATHS)
        await _story(world, nemesis)
    loop = asyncio.get_running_loop()
    result = Result(world.seed, world.history, loop.time(), len(world.oracles.expected), nemesis.lives)
    for ends in world.oracles.ends.values():
        result.ends.update(ends)
    return result


async def _story(world: World, nemesis: Nemesis) -> None:
    """Trouble, then quiet, then an orderly stop and the checks of the end."""
    books, history = world.bookkeeper, world.history
    workload = Workload(world, Random(f"{world.seed}/workload"))
    workload.begin(TROUBLE_S * 0.7)
    loop = asyncio.get_running_loop()
    while loop.time() < TROUBLE_S and history.broken is None:
        if books is not None:
            books.tend()
        await asyncio.sleep(nemesis.pause_s())
        nemesis.step()
    history.say("nemesis", "faults are over")
    nemesis.end()
    workload.end()
    if books is not None:
        books.quiet()
        books.tend()
    await world.until_quiet(nemesis.tend)
    if history.broken is None:
        await asyncio.sleep(LAST_WORDS_S)
        await nemesis.stop_all()
    if history.broken is None:
        world.check()
        nemesis.check()
    if history.broken is None and books is not None:
        books.check()


def simulate(seed: int, rules: Rules | None = None) -> Result:
    """One run of one seed."""
    return virtually(lambda: World(seed, rules), _run)


def virtually(make: Callable[[], World], run: Callable[[World], Coroutine[Any, Any, Result]]) -> Result:
    """Run a world's story on a loop of its own; what is left of its processes goes without a word."""
    loud = logging.getLogger("postlane")
    level = loud.level
    loud.setLevel(logging.CRITICAL + 1)
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    collecting = gc.isenabled()
    gc.disable()  # a collection would end coroutines of the dead at moments of its own choosing
    try:
        return _on_a_loop(make, run)
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "was never awaited": by the dead
            gc.collect()
        if collecting:
            gc.enable()
        sys.unraisablehook = hook
        loud.setLevel(level)


def _on_a_loop(make: Callable[[], World], run: Callable[[World], Coroutine[Any, Any, Result]]) -> Result:
    loop = LivingLoop()
    loop.set_exception_handler(lambda loop, context: None)
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(run(make()))
    finally:
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.tasks.clear()
        loop.close()
        asyncio.set_event_loop(None)
