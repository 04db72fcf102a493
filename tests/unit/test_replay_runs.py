"""Replay on the log in memory with the real router: whatever happens to its runs, nobody is mailed twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import orjson
import pytest
from tests.unit.replay_world import Operator, Sender, all_routed, generations, soon, with_letters
from tests.unit.router_world import NAMES, LoopClock, World, virtually

from postlane.core.events import DispatchReady, MailRequested, Replayed, Requested, Suppression
from postlane.core.replay import Guard
from postlane.eventlog.codec import decode, encode, header
from postlane.eventlog.memory_faults import Fault, ProcessDied
from postlane.eventlog.ports import Outgoing
from postlane.ops.letters import Filters
from postlane.ops.replay import Writer


def test_a_dead_letter_is_mailed_again_once() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        sender, messages = await with_letters(world, 6)
        operator = Operator(world)
        assert await operator.replay() == 6
        await all_routed(world)
        assert generations(world, messages) == {message: [0, 1] for message in messages}
        sender.settle(lambda _: "delivered")
        again = await operator.plan()
        assert (again.total, again.counts.guarded) == (0, Counter({Guard.DELIVERED: 6}))
        await router.stop()

    virtually(main())


def test_a_replay_says_what_it_would_do_and_then_does_that() -> None:
    outcomes = ["policy", "delivered", "uncertain", "policy", "doubted", "sending", "infrastructure"]

    async def main() -> None:
        world = World()
        router = world.router()
        _, messages = await with_letters(world, 7, lambda mail: outcomes[int(mail.recipient[1])])
        operator = Operator(world)
        made = await operator.plan()
        assert made.counts.reasons == {"policy": 2, "infrastructure": 1}
        assert made.counts.lanes == {"transactional": 3}
        assert made.counts.domains == {"example.com": 3}
        assert made.counts.guarded == {Guard.UNCERTAIN: 1, Guard.POSSIBLY_DELIVERED: 1}
        assert await operator.run(made) == made.total
        await all_routed(world)
        expected = [[0, 1], [0], [0], [0, 1], [0], [0], [0, 1]]
        assert list(generations(world, messages).values()) == expected
        await router.stop()

    virtually(main())


def test_the_new_generation_is_the_mail_that_it_was() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        message = world.publish(
            "k", to=("Ada <ada@example.com>",), cc=("bob@example.com",), bcc=("eve@example.net",), campaign="c",
            headers={"X-Own": "1"}, expires_at=soon(60), send_at=None, html="<p>hi</p>",
        )  # fmt: skip
        await all_routed(world)
        sender = Sender(world)
        sender.settle(lambda mail: "delivered" if mail.recipient == "bob@example.com" else "policy")
        await asyncio.sleep(3600)  # the first mail is long past its expiry
        assert await Operator(world).replay() == 2
        await all_routed(world)
        ready = {(r.recipient, r.generation): r for r in world.dispatched()[message]}
        assert set(ready) == {(who, 0) for who in ("ada@example.com", "bob@example.com", "eve@example.net")} | {
            ("ada@example.com", 1),
            ("eve@example.net", 1),
        }
        first, again = ready["eve@example.net", 0], ready["eve@example.net", 1]
        assert again.content == first.content
        assert "eve" not in encode(again.content).decode()
        assert again.expires_at is not None
        assert again.expires_at > LoopClock().now()
        assert (again.campaign, again.in_doubt, again.attempt, again.hop) == ("c", first.in_doubt, 1, 0)
        told = [e for e in world.events()[message] if isinstance(e, Requested) and e.generation]
        assert sorted(e.replay_of or "" for e in told) == sorted(
            ready[who, 0].delivery_id for who in ("ada@example.com", "eve@example.net")
        )
        records = [r for r in world.records(NAMES.requests) if header(r.headers, "ce_source") == b"postlane/replay"]
        assert {r.partition for r in records} == {r.partition for r in world.records(NAMES.dispatch("transactional"))}
        assert all(header(r.headers, "traceparent") for r in records)
        await router.stop()

    virtually(main())


def test_two_operators_at_once_mail_nobody_twice() -> None:
    """Both plan from the same facts, then both carry it out; the router drops what the second asks for."""

    async def main() -> None:
        world = World()
        router = world.router()
        sender, messages = await with_letters(world, 8)
        one, two = Operator(world, "one"), Operator(world, "two")
        plans = await one.plan(), await two.plan()
        assert [made.total for made in plans] == [8, 8]
        await asyncio.gather(one.run(plans[0]), two.run(plans[1]))
        await all_routed(world)
        assert generations(world, messages) == {message: [0, 1] for message in messages}
        assert not [e for told in world.events().values() for e in told if e.type == "Conflicted"]
        sender.settle(lambda _: "delivered")
        assert list(sender.copies.values()) == [[1]] * 8
        await router.stop()

    virtually(main())


def test_a_stale_plan_mails_nobody_twice() -> None:
    """The second plan is carried out only after the first one's mails were delivered."""

    async def main() -> None:
        world = World()
        router = world.router()
        sender, messages = await with_letters(world, 5)
        stale = Operator(world, "stale")
        made = await stale.plan()
        assert await Operator(world, "quick").replay() == 5
        await all_routed(world)
        sender.settle(lambda _: "delivered")
        assert await stale.run(made) == 5  # written, and dropped by the router
        await all_routed(world)
        sender.settle(lambda _: "delivered")
        assert generations(world, messages) == {message: [0, 1] for message in messages}
        assert all(copies == [1] for copies in sender.copies.values())
        await router.stop()

    virtually(main())


