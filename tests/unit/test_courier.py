"""Couriers: places that always come back, failover in order, probes that cost no mail, servers that hang."""

from __future__ import annotations

import asyncio
import random

import pytest
from tests.contract.virtual_time import run_virtually
from tests.unit.sender_world import LANE, Running, World, at, compose, config, mail, places

from postlane.core.breaker import BreakerState
from postlane.core.events import Control, MailContent
from postlane.core.policy import Topics
from postlane.eventlog.memory_faults import Fault
from postlane_sender.lane import Composed

NONE = {"primary": 0, "backup": 0}


def at_rest(sender: Running) -> None:
    """Nothing is held for anybody, anywhere in the pool."""
    pool = sender.pool
    assert places(pool) == NONE
    assert not pool.where
    assert not pool.deferred
    assert not pool._moves
    assert not any(link.queue for link in pool.links)


def test_the_first_provider_gets_everything_while_it_is_healthy() -> None:
    async def main() -> None:
        world = World()
        world.put_many(50)
        sender = world.sender()
        await world.settled()
        assert sum(world.primary.took.values()) == 50
        assert world.backup.opened == 0
        assert world.primary.opened <= 4
        at_rest(sender)
        await sender.stop()

    run_virtually(main())


def test_a_provider_that_is_down_is_left_for_the_next_without_spending_attempts() -> None:
    async def main() -> None:
        world = World()
        world.primary.down()
        mails = world.put_many(30)
        sender = world.sender()
        pump = asyncio.create_task(world.delays())
        await world.until(lambda: all("Delivered" in world.kinds(m) for m in mails), 30)
        for ready in mails:
            assert world.backup.took[ready.delivery_id] == 1
            assert world.events()[ready.delivery_id][-1].attempt == 1  # type: ignore[union-attr]
        pump.cancel()
        at_rest(sender)
        await sender.stop()

    run_virtually(main())


def test_while_no_provider_is_healthy_mails_wait_and_probes_look_for_recovery() -> None:
    async def main() -> None:
        world = World()
        world.primary.down()
        world.backup.down()
        mails = world.put_many(20)
        sender = world.sender()
        pump = asyncio.create_task(world.delays())
        await asyncio.sleep(120)
        hops = len([e for events in world.events().values() for e in events if e.type == "Released"])
        assert hops <= 8 * 4, "only what was admitted before the breakers opened has moved"
        assert all(link.breaker.state is not BreakerState.CLOSED for link in sender.pool.links)
        world.backup.up = True
        await world.until(lambda: all("Delivered" in world.kinds(m) for m in mails), 90)
        for ready in mails:
            assert world.events()[ready.delivery_id][-1].attempt == 1  # type: ignore[union-attr]
        assert sum(world.backup.took.values()) == 20
        pump.cancel()
        at_rest(sender)
        await sender.stop()

    run_virtually(main())


def test_a_server_that_hangs_holds_only_what_it_was_given() -> None:
    async def main() -> None:
        world = World(config(topics=Topics(partitions=1), provider={"connections": 2}))
        world.primary.answer = lambda phase, who: "hang" if phase == "dot" and who.startswith("k0@") else "250 ok"
        mails = [world.put(mail(f"k{n}")) for n in range(20)]
        sender = world.sender()
        pump = asyncio.create_task(world.delays())
        await world.until(lambda: all(world.took(m) == 1 for m in mails[1:]), 30)
        released = [e for m in mails for e in world.events()[m.delivery_id] if e.type == "Released"]
        assert len(released) <= 1, "the one that stood ahead on its connection"
        pump.cancel()
        await sender.kill()

    run_virtually(main())


def test_an_intent_never_waits_longer_than_its_time_for_a_connection() -> None:
    async def main() -> None:
        world = World(config(provider={"connections": 1}))
        world.primary.answer = lambda phase, who: "hang" if phase == "mail" else "250 ok"
        mails = world.put_many(2)
        sender = world.sender()
        await world.until(lambda: all("Released" in world.kinds(m) for m in mails), 8)
        assert {e.reason for m in mails for e in world.events()[m.delivery_id] if e.type == "Released"} == {"lapsed"}  # type: ignore[union-attr]
        at_rest(sender)
        await sender.stop()

    run_virtually(main())


