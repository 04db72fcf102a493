"""The tick under faults: aborted, unknown, fenced, and records that cannot be written again."""

from __future__ import annotations

import asyncio

import pytest
from tests.contract.virtual_time import run_virtually
from tests.unit.sender_world import LANE, NAMES, World, config, mail, places

from postlane.core.books import Stage
from postlane.core.events import MailContent, TemplateRef
from postlane.eventlog.errors import Fenced
from postlane.eventlog.memory_faults import Fault
from postlane.eventlog.ports import Outgoing, Partition


class Once:
    """At the `nth` commit that reaches a point, one fault; `held_s` first."""

    def __init__(self, point: str, fault: Fault, nth: int = 1, count: int = 1, after_s: float = 0.0) -> None:
        self.point, self.fault, self.left, self.count, self.after_s = point, fault, nth, count, after_s
        self.seen = 0

    async def at(self, point: str, who: str) -> Fault | None:
        if point != self.point or asyncio.get_running_loop().time() < self.after_s:
            return None
        self.left -= 1
        if self.left <= 0 and self.count > 0:
            self.count -= 1
            self.seen += 1
            return self.fault
        return None


UNKNOWN = [Fault.UNKNOWN_APPLIED, Fault.UNKNOWN_LOST, Fault.UNKNOWN_LATE]


@pytest.mark.parametrize("fault", [*UNKNOWN, Fault.ABORT, Fault.UNREACHABLE])
@pytest.mark.parametrize("nth", range(1, 9))
def test_a_commit_that_fails_at_any_time_loses_and_doubles_nothing(fault: Fault, nth: int) -> None:
    async def main() -> None:
        world = World()
        faults = Once("commit", fault, nth)
        mails = world.put_many(30)
        sender = world.sender(faults=faults)
        await world.settled()
        await sender.stop()
        for ready in mails:
            assert world.took(ready) == 1
            assert world.kinds(ready) == ["Attempted", "Delivered"]
        assert places(sender.pool) == {"primary": 0, "backup": 0}
        assert sender.loop.lane.gate_open
        assert faults.seen == 1

    run_virtually(main())


def test_bodies_that_were_asked_for_while_a_commit_was_unknown_are_written_afterwards() -> None:
    """A session that was told to wait must not wait for its time-out."""

    async def main() -> None:
        world = World(config(provider={"connections": 8}))
        world.primary.latency_s = 0.03  # 354 comes while the second tick is in flight
        first = world.put_many(4, "a")

        class SlowThenUnknown(Once):
            async def at(self, point: str, who: str) -> Fault | None:
                found = await super().at(point, who)
                if found is not None:
                    await asyncio.sleep(0.5)
                return found

        sender = world.sender(faults=SlowThenUnknown("commit", Fault.UNKNOWN_LOST, 2))
        await world.until(lambda: any("Attempted" in world.kinds(m) for m in first), every_s=0.001)
        second = world.put_many(4, "b")
        began = asyncio.get_running_loop().time()
        await world.settled()
        assert asyncio.get_running_loop().time() - began < 5
        await sender.stop()
        for ready in first + second:
            assert world.kinds(ready) == ["Attempted", "Delivered"], ready.recipient
            assert world.took(ready) == 1

    run_virtually(main())


def test_while_nothing_can_be_written_nothing_is_sent_and_it_says_so() -> None:
    async def main() -> None:
        world = World()
        faults = Once("produce", Fault.ABORT, 1, count=10**9)
        mails = world.put_many(10)
        sender = world.sender(faults=faults)
        await world.until(lambda: faults.seen > 30, 120)
        assert sum(world.primary.took.values()) == 0
        assert "aborted" in (sender.loop.not_ready() or "")
        sender.loop._ticker._aborts = 5000  # type: ignore[union-attr]  # as after hours
        seen = faults.seen
        await world.until(lambda: faults.seen > seen + 3, 60)
        faults.count = 0
        await world.settled()
        assert sender.loop.not_ready() is None
        await sender.stop()
        assert [world.took(m) for m in mails] == [1] * 10
        assert places(sender.pool) == {"primary": 0, "backup": 0}

    run_virtually(main())