class _At:
    """One fault at the nth passing of a point by one process."""

    def __init__(self, point: str, number: int, fault: Fault) -> None:
        self.point, self.left, self.fault = point, number, fault

    async def at(self, point: str, who: str) -> Fault | None:
        if point != self.point or who != "victim":
            return None
        self.left -= 1
        return self.fault if self.left == 0 else None


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("point", ["init", "begin", "produce", "commit", "committed", "read"])
def test_killed_anywhere_and_started_again_mails_everyone_once(point: str, number: int) -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        sender, messages = await with_letters(world, 9)
        victim = Operator(world, "victim", _At(point, number, Fault.CRASH))

        async def again_and_again() -> None:
            while True:  # a point that one run does not pass so often is passed by the next
                await victim.run(await victim.plan(), batch_max=2)

        with pytest.raises(ProcessDied):
            await again_and_again()
        await Operator(world, "victim").replay()  # the same transactional id: settles at once what was left open
        await all_routed(world)
        assert generations(world, messages) == {message: [0, 1] for message in messages}
        sender.settle(lambda _: "delivered")
        assert all(copies == [1] for copies in sender.copies.values())
        assert len(sender.copies) == 9
        await router.stop()

    virtually(main())


@pytest.mark.parametrize(
    "fault",
    [Fault.UNKNOWN_APPLIED, Fault.UNKNOWN_LOST, Fault.UNKNOWN_LATE, Fault.ABORT, Fault.UNREACHABLE],
)
def test_a_commit_of_unknown_outcome_is_looked_up(fault: Fault) -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        _, messages = await with_letters(world, 9)
        operator = Operator(world, "victim", _At("commit", 2, fault))
        assert await operator.run(await operator.plan(), batch_max=2) == 9
        await asyncio.sleep(2)  # a late EndTxn has come by then
        await all_routed(world)
        assert generations(world, messages) == {message: [0, 1] for message in messages}
        said = Counter(e.delivery_id for told in world.events().values() for e in told if isinstance(e, Replayed))
        assert set(said.values()) == {1}
        assert len(said) == 9
        await router.stop()

    virtually(main())


def test_what_failed_again_is_replayed_again_from_its_own_letter() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        sender, messages = await with_letters(world, 3)
        operator = Operator(world)
        await operator.replay()
        await all_routed(world)
        sender.settle(lambda _: "infrastructure")
        made = await operator.plan()
        assert made.counts.reasons == {"infrastructure": 3}
        assert made.counts.guarded == {Guard.REPLAYED: 3}
        await operator.run(made)
        await all_routed(world)
        assert generations(world, messages) == {message: [0, 1, 2] for message in messages}
        await router.stop()

    virtually(main())