def test_what_waits_for_a_provider_that_is_paused_goes_elsewhere() -> None:
    async def main() -> None:
        world = World(config(provider={"connections": 1}))
        world.primary.answer = lambda phase, who: "hang" if phase == "mail" else "250 ok"
        mails = world.put_many(2)
        sender = world.sender()
        await world.until(lambda: places(sender.pool)["primary"] == 2)
        world.control.orders["pause", "provider", "primary"] = Control(
            action="pause", scope="provider", name="primary", at=at(0)
        )
        late = world.put(mail("late"))
        await world.until(lambda: world.backup.took[late.delivery_id] == 1, 3)
        pump = asyncio.create_task(world.delays())
        await world.until(lambda: all(world.backup.took[m.delivery_id] == 1 for m in mails), 20)
        pump.cancel()
        await sender.kill()

    run_virtually(main())


def test_sessions_that_a_server_ends_while_nobody_uses_them_say_nothing_of_its_health() -> None:
    async def main() -> None:
        world = World()
        world.put_many(20)
        sender = world.sender()
        await world.settled()
        link = sender.pool.links[0]
        assert link.connections
        for wire in list(world.primary.wires):
            wire.cut()
        await world.until(lambda: not link.connections, 5)
        assert (link.breaker.state, link.breaker.failures) == (BreakerState.CLOSED, 0)
        more = world.put_many(5, "more")
        await world.until(lambda: all(world.primary.took[m.delivery_id] for m in more), 5)
        await sender.stop()

    run_virtually(main())


def test_one_domains_throttling_does_not_close_the_provider_for_others() -> None:
    async def main() -> None:
        world = World(config(lane={"providers": ("primary",)}))
        world.primary.answer = lambda phase, who: (
            "452 4.2.2 too many messages, slow down" if phase == "rcpt" and who.endswith("@hot.example") else "250 ok"
        )
        hot = [world.put(mail(f"h{n}", recipient=f"h{n}@hot.example")) for n in range(30)]
        fine = world.put_many(30, "fine")
        sender = world.sender()
        await world.until(lambda: all(world.took(m) for m in fine), 20)
        assert sender.pool.links[0].breaker.state is BreakerState.CLOSED
        for ready in hot:
            assert set(world.kinds(ready)) <= {"Attempted", "Released"}, "throttled is no attempt"
        await sender.stop()

    run_virtually(main())


def test_a_mail_that_this_server_cannot_take_goes_on_and_the_session_is_used_again() -> None:
    async def main() -> None:
        world = World(config(provider={"connections": 1}, topics=Topics(partitions=1)))
        mails = [world.put(mail(f"k{n}", recipient=f"{'ä' if n % 2 else 'a'}{n}@example.com")) for n in range(10)]
        sender = world.sender()
        pump = asyncio.create_task(world.delays())
        await world.until(lambda: all(world.took(m) for m in mails[::2]), 20)
        assert world.primary.opened == 1
        await world.until(lambda: all("DeadLettered" in world.kinds(m) for m in mails[1::2]), 60)
        pump.cancel()
        at_rest(sender)
        await sender.stop()

    run_virtually(main())


def test_a_body_that_no_server_may_be_shown_is_a_dead_letter() -> None:
    async def main() -> None:
        world = World()

        def bare(ready: object) -> Composed:
            made = compose(ready)  # type: ignore[arg-type]
            return made._replace(data=made.data + b"bare\nline\r\n") if made.recipient.startswith("bad") else made

        bad, good = world.put(mail("bad")), world.put(mail("good"))
        sender = world.sender(composer=bare)
        await world.settled()
        assert world.kinds(bad) == ["Attempted", "DeadLettered"]
        assert world.kinds(good) == ["Attempted", "Delivered"]
        at_rest(sender)
        await sender.stop()

    run_virtually(main())


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data", "dot"])
@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("answer", ["drop", "550 5.7.1 no", "450 4.2.1 later", "421 4.3.2 closing", "take and drop"])
def test_whatever_a_server_does_in_a_phase_every_place_comes_back(phase: str, pipelining: bool, answer: str) -> None:
    async def main() -> None:
        if answer == "take and drop" and phase != "dot":
            return
        world = World()
        turns = {"left": 6}

        def odd(at_phase: str, who: str) -> str:
            if at_phase == phase and turns["left"]:
                turns["left"] -= 1
                return answer
            return "250 ok"

        world.primary.answer = odd
        world.primary.pipelining = world.backup.pipelining = pipelining
        mails = world.put_many(24)
        sender = world.sender()
        pump = asyncio.create_task(world.delays())
        await world.until(lambda: all({"Delivered", "DeadLettered"} & set(world.kinds(m)) for m in mails), 120)
        pump.cancel()
        at_rest(sender)
        await sender.stop()
        for ready in mails:
            kinds = world.kinds(ready)
            assert world.took(ready) <= 1 + kinds.count("Uncertain")
            assert kinds.count("Delivered") == 1

    run_virtually(main())


