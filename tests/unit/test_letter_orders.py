"""Dead letters as operators handle them: list, show, discard, resolve; on the log in memory."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.replay_world import Operator, all_routed, with_letters
from tests.unit.router_world import NAMES, PARTITIONS, LoopClock, World, virtually

from postlane.core.replay import Guard, Status
from postlane.core.where import parse
from postlane.eventlog.memory_faults import Fault
from postlane.eventlog.ports import Outgoing
from postlane.ops import replay_reading
from postlane.ops.letter_orders import (
    NoSuchLetter,
    Refused,
    Row,
    discard,
    listed,
    plan_discard,
    resolve,
    story,
)
from postlane.ops.letters import FIELDS, Filters, domain_filter, letter_id
from postlane.ops.replay import Pace, Writer
from postlane.ops.replay_reading import Reading, TooMany
from postlane.ops.replay_requests import Manner, Scribe


async def rows(operator: Operator, status: Status | None = None, limit: int | None = None, **filters: Any) -> list[Row]:
    reading = Reading(operator.log, NAMES)
    return [row async for row in listed(reading, NAMES, Filters(**filters), status, limit)]


async def discarded(operator: Operator, **filters: Any) -> tuple[int, Counter[str]]:
    reading, log = Reading(operator.log, NAMES), operator.log
    made = await plan_discard(reading, NAMES, Filters(**filters), None)
    writer = Writer(log, NAMES, await log.transactor("w.discard"))
    scribe, pace = Scribe(NAMES, Manner(), operator.name, PARTITIONS), Pace(None, lambda: 0.0)
    now = LoopClock().now()
    done = await discard(reading, NAMES, writer, scribe, made, Manner(reason="why"), now, pace)
    return done, made.counts.guarded


async def resolved(operator: Operator, delivery: str, state: Any) -> bool:
    log = operator.log
    writer = Writer(log, NAMES, await log.transactor("w.resolve"))
    scribe = Scribe(NAMES, Manner(), operator.name, PARTITIONS)
    reading, now = Reading(log, NAMES), LoopClock().now()
    return (await resolve(reading, NAMES, writer, scribe, delivery, state, "", now)).changed


def test_a_list_is_filtered_by_everything_that_a_letter_says() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        await with_letters(world, 8, lambda mail: "policy" if int(mail.recipient[1]) % 2 else "uncertain")
        operator = Operator(world)

        async def count(**filters: Any) -> int:
            return len(await rows(operator, **filters))

        now = LoopClock().now()
        assert await count() == 8
        assert await count(reason="policy") == 4
        assert await count(lane="bulk") == 0
        assert await count(tenant="default", domain="example.com", provider="primary") == 8
        assert await count(domain=domain_filter("EXAMPLE.com")) == 8
        assert await count(campaign="x") == 0
        assert await count(since=now + timedelta(seconds=1)) == 0
        assert await count(until=now + timedelta(seconds=1)) == 8
        assert await count(where=parse("reply_code = 550 and attempts >= 3 and recipient contains 'r1@'", FIELDS)) == 1
        assert len(await rows(operator, limit=3)) == 3
        [first, second, *_] = await rows(operator)
        assert await count(letters=frozenset({letter_id(first.letter.id)})) == 1
        assert await count(deliveries=frozenset({second.letter.delivery_id or ""})) == 1
        ids = [row.letter.id for row in await rows(operator)]
        assert ids == sorted(ids, key=letter_id)
        assert all(set(row.letter.fields()) <= set(FIELDS) for row in await rows(operator))
        await router.stop()

    virtually(main())


def test_what_becomes_of_a_letter_is_its_status() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        outcomes = ["policy", "policy", "uncertain", "policy"]
        await with_letters(world, 4, lambda mail: outcomes[int(mail.recipient[1])])
        world.cluster.write(Outgoing(NAMES.requests, 0, b"k", b"{", []))
        await all_routed(world)
        operator = Operator(world)
        by_name = {row.letter.fields().get("recipient", "poison")[:2]: row.letter for row in await rows(operator)}
        assert await operator.replay(filters=Filters(letters=frozenset({letter_id(by_name["r0"].id)}))) == 1
        chosen = frozenset(letter_id(by_name[name].id) for name in ("r1", "po", "r0"))
        assert await discarded(operator, letters=chosen) == (2, Counter({Guard.REPLAYED: 1}))
        assert await resolved(operator, by_name["r2"].delivery_id or "", "bounced")
        found = {row.letter.fields().get("recipient", "poison")[:2]: row.status.value for row in await rows(operator)}
        assert found == {"r0": "replayed", "r1": "discarded", "po": "discarded", "r2": "resolved", "r3": "open"}
        assert [r.letter.id for r in await rows(operator, Status.OPEN)] == [by_name["r3"].id]
        assert await discarded(operator) == (1, Counter({Guard.REPLAYED: 1, Guard.DISCARDED: 2, Guard.BOUNCED: 1}))
        guarded = (await operator.plan(include=frozenset({Guard.UNDECODABLE, Guard.UNCERTAIN}))).counts.guarded
        assert guarded == {Guard.PENDING: 1, Guard.DISCARDED: 3, Guard.BOUNCED: 1}
        await router.stop()

    virtually(main())


def test_only_what_is_uncertain_can_be_resolved() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        await with_letters(world, 2, lambda mail: "uncertain" if mail.recipient[1] == "0" else "policy")
        operator = Operator(world)
        [uncertain] = await rows(operator, reason="uncertain")
        [policy] = await rows(operator, reason="policy")
        one = uncertain.letter.delivery_id or ""
        with pytest.raises(Refused, match="is dead_lettered, not uncertain"):
            await resolved(operator, policy.letter.delivery_id or "", "delivered")
        with pytest.raises(NoSuchLetter):
            await resolved(operator, one.replace(one[:8], "0" * 8), "delivered")
        with pytest.raises(ValueError, match="not a delivery id"):
            await resolved(operator, "x", "delivered")
        assert await resolved(operator, one, "delivered")
        assert not await resolved(operator, one, "delivered")  # the same again changes nothing
        with pytest.raises(Refused, match="is delivered, not uncertain"):
            await resolved(operator, one, "bounced")
        told = [e.type for e in world.events()[one.split(".")[0]]]
        assert told.count("Resolved") == 1
        await router.stop()

    virtually(main())


def test_a_letter_tells_its_whole_story() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        await with_letters(world, 1, to=("r0@example.com", "other@example.com"))
        operator = Operator(world)
        row = next(row for row in await rows(operator) if row.letter.fields()["recipient"] == "r0@example.com")
        await operator.replay(filters=Filters(letters=frozenset({letter_id(row.letter.id)})))
        await all_routed(world)
        reading = Reading(operator.log, NAMES)
        for ident in (letter_id(row.letter.id), row.letter.delivery_id or ""):
            found = await story(reading, NAMES, ident)
            told = [(e.generation, e.type) for e in found.events if hasattr(e, "generation")]
            assert told == [
                (0, "Requested"), (0, "Routed"), (0, "Attempted"), (0, "DeadLettered"),
                (0, "Replayed"), (1, "Requested"), (1, "Routed"),
            ]  # fmt: skip
            assert found.letter is not None
            assert found.letter.mail is not None
            assert found.letter.mail.content.text == "On its way."
            assert found.status is Status.REPLAYED
        for nothing in ((0, 999), (99, 0), "00000000-0000-0000-0000-000000000000.0123456789abcdef.0"):
            with pytest.raises(NoSuchLetter):
                await story(reading, NAMES, nothing)
        await router.stop()

    virtually(main())


def test_too_many_candidates_are_refused_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_reading, "CANDIDATES_MAX", 1)

    async def main() -> None:
        world = World()
        router = world.router()
        await with_letters(world, 8)
        with pytest.raises(TooMany, match="narrow it down"):
            await Operator(world).plan()
        await router.stop()

    virtually(main())


def test_the_names_of_letters_are_strict() -> None:
    assert letter_id("3-17") == (3, 17)
    for text in ("3", "3-", "-1-2", "a-b", "3-17x", "3-17\n", "1" * 30 + "-1"):
        with pytest.raises(ValueError, match="no id of a dead letter"):
            letter_id(text)


def test_a_log_that_does_not_answer_is_said() -> None:
    from postlane.eventlog.errors import Retriable

    class Nobody:
        async def at(self, point: str, who: str) -> Fault | None:
            return Fault.UNREACHABLE if who == "cut off" else None

    async def main() -> None:
        world = World()
        with pytest.raises(Retriable):
            await rows(Operator(world, "cut off", Nobody()))

    virtually(main())