def test_what_is_included_by_name_is_mailed_once_in_a_run() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        sender, messages = await with_letters(world, 4, lambda _: "delivered")
        operator = Operator(world)
        asked: dict[str, Any] = {
            "what": "requests",
            "filters": Filters(until=soon(0.001)),
            "include": frozenset({Guard.DELIVERED}),
        }
        assert (await operator.plan(what="requests")).counts.guarded == {Guard.DELIVERED: 4}
        assert await operator.replay(**asked, run="r1") == 4
        await all_routed(world)
        sender.settle(lambda _: "delivered")
        again = await operator.plan(**asked, run="r1")
        assert (again.total, again.counts.guarded) == (0, Counter({Guard.REPLAYED_BY_RUN: 4}))
        assert await operator.replay(**asked, run="r2") == 4
        await all_routed(world)
        assert generations(world, messages) == {message: [0, 1, 2] for message in messages}
        await router.stop()

    virtually(main())


def test_the_suppression_list_holds_unless_it_is_named() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        _, messages = await with_letters(world, 2)
        now = LoopClock().now()
        world.put(NAMES.suppressions, "default/r0@example.com", Suppression(address="r0@example.com", at=now))
        operator = Operator(world)
        made = await operator.plan()
        assert (made.total, made.counts.guarded) == (1, Counter({Guard.SUPPRESSED: 1}))
        await asyncio.sleep(1)
        assert await operator.replay(include=frozenset({Guard.SUPPRESSED})) == 2
        await all_routed(world)
        assert generations(world, messages) == {message: [0, 1] for message in messages}
        await router.stop()

    virtually(main())


def test_a_poison_request_goes_back_as_it_was_only_when_named() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        good = world.publish("good")
        original = Outgoing(NAMES.requests, 1, b"\xff\x00key", b"{not json", [("x-own", b"\x01"), ("ce_type", b"odd")])
        world.cluster.write(original)
        await all_routed(world)
        operator = Operator(world)
        assert (await operator.plan()).counts.guarded == {Guard.UNDECODABLE: 1}
        assert await operator.replay(include=frozenset({Guard.UNDECODABLE})) == 1
        await all_routed(world)
        found = [r for r in world.records(NAMES.requests) if r.value == original.value]
        assert [(r.partition, r.key, list(r.headers)) for r in found] == [(1, original.key, original.headers)] * 2
        assert len(world.records(NAMES.dead_letters)) == 2  # still poison: a letter of its own
        made = await operator.plan(include=frozenset({Guard.UNDECODABLE}), filters=Filters(letters=frozenset({(1, 0)})))
        assert (made.total, made.counts.guarded) == (0, Counter({Guard.REPLAYED: 1}))
        assert generations(world, [good]) == {good: [0]}
        await router.stop()

    virtually(main())


def test_a_key_conflict_becomes_a_mail_of_its_own_only_on_demand() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        message = world.publish("k")
        world.publish("k", subject="other", bcc=("eve@example.net",))
        await all_routed(world)
        operator = Operator(world)
        assert (await operator.plan()).counts.guarded == {Guard.KEY_CONFLICT: 1}
        one, two = Operator(world, "one"), Operator(world, "two")
        plans = await one.plan(new_key=True), await two.plan(new_key=True)
        assert await one.run(plans[0]) == await two.run(plans[1]) == 1
        await all_routed(world)
        dispatched = {m: [r.recipient for r in found] for m, found in world.dispatched().items()}
        assert dispatched.pop(message) == ["ada@example.com"]
        assert list(dispatched.values()) == [["ada@example.com", "eve@example.net"]]
        assert (await operator.plan(new_key=True)).counts.guarded == {Guard.REPLAYED: 1}
        await router.stop()

    virtually(main())


def test_a_window_is_replayed_by_state_and_recipient() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        to = ("ada@example.com", "bob@example.org", "eve@example.com")

        def outcome(mail: DispatchReady) -> str:
            return {"a": "expired", "b": "delivered", "e": "bounced"}[mail.recipient[0]]

        sender, messages = await with_letters(world, 3, outcome, to=to)
        from postlane.core.lifecycle import State

        operator = Operator(world)
        asked: dict[str, Any] = {"what": "requests", "filters": Filters(until=soon(60))}
        every = await operator.plan(**asked)
        assert (every.total, every.counts.guarded) == (6, Counter({Guard.DELIVERED: 3}))
        made = await operator.plan(**asked, states=frozenset({State.EXPIRED}))
        assert (made.total, made.counts.guarded) == (3, Counter())
        await operator.run(made)
        await all_routed(world)
        for message in messages:
            again = [(r.recipient, r.generation) for r in world.dispatched()[message] if r.generation]
            assert again == [("ada@example.com", 1)]
            assert {r.content.to for r in world.dispatched()[message]} == {to}
        assert (await operator.plan(**asked)).counts.guarded == {Guard.DELIVERED: 3, Guard.PENDING: 3}
        sender.settle(lambda _: "delivered")
        assert (await operator.plan(**asked)).counts.guarded == {Guard.DELIVERED: 6}
        await router.stop()

    virtually(main())


