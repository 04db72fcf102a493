"""One lane from dispatch record to outcome, on the log in memory: what ends how, and what nothing may stop."""

from __future__ import annotations

import asyncio

from tests.contract.virtual_time import run_virtually
from tests.unit.sender_world import World, config, mail, places


def test_mails_are_delivered_once_and_the_books_close() -> None:
    async def main() -> None:
        world = World()
        mails = world.put_many(40)
        sender = world.sender()
        await world.settled()
        await sender.stop()
        for ready in mails:
            assert world.kinds(ready) == ["Attempted", "Delivered"]
            assert world.took(ready) == 1
        assert places(sender.pool) == {"primary": 0, "backup": 0}

    run_virtually(main())


def test_a_refusal_that_comes_before_its_intent_is_committed_is_kept() -> None:
    async def main() -> None:
        world = World()
        world.primary.answer = lambda phase, who: "550 5.1.1 unknown user" if who.startswith("k3@") else "250 ok"
        world.primary.latency_s = 0.0001
        mails = world.put_many(8)
        sender = world.sender()
        await world.settled()
        await sender.stop()
        assert world.kinds(mails[3]) == ["Attempted", "Bounced"]
        assert places(sender.pool) == {"primary": 0, "backup": 0}

    run_virtually(main())


def test_nothing_uncertain_after_an_orderly_stop_in_the_middle() -> None:
    async def main() -> None:
        world = World()
        mails = world.put_many(60)
        first = world.sender("s1")
        await world.until(lambda: sum(world.primary.took.values()) >= 10, every_s=0.001)
        await first.stop()
        second = world.sender("s2")
        pump = asyncio.create_task(world.delays())
        await world.until(lambda: all(world.took(m) for m in mails), 90)
        await second.stop()
        pump.cancel()
        for ready in mails:
            assert world.took(ready) == 1
            assert "Uncertain" not in world.kinds(ready)

    run_virtually(main())


def test_a_poison_record_goes_to_the_dead_letters_and_stops_nobody() -> None:
    async def main() -> None:
        world = World(config())
        world.put(mail("before"))
        world.put(mail("huge", hop=10**15))
        world.put(mail("long", delivery_id="x" * 5000))
        world.put(mail("after"))
        sender = world.sender()
        await world.settled()
        await sender.stop()
        assert world.kinds(mail("before")) == world.kinds(mail("after")) == ["Attempted", "Delivered"]
        assert len(world.records("s.mail.dead-letters")) == 2

    run_virtually(main())