def test_a_tick_that_does_not_come_back_makes_the_lane_unready() -> None:
    async def main() -> None:
        world = World()

        class Stuck(Once):
            async def at(self, point: str, who: str) -> Fault | None:
                if await super().at(point, who) is not None:
                    await asyncio.sleep(9)  # within the transaction time-out
                return None

        world.put_many(3)
        sender = world.sender(faults=Stuck("commit", Fault.ABORT))
        await world.until(lambda: "was begun" in (sender.loop.not_ready() or ""), 12)
        await world.settled()
        await world.until(lambda: sender.loop.not_ready() is None, 5)
        await sender.stop()

    run_virtually(main())


def test_whoever_was_fenced_says_and_sends_nothing_more() -> None:
    async def main() -> None:
        world = World()
        world.primary.latency_s = 0.05
        mails = world.put_many(40)
        old = world.sender("s1")
        await world.until(lambda: sum(world.primary.took.values()) >= 4, every_s=0.001)
        new = world.sender("s1")
        with pytest.raises(Fenced):
            await asyncio.wait_for(old.task, 30)
        assert not old.lane.gate_open
        assert not old.lane.books
        pump = asyncio.create_task(world.delays())
        await world.settled(120)
        await world.until(lambda: all(world.took(m) for m in mails), 120)
        await new.stop()
        pump.cancel()
        for ready in mails:
            doubts = world.kinds(ready).count("Uncertain")
            assert world.took(ready) <= 1 + doubts
            assert world.kinds(ready).count("Delivered") == 1

    run_virtually(main())


def test_a_next_hop_that_cannot_be_written_is_a_dead_letter() -> None:
    """JSON that was read may be deeper, or have larger numbers, than what can be written."""

    async def main() -> None:
        world = World()
        world.primary.answer = lambda phase, who: "450 4.2.1 later" if phase == "rcpt" else "250 ok"
        fine = world.put(mail("fine"))
        odd = mail("odd", content=MailContent(sender="a@example.org", template=TemplateRef(id="t", data={"n": 1})))
        value = odd.model_dump_json(exclude_none=True).replace('"n":1', '"n":1' + "0" * 40).encode()
        world.cluster.write(Outgoing(NAMES.dispatch(LANE), 0, b"odd", value))
        sender = world.sender()
        await world.settled()
        await sender.stop()
        assert world.kinds(fine) == ["Attempted", "Deferred"]
        assert world.kinds(odd) == ["Attempted", "DeadLettered"]
        assert [record.value for record in world.records(NAMES.dead_letters)] == [value]

    run_virtually(main())


def test_what_is_settled_is_let_go_of_also_behind_a_slow_one() -> None:
    async def main() -> None:
        world = World(config(topics={"partitions": 1}))
        slow = mail("slow")
        world.primary.answer = lambda phase, who: "hang" if phase == "dot" and who.startswith("slow") else "250 ok"
        world.put(slow)
        rest = [
            world.put(mail(f"r{n}", content=MailContent(sender="a@b.example", text="x" * 10_000))) for n in range(50)
        ]
        sender = world.sender()
        pump = asyncio.create_task(world.delays())  # the one behind it on its connection is released, and comes again
        await world.until(lambda: all("Delivered" in world.kinds(m) for m in rest), 30)
        pump.cancel()
        book = sender.lane.books[0]
        assert book.oldest == 0
        settled = [entry for entry in book.entries if entry.stage is Stage.SETTLED]
        assert len(settled) >= 50
        assert all(entry.mail is entry.raw is entry.body is entry.decision is None for entry in settled)
        assert book.held_bytes < 2000, "only the slow one is held"
        await sender.kill()

    run_virtually(main())


def test_offsets_go_with_every_partition_that_is_written_for_and_s_with_them() -> None:
    async def main() -> None:
        world = World()
        world.put_many(6)
        sender = world.sender()
        await world.settled()
        await sender.stop()
        for number, committed in world.committed().items():
            assert committed.offset == world.end(number)
            floor = int(committed.metadata.partition(":")[2])
            assert floor <= world.cluster.log(Partition(NAMES.state(LANE), number)).end

    run_virtually(main())