def test_a_repeat_in_the_window_is_not_what_was_accepted() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        _, [message] = await with_letters(world, 1)
        await asyncio.sleep(10)
        since = LoopClock().now()
        world.publish("k0", to=("r0@example.com",), subject="quite another mail")
        await all_routed(world)
        made = await Operator(world).plan(what="requests", filters=Filters(since=since))
        assert (made.total, made.counts.guarded) == (0, Counter({Guard.REPEATED: 1}))
        made = await Operator(world).plan(what="requests")
        assert made.total == 1
        await Operator(world).run(made)
        await all_routed(world)
        assert {r.content.subject for r in world.dispatched()[message]} == {"Order k0"}
        await router.stop()

    virtually(main())


def test_an_undecodable_dispatch_record_that_can_be_read_now_is_a_new_generation() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        message = world.publish("k")
        await all_routed(world)
        [record] = world.records(NAMES.dispatch("transactional"))
        from postlane.eventlog.codec import Unreadable
        from postlane.eventlog.dead_letters import dead_letter

        world.cluster.write(dead_letter(record, "w.sender.transactional", "undecodable", Unreadable("version 2")))
        operator = Operator(world)
        assert (await operator.plan()).counts.guarded == {Guard.UNDECODABLE: 1}
        assert await operator.replay(include=frozenset({Guard.UNDECODABLE})) == 1
        await all_routed(world)
        assert generations(world, [message]) == {message: [0, 1]}
        await router.stop()

    virtually(main())


@pytest.mark.parametrize("limit", [1, 4])
def test_a_limit_goes_on_where_it_stopped(limit: int) -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        _, messages = await with_letters(world, 5)
        operator = Operator(world)
        made = await operator.plan(limit=limit)
        assert (made.total, made.counts.guarded[Guard.LIMIT]) == (limit, 5 - limit)
        total = 0
        while done := await operator.replay(limit=limit):
            total += done
            await all_routed(world)
        assert total == 5
        assert generations(world, messages) == {message: [0, 1] for message in messages}
        await router.stop()

    virtually(main())


def test_a_rate_is_kept() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        await with_letters(world, 9)
        operator = Operator(world)
        began = asyncio.get_running_loop().time()
        await operator.run(await operator.plan(), batch_max=1)  # five a second, one in a transaction
        assert asyncio.get_running_loop().time() - began == pytest.approx(8 / 5, abs=0.1)
        await router.stop()

    virtually(main())


def test_hostile_letters_stop_nothing() -> None:
    """Dead letters that others wrote, or that were damaged, are letters too and never block a plan."""
    from postlane.eventlog.dead_letters import ORIGINAL_OFFSET, ORIGINAL_PARTITION, ORIGINAL_TIMESTAMP, ORIGINAL_TOPIC

    def foreign(topic: bytes) -> list[tuple[str, bytes]]:
        eight = bytes(8)
        return [
            (ORIGINAL_TOPIC, topic), (ORIGINAL_PARTITION, bytes(4)), (ORIGINAL_OFFSET, eight),
            (ORIGINAL_TIMESTAMP, eight), ("postlane-reason", b"undecodable"),
        ]  # fmt: skip

    async def main() -> None:
        world = World()
        router = world.router()
        await with_letters(world, 2)
        mail = decode(DispatchReady, world.records(NAMES.dispatch("transactional"))[0].value)
        stolen = encode(mail.model_copy(update={"delivery_id": "0" * 8 + "-0000-0000-0000-000000000000.abc.0"}))
        for value, wire in [
            (b"", []), (None, []), (b"x", foreign(b"other.topic")), (b"x", foreign(b"w.mail.requests")),
            (b"x", foreign(b"w.mail.state.transactional")), (stolen, foreign(b"w.mail.dispatch.transactional")),
            (orjson.dumps([[]] * 50), foreign(b"w.mail.delay.1s")), (b"x", foreign(b"\xff")),
        ]:  # fmt: skip
            world.cluster.write(Outgoing(NAMES.dead_letters, 0, b"k", value, wire))
        operator = Operator(world)
        made = await operator.plan(include=frozenset({Guard.UNDECODABLE}))
        assert made.counts.total == 3  # two mails, and one that came from the requests
        assert made.counts.guarded == {Guard.NO_CONTENT: 7}
        await operator.run(made)
        topics = {r.topic for name in world.cluster.topics for r in world.records(name)}
        assert "other.topic" not in topics
        await router.stop()

    virtually(main())


