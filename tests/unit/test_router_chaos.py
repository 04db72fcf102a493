"""Routers that die, freeze, lose commits and each other, at random by seed: each key is routed exactly once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from random import Random

import pytest
from router_world import NAMES, LoopClock, Running, World, virtually

from postlane.eventlog.memory_faults import Fault
from postlane.eventlog.ports import Partition
from postlane_router.store import MemoryStore

SEEDS = 12
_ANYWHERE = (Fault.UNREACHABLE, Fault.CRASH)
_OF_COMMITS = (*_ANYWHERE, Fault.ABORT, Fault.UNKNOWN_APPLIED, Fault.UNKNOWN_LOST, Fault.UNKNOWN_LATE)
FAULTS: dict[str, tuple[Fault, ...]] = {
    "begin": (*_ANYWHERE, Fault.ABORT),
    "produce": (*_ANYWHERE, Fault.ABORT),
    "send_offsets": (*_ANYWHERE, Fault.ABORT),
    "commit": _OF_COMMITS,
    "committed": (Fault.CRASH,),
    "poll": _ANYWHERE,
    "group": _ANYWHERE,
    "offsets": _ANYWHERE,
    "read": _ANYWHERE,
    "init": _ANYWHERE,
}


class Nemesis:
    """Random faults until told to be quiet; time passes at every point."""

    def __init__(self, random: Random) -> None:
        self.random, self.quiet = random, False

    async def at(self, point: str, who: str) -> Fault | None:
        await asyncio.sleep(self.random.random() * 0.01)
        kinds = FAULTS.get(point)
        if kinds is None or self.quiet or self.random.random() > 0.03:
            return None
        return self.random.choice(kinds)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_exactly_once(seed: int) -> None:
    virtually(scenario(seed))


async def scenario(seed: int) -> None:
    random = Random(seed)
    world, nemesis = World(), Nemesis(random)
    running: dict[str, Running] = {}
    stores: dict[str, MemoryStore] = {}
    keys: set[str] = set()
    later: set[str] = set()
    for n in range(150):
        send_at = LoopClock().now() + timedelta(seconds=random.random() * 20) if n % 7 == 0 else None
        message = world.publish(f"k{n}", send_at=send_at)
        keys.add(message)
        if send_at is not None:
            later.add(message)
        if n % 3 == 0 and n:
            again = random.randrange(n)
            if again % 7:
                world.publish(f"k{again}")
        await asyncio.sleep(random.random() * 0.6)
        for name in ("a", "b", "c"):
            await tend(world, running, stores, name, random, nemesis)
    nemesis.quiet = True
    for name in ("a", "b", "c"):
        if name not in running or running[name].is_down():
            running[name] = world.router(name, stores.get(name), nemesis, batch_records_max=4)
        running[name].log.thaw()
    await world.all_read(120)
    topic = NAMES.dispatch("transactional")
    await world.until(lambda: len(world.records(topic)) >= len(keys), 120, 0.5)
    await asyncio.sleep(10)
    for router in running.values():
        await router.stop()
    check(world, keys, later)


async def tend(
    world: World,
    running: dict[str, Running],
    stores: dict[str, MemoryStore],
    name: str,
    random: Random,
    nemesis: Nemesis,
) -> None:
    """Start what is down; now and then kill, stop, freeze or thaw."""
    router = running.get(name)
    if router is None or router.is_down():
        if random.random() < 0.15:
            kept = stores.get(name) if random.random() < 0.5 else None
            stores[name] = kept or MemoryStore()
            running[name] = world.router(name, stores[name], nemesis, batch_records_max=random.choice((1, 4, 50)))
        return
    dice = random.random()
    if dice < 0.02:
        await router.kill()
    elif dice < 0.03:
        router.log.freeze()
        asyncio.get_running_loop().call_later(random.random() * 25, router.log.thaw)
    elif dice < 0.035:
        world.cluster.group(NAMES.router_group).rebalance()


def check(world: World, keys: set[str], later: set[str]) -> None:
    assert {m: len(d) for m, d in world.dispatched().items()} == dict.fromkeys(keys, 1)
    for message, events in world.events().items():
        kinds = [event.type for event in events]
        if message in later and "Scheduled" in kinds:  # else its time had come when it was routed
            kinds.remove("Scheduled")
        assert kinds == ["Requested", "Routed"]
    seen = [record.key.decode() for record in world.records(NAMES.seen) if record.key]
    assert sorted(seen) == sorted(keys)
    partitions: dict[str, set[Partition]] = {}
    for topic in (NAMES.events, NAMES.seen, NAMES.dispatch("transactional")):
        for record in world.records(topic):
            assert record.key is not None
            partitions.setdefault(record.key.decode(), set()).add(Partition("", record.partition))
    assert all(len(numbers) == 1 for numbers in partitions.values())