class Weather:
    """Random faults of the log."""

    def __init__(self, dice: random.Random, until_s: float) -> None:
        self.dice, self.until_s = dice, until_s

    async def at(self, point: str, who: str) -> Fault | None:
        if asyncio.get_running_loop().time() > self.until_s:
            return None
        if point in ("produce", "send_offsets") and self.dice.random() < 0.05:
            return Fault.ABORT
        if point == "commit":
            await asyncio.sleep(self.dice.random() * 0.05)
            if self.dice.random() < 0.15:
                return self.dice.choice([Fault.ABORT, Fault.UNKNOWN_APPLIED, Fault.UNKNOWN_LOST, Fault.UNKNOWN_LATE])
        return None


@pytest.mark.parametrize("seed", range(25))
def test_places_never_leak_and_nothing_is_lost_or_doubled_in_any_weather(seed: int) -> None:
    """Random servers, random commits, members that come and go: at the end every place is back, every mail settled,
    and no server took one more often than its doubts allow."""

    async def main() -> None:
        dice = random.Random(seed)
        changes = {"intent_ttl_s": 3, "drain_timeout_s": dice.choice([0.2, 3])}
        world = World(config(lane=changes, provider={"connections": dice.choice([1, 3]), "dot_timeout_s": 9}))
        calm_at = 25.0

        def answer(phase: str, who: str) -> str:
            roll = dice.random()
            if asyncio.get_running_loop().time() > calm_at or roll > 0.25:
                return "250 ok"
            replies = ["drop", "450 4.2.1 later", "421 4.3.2 closing", "452 4.7.0 slow down, too many", "hang"]
            return dice.choice([*replies, "take and drop"] if phase == "dot" else replies)

        for server in world.servers.values():
            server.answer = answer
            server.pipelining = dice.random() < 0.6
            server.latency_s = dice.choice([0.001, 0.02])
        mails = world.put_many(60)
        pump = asyncio.create_task(world.delays())
        weather = Weather(dice, calm_at)
        senders = [world.sender("s1", weather), world.sender("s2", weather)]
        for _ in range(4):
            await asyncio.sleep(dice.random() * 8)
            server = dice.choice(list(world.servers.values()))
            server.down()
            await asyncio.sleep(dice.random() * 2)
            server.up = True
            if dice.random() < 0.5:
                world.cluster.group(f"s.sender.{LANE}").rebalance()
            elif len(senders) == 2 and dice.random() < 0.5:
                await senders.pop().stop()
        done = {"Delivered", "DeadLettered"}
        await world.until(lambda: all(done & set(world.kinds(m)) for m in mails), 400, 0.25)
        await world.settled(60)
        pump.cancel()
        for sender in senders:
            at_rest(sender)
            assert sender.lane.metrics.in_doubt.labels(LANE)._value.get() == 0
            await sender.stop()
        for ready in mails:
            kinds = world.kinds(ready)
            assert world.took(ready) <= 1 + kinds.count("Uncertain"), f"{ready.recipient}: {kinds}"
            assert len([k for k in kinds if k in done]) == 1

    run_virtually(main())


def test_a_host_name_that_breaks_the_resolver_is_a_provider_that_is_down() -> None:
    async def main() -> None:
        world = World()

        async def breaks(link: object) -> object:
            raise UnicodeError("label too long")

        world.primary.open = breaks  # type: ignore[method-assign,assignment]
        mails = world.put_many(6, content=MailContent(sender="a@example.org", text="x"))
        sender = world.sender()
        pump = asyncio.create_task(world.delays())
        await world.until(lambda: all(world.backup.took[m.delivery_id] for m in mails), 30)
        pump.cancel()
        await sender.stop()

    run_virtually(main())


def test_as_many_wait_ahead_as_the_server_took_within_two_ticks() -> None:
    """A slow server has few intents open, a fast one never waits for a commit; both within the bound."""

    async def main() -> None:
        world = World(config(provider={"connections": 2}))
        sender = world.sender()
        await world.settled()
        link = sender.pool.links[0]

        def allowed() -> int:
            for count in range(200):
                link.places = count
                if not link.has_place(sender.lane.clock.monotonic()):
                    break
            link.places = 0
            return count

        assert allowed() == 2 + 2, "one ahead of each conversation"
        link._done = 10
        link.ticked()
        assert allowed() == 2 + 10
        link._done = 7
        assert allowed() == 2 + 17
        link.ticked()
        assert allowed() == 2 + 7
        link.ticked()
        assert allowed() == 2 + 2
        link._done = 1000
        assert allowed() == 2 + 2 * sender.lane.policy.ahead_per_connection
        await sender.stop()

    run_virtually(main())