def test_an_open_transaction_of_a_killed_run_is_waited_for() -> None:
    """Without the killed run's id a new one waits until the broker has aborted what was left open."""

    async def main() -> None:
        world = World()
        router = world.router()
        _, messages = await with_letters(world, 4)
        victim = Operator(world, "victim", _At("commit", 1, Fault.CRASH))
        with pytest.raises(ProcessDied):
            await victim.replay()
        assert await Operator(world, "another").replay() == 4
        await all_routed(world)
        assert generations(world, messages) == {message: [0, 1] for message in messages}
        await router.stop()

    virtually(main())


def test_what_is_too_large_as_a_request_is_said_before() -> None:
    from postlane.core.events import REQUEST_MAX_BYTES

    async def main() -> None:
        world = World()
        router = world.router()
        base = len(encode(_request(world, text="")))
        _, [message] = await with_letters(world, 1, text="x" * (REQUEST_MAX_BYTES - base - 5))
        made = await Operator(world).plan()
        assert (made.total, made.counts.guarded) == (0, Counter({Guard.TOO_LARGE: 1}))
        assert generations(world, [message]) == {message: [0]}
        await router.stop()

    virtually(main())


def _request(world: World, **changes: Any) -> MailRequested:
    from tests.unit.router_world import request

    return request("k0", **{"to": ("r0@example.com",), **changes})


def test_reads_begin_where_the_log_begins() -> None:
    """Retention takes the oldest records: a plan is made from what is there."""

    async def main() -> None:
        world = World()
        router = world.router()
        await with_letters(world, 6)
        for log in world.cluster.topics[NAMES.dead_letters]:
            log.trim(log.start + 1)
        made = await Operator(world).plan()
        assert made.total == len(world.records(NAMES.dead_letters))
        await router.stop()

    virtually(main())


# -------------------------------------------------- controls: without its guard, each promise must be seen broken


def test_control_a_generation_taken_when_it_is_written_mails_twice() -> None:
    """The model's counterexample: the highest known generation at the time of writing, not of planning."""

    async def main() -> None:
        world = World()
        router = world.router()
        sender, messages = await with_letters(world, 3)
        stale = Operator(world, "stale")
        made = await stale.plan()
        await Operator(world, "quick").replay()
        await all_routed(world)
        sender.settle(lambda _: "delivered")
        for items in made.items.values():
            for index in range(len(items)):
                items.generations[index] += 1
        await stale.run(made)
        await all_routed(world)
        sender.settle(lambda _: "delivered")
        assert all(sorted(copies) == [1, 2] for copies in sender.copies.values())
        assert generations(world, messages) == {message: [0, 1, 2] for message in messages}
        await router.stop()

    virtually(main())


def test_control_an_unknown_commit_that_is_not_looked_up_is_written_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    async def forget(self: Writer, number: int, records: object) -> bool:
        await self._transactor.rebuild()
        return False

    monkeypatch.setattr(Writer, "_happened", forget)

    async def main() -> None:
        world = World()
        router = world.router()
        await with_letters(world, 4)
        operator = Operator(world, "victim", _At("commit", 1, Fault.UNKNOWN_APPLIED))
        await operator.replay()
        said = Counter(e.delivery_id for told in world.events().values() for e in told if isinstance(e, Replayed))
        assert 2 in said.values()
        await router.stop()

    virtually(main())


def test_the_router_drops_what_a_plan_asks_for_twice() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        _, messages = await with_letters(world, 3)
        operator = Operator(world)
        made = await operator.plan()
        await operator.run(made)
        await operator.run(made)
        await all_routed(world)
        assert generations(world, messages) == {message: [0, 1] for message in messages}
        outcomes = Counter(r.key for r in world.records(NAMES.requests))
        assert set(outcomes.values()) == {3}  # the original, and twice the replay: the router dropped one
        await router.stop()

    virtually(main())
