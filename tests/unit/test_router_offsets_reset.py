"""Positions of a router that another tool put at the beginning: nothing is routed, nothing leaves the delay stage."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from tests.unit.router_world import NAMES, World, at, virtually

from postlane.eventlog.ports import Committed
from postlane_router.ownership import POSITION_MARK


async def world_with_mails() -> World:
    """Nine mails routed at once, three through the delay stage; then the router is stopped."""
    world = World()
    router = world.router()
    for n in range(9):
        world.publish(f"k{n}")
    for n in range(3):
        world.publish(f"later{n}", send_at=at(1) + timedelta(seconds=3))
    await world.until(lambda: len(world.records(NAMES.dispatch("transactional"))) == 12, 60, 0.1)
    await router.stop()
    return world


def test_a_reset_to_the_beginning_starts_nothing() -> None:
    async def main() -> None:
        world = await world_with_mails()
        committed = world.cluster.group(NAMES.router_group).committed
        assert {c.metadata for c in committed.values()} == {POSITION_MARK}
        assert any(p.topic in NAMES.delays for p in committed)
        for partition in committed:
            committed[partition] = Committed(0, "")
        router = world.router("r2")
        await asyncio.sleep(60)
        assert "not a router's" in (router.router.not_ready() or "")
        assert len(world.records(NAMES.dispatch("transactional"))) == 12
        await router.stop()

    virtually(main())


def test_positions_of_an_earlier_version_are_taken() -> None:
    async def main() -> None:
        world = await world_with_mails()
        committed = world.cluster.group(NAMES.router_group).committed
        for partition, position in committed.items():
            committed[partition] = Committed(position.offset, "")
        router = world.router("r2")
        world.publish("new")
        await world.until(lambda: len(world.records(NAMES.dispatch("transactional"))) == 13, 60, 0.1)
        assert router.router.not_ready() is None
        await router.stop()

    virtually(main())
