"""A sender with observers and a health topic, in virtual time: what it says is what happened, and what it is told
moves nothing that its own results contradict."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from tests.contract.virtual_time import run_virtually
from tests.unit.sender_world import NAMES, LoopClock, Running, World, config

from postlane.core.breaker import BreakerState
from postlane.core.health_facts import Observed, ProviderHealth
from postlane.core.health_state import HealthState
from postlane.eventlog.codec import decode, encode, headers
from postlane.eventlog.errors import Retriable
from postlane.eventlog.ports import Outgoing
from postlane_sender.advice import Advice
from postlane_sender.observations import Observations


def advised(world: World, sender: Running) -> asyncio.Task[None]:
    """The sender observes and listens from now on."""
    lane = sender.lane
    lane.observer = observations = Observations(sender.name, LoopClock())
    advice = Advice(sender.log, NAMES, world.config, observations, lane.metrics, LoopClock())
    return asyncio.create_task(advice.run(sender.pool.links))


def told(world: World) -> list[Observed]:
    return [decode(Observed, record.value) for record in world.records(NAMES.observations)]


def tell(world: World, state: HealthState, provider: str = "primary") -> None:
    now = LoopClock().now()
    health = ProviderHealth(provider=provider, at=now, state=state)
    about = headers(ProviderHealth, "test", f"{now}", now)
    world.cluster.write(Outgoing(NAMES.health, 0, provider.encode(), encode(health), about))


async def telling(world: World, state: HealthState) -> None:
    while True:
        tell(world, state)
        await asyncio.sleep(1)


async def end(sender: Running, *tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await sender.stop()


def test_what_was_observed_is_what_the_servers_saw() -> None:
    async def main() -> None:
        world = World()
        replies = {"k1": "550 5.1.1 no such user", "k2": "451 4.3.0 later", "k3": "550 5.7.1 blocked"}
        world.primary.answer = lambda phase, to: (
            replies.get(to.partition("@")[0], "250 ok") if phase == "rcpt" else "250 ok"
        )
        sender = world.sender()
        task = advised(world, sender)
        world.put_many(20)
        await world.until(lambda: sum(one.total.delivered for one in told(world) if one.provider == "primary") >= 17)
        sums: Counter[str] = Counter()
        for one in told(world):
            if one.provider == "primary":
                sums.update({k: v for k, v in one.total.model_dump().items() if k != "answer_s"})
                assert one.domains.keys() == {"example.com"}
                assert one.domains["example.com"] == one.total
        assert +sums == Counter(delivered=17, bounced=1, deferred=1, blocked=1)
        assert sum(n for one in told(world) for _, n in one.total.answer_s) >= 17
        await end(sender, task)

    run_virtually(main())


def test_a_lying_service_stops_nothing_while_mails_are_answered() -> None:
    async def main() -> None:
        world = World()
        sender = world.sender()
        task, lies = advised(world, sender), asyncio.create_task(telling(world, HealthState.DOWN))
        link = sender.pool.links[0]
        for number in range(30):
            world.put_many(4, f"r{number}-")
            await asyncio.sleep(1)
            assert link.breaker.state is BreakerState.CLOSED
        await world.settled()
        assert link.breaker.hint is HealthState.DOWN, "it was heard"
        assert sum(world.primary.took.values()) == 120
        assert world.backup.opened == 0
        await end(sender, task, lies)

    run_virtually(main())


def test_with_up_from_the_fleet_a_shut_breaker_looks_again_soon() -> None:
    async def recovered_after_s(hint: bool) -> float:
        world = World(config(provider={"breaker_probe_max_s": 60}))
        sender = world.sender()
        task = advised(world, sender)
        world.primary.down()
        world.put_many(10)
        await asyncio.sleep(100)  # its pauses have grown to a minute
        link = sender.pool.links[0]
        assert link.breaker.state is not BreakerState.CLOSED
        world.primary.up = True
        began = LoopClock().monotonic()
        says = asyncio.create_task(telling(world, HealthState.UP if hint else HealthState.DEGRADED))
        await world.until(lambda: link.breaker.state is BreakerState.CLOSED, 100)
        took_s = LoopClock().monotonic() - began
        await end(sender, task, says)
        return took_s

    async def main() -> None:
        assert await recovered_after_s(True) < 5 < await recovered_after_s(False)

    run_virtually(main())


def test_when_nobody_speaks_any_more_each_breaker_stands_alone() -> None:
    async def main() -> None:
        world = World()
        sender = world.sender()
        task = advised(world, sender)
        await asyncio.sleep(1.5)
        tell(world, HealthState.DOWN)
        link = sender.pool.links[0]
        await world.until(lambda: link.breaker.hint is HealthState.DOWN)
        assert (link.breaker.state, link.breaker.allowed(LoopClock().monotonic())) == (BreakerState.CLOSED, 1)
        await world.until(lambda: link.breaker.hint is HealthState.UNKNOWN, 30)
        link.failed()
        assert link.breaker.state is BreakerState.CLOSED, "its own three failures open it, as ever"
        await end(sender, task)

    run_virtually(main())


def test_no_trouble_of_the_two_topics_reaches_a_mail() -> None:
    async def main() -> None:
        world = World()
        del world.cluster.topics[NAMES.health], world.cluster.topics[NAMES.observations]
        sender = world.sender()
        task = advised(world, sender)
        for number in range(5):
            world.put_many(10, f"r{number}-")
            await asyncio.sleep(10)
        await world.settled()
        assert sum(world.primary.took.values()) == 50
        assert not task.done()
        await end(sender, task)

    run_virtually(main())


def test_while_nothing_is_acknowledged_at_most_one_batch_is_under_way_and_nothing_is_said_twice() -> None:
    async def main() -> None:
        world = World()
        sender = world.sender()
        lane = sender.lane
        lane.observer = observations = Observations("s1", LoopClock())
        advice = Advice(sender.log, NAMES, world.config, observations, lane.metrics, LoopClock())
        under_way, most, gate = 0, 0, asyncio.Event()

        class Slow:
            async def append(self, record: Outgoing) -> tuple[int, int]:
                nonlocal under_way, most
                under_way += 1
                most = max(most, under_way)
                await gate.wait()
                under_way -= 1
                raise Retriable("no broker")

        advice._reporter._appender = Slow()  # type: ignore[assignment]
        task = asyncio.create_task(advice.run(sender.pool.links))
        for number in range(10):
            world.put_many(4, f"r{number}-")
            await asyncio.sleep(2)
        await world.settled()
        assert most == 1
        gate.set()
        await asyncio.sleep(3)
        assert lane.metrics.observations_total.labels("lost")._value.get() >= 2
        await end(sender, task)

    run_virtually(main())
