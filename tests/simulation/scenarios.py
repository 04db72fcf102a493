"""Scripted scenarios: interleavings that random seeds meet too rarely, told step by step in virtual time."""

from __future__ import annotations

import asyncio

from postlane.core.rules import Rules
from postlane.eventlog.memory_faults import Fault
from postlane.eventlog.ports import Outgoing, Partition
from postlane_router.store import MemoryStore
from tests.simulation.processes import LoopClock, RouterProcess, Sender
from tests.simulation.world import Result, World, virtually

LANE = ("transactional",)


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
    for n in range(4):
        world.publish(f"k{n}", to=(f"k{n}@a.example",), requested_at=LoopClock().now())
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
    for n in range(4):
        world.publish(f"k{n}", to=(f"k{n}@a.example",), requested_at=LoopClock().now())
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


async def _ended(world: World, sender: Sender) -> Result:
    await asyncio.sleep(2.0)
    sender.stop()
    await asyncio.wait({sender.task}, timeout=60)
    if world.history.broken is None:
        world.check()
    return Result(world.seed, world.history, asyncio.get_running_loop().time(), len(world.oracles.expected), 2)
