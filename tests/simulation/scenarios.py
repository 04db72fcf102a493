"""Scripted scenarios: interleavings that random seeds meet too rarely, told step by step in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from postlane.core.events import MailRequested
from postlane.core.identity import delivery_id
from postlane.core.replay import Choices
from postlane.core.rules import Rules
from postlane.eventlog.memory import MemoryLog
from postlane.eventlog.memory_faults import Fault
from postlane.eventlog.ports import Outgoing, Partition
from postlane.ops.letters import Filters
from postlane.ops.replay import Pace, Runner, make_plan
from postlane.ops.replay_reading import Reading
from postlane.ops.replay_requests import Manner, Scribe
from postlane_router.store import MemoryStore
from tests.simulation.processes import LoopClock, RouterProcess, Sender
from tests.simulation.world import PARTITIONS, Result, World, simulate, virtually

LANE = ("transactional",)
LEDGER_SEED = 8


def dead_writers_open_transaction(rules: Rules | None = None) -> Result:
    """A transaction that a dead writer left open in mail.state holds the last stable offset back; behind it another
    sender records intents, hands bodies over and is killed. Who reads no further than the last stable offset misses
    the intents, and sends again as if nothing had been."""
    return virtually(lambda: World(1, rules), _dead_writers_open_transaction)


async def _dead_writers_open_transaction(world: World) -> Result:
    cluster, names = world.cluster, world.names
    RouterProcess(world, "r1", MemoryStore())
    first = Sender(world, "s1", LANE)
    await asyncio.sleep(1.5)
    for number in range(len(cluster.topics[names.state("transactional")])):
        epoch = cluster.init_producer(f"dead-{number}")
        partition = Partition(names.state("transactional"), number)
        cluster.write_open(f"dead-{number}", epoch, partition, Outgoing(*partition, b"never#0", b"{}"))
    for provider in world.providers.values():
        provider.weights = {"hang_after": 1.0}
    _publish(world, 4)
    await asyncio.sleep(1.0)
    world.history.say("scenario", "kills s1")
    first.kill()
    for provider in world.providers.values():
        provider.weights = {}
    second = Sender(world, "s2", LANE)
    await world.until_quiet(lambda: None)
    return await _ended(world, second)


def unknown_commit_of_outcomes(rules: Rules | None = None) -> Result:
    """The commit of outcomes is applied at the broker, and the sender sees a time-out."""
    return virtually(lambda: World(1, rules), _unknown_commit_of_outcomes)


async def _unknown_commit_of_outcomes(world: World) -> Result:
    RouterProcess(world, "r1", MemoryStore())
    world.faults = _UnknownOnceAccepted(world)
    sender = Sender(world, "s1", LANE)
    world.faults = None
    await asyncio.sleep(1.0)
    _publish(world, 4)
    await world.until_quiet(lambda: None)
    return await _ended(world, sender)


class _UnknownOnceAccepted:
    """The first commits after a server took a mail are applied, and answered by a time-out."""

    def __init__(self, world: World) -> None:
        self.world, self.left = world, 3

    async def at(self, point: str, who: str) -> Fault | None:
        await asyncio.sleep(0.001)
        if point == "commit" and self.left and any(p.accepted for p in self.world.providers.values()):
            self.left -= 1
            return Fault.UNKNOWN_APPLIED
        return None


def zombie_amid_a_tick(rules: Rules | None = None) -> Result:
    """A sender is frozen as a tick of nothing but intents begins, and its partitions are given to another, who sends
    the mails. Thawed within the time of its intents, it goes on with the tick: only the offsets in it stop it."""
    return virtually(lambda: World(1, rules), _zombie_amid_a_tick)


async def _zombie_amid_a_tick(world: World) -> Result:
    RouterProcess(world, "r1", MemoryStore())
    freezer = _FreezeAtBegin()
    world.faults = freezer
    first = Sender(world, "s1", LANE)
    world.faults = None
    await asyncio.sleep(1.5)
    _publish(world, 2)  # opens sessions
    await _until(lambda: len(world.oracles.ends) >= 2)
    await asyncio.sleep(1.0)
    freezer.process = first
    _publish(world, 4, first=2)
    await _until(lambda: first.life.frozen)
    second = await _given_to_another(world, first)
    await asyncio.sleep(2.0)
    world.history.say("scenario", "thaws s1")
    first.thaw()
    await world.until_quiet(lambda: None)
    return await _ended(world, second)


class _FreezeAtBegin:
    """Freezes `process`, once it is set, where it begins a transaction."""

    def __init__(self) -> None:
        self.process: Sender | None = None

    async def at(self, point: str, who: str) -> Fault | None:
        if point == "poll":
            await asyncio.sleep(0.3)  # a poll does not notice at once that all is lost
        process = self.process
        if point == "begin":
            self.process = None
        if point == "begin" and process is not None:
            process.freeze()
            await asyncio.sleep(0)
        return None


def zombie_before_the_body(rules: Rules | None = None, thawed_after_s: float = 3.0) -> Result:
    """A sender is frozen between its intents and their bodies, and its partitions are given to another. The other has
    to wait until the intents have lapsed; the zombie has to look at the clock before it writes a body."""

    async def story(world: World) -> Result:
        RouterProcess(world, "r1", MemoryStore())
        first = Sender(world, "s1", LANE)
        await asyncio.sleep(1.5)
        _publish(world, 4)
        await _until(lambda: any(wire.busy for p in world.providers.values() for wire in p.wires))
        first.freeze()  # its commands are on their way, the answers find it frozen
        second = await _given_to_another(world, first)
        await asyncio.sleep(thawed_after_s)
        world.history.say("scenario", "thaws s1")
        first.thaw()
        await world.until_quiet(lambda: None)
        return await _ended(world, second)

    return virtually(lambda: World(1, rules), story)


def zombie_after_the_lapse(rules: Rules | None = None) -> Result:
    """The same zombie, thawed when its intents have lapsed."""
    return zombie_before_the_body(rules, thawed_after_s=12.0)


def settled_above_what_starts_later(rules: Rules | None = None) -> Result:
    """Mails wait for a busy provider; one behind them, which that provider refused before, goes elsewhere and is
    settled. When those in front start at last, the positions of their intents lie behind its outcome."""
    return virtually(lambda: World(1, rules), _settled_above_what_starts_later)


async def _settled_above_what_starts_later(world: World) -> Result:
    RouterProcess(world, "r1", MemoryStore())
    sender = Sender(world, "s1", LANE)
    await asyncio.sleep(1.5)
    alpha = world.providers["alpha"]
    alpha.weights = {"block": 1.0}
    _publish(world, 2)
    await _until(lambda: len(world.oracles.outcomes) >= 2)
    alpha.weights = {"slow_mail": 1.0}
    _publish(world, 16, first=2)
    await world.until_quiet(lambda: None)
    return await _ended(world, sender)


def replay_of_what_was_given_up(rules: Rules | None = None) -> Result:
    """An operator replays dead letters: each is mailed once, as a new generation."""
    return virtually(lambda: World(1, rules), _replay_of_what_was_given_up)


async def _replay_of_what_was_given_up(world: World) -> Result:
    RouterProcess(world, "r1", MemoryStore())
    sender = Sender(world, "s1", LANE)
    await asyncio.sleep(1.5)
    for provider in world.providers.values():
        provider.weights = {"block": 1.0}
    requests = _publish(world, 4)
    await world.until_quiet(lambda: None)
    for provider in world.providers.values():
        provider.weights = {}
    log, names = MemoryLog(world.cluster, "operator"), world.names
    choices = Choices(run="again", rules=world.rules)
    plan = await make_plan(Reading(log, names), names, "dead letters", Filters(), choices, Manner(run="again"))
    scribe = Scribe(names, Manner(run="again"), "operator", PARTITIONS)
    transactor, pace = await log.transactor("replay.operator"), Pace(None, asyncio.get_running_loop().time)
    await Runner(log, names, transactor, scribe, pace, lambda *_: None, LoopClock().now).run(plan)
    for request in requests:
        world.oracles.expected[delivery_id(request.message_id, request.to[0], 1)] = request.message_id
    await world.until_quiet(lambda: None)
    return await _ended(world, sender)


def ledger_dies_between_its_transactions(rules: Rules | None = None) -> Result:
    """A whole run by seed with a ledger that dies within its transactions."""
    return simulate(LEDGER_SEED, rules)


# ------------------------------------------------------------------------------------------------------------- steps


def _publish(world: World, count: int, first: int = 0) -> list[MailRequested]:
    now = LoopClock().now()
    return [world.publish(f"k{n}", to=(f"k{n}@a.example",), requested_at=now) for n in range(first, first + count)]


async def _until(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not happened():  # noqa: ASYNC110 - in virtual time
            await asyncio.sleep(0.0005)


async def _given_to_another(world: World, first: Sender) -> Sender:
    """The coordinator gives `first` up at once (the network holds its heartbeats), and another has its partitions."""
    group = world.cluster.group(world.names.sender_group("transactional"))
    group.expire(next(iter(group.members)))
    world.history.say("scenario", f"gives the partitions of {first.life.name} to another")
    return Sender(world, "s2", LANE)


async def _ended(world: World, sender: Sender) -> Result:
    await asyncio.sleep(2.0)
    sender.stop()
    await asyncio.wait({sender.task}, timeout=60)
    if world.history.broken is None:
        world.check()
    return Result(world.seed, world.history, asyncio.get_running_loop().time(), len(world.oracles.expected), 2)
