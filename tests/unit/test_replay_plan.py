"""Planning a replay: whatever happened to a delivery before, the guards hold and two plans agree."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postlane.core import events as ev
from postlane.core.identity import delivery_id, message_id_from_key, split_delivery_id
from postlane.core.lifecycle import OPEN, State
from postlane.core.replay import (
    DOMAINS_COUNTED_MAX,
    NAMED,
    OTHERS,
    Candidate,
    Choices,
    Counts,
    Guard,
    Guarded,
    Replay,
    Status,
    decide,
    may_discard,
    plan,
    status_of,
)
from postlane.core.replay_facts import Facts, History

NOW = datetime(2026, 1, 31, tzinfo=UTC)
MESSAGES = [message_id_from_key("default", key) for key in "ab"]
RECIPIENT = "ada@example.com"
KINDS: list[tuple[type[ev.DeliveryEvent], dict[str, Any]]] = [
    (ev.Routed, {"lane": "bulk"}),
    (ev.Scheduled, {"lane": "bulk", "next_at": NOW}),
    (ev.Suppressed, {"reason": "suppressed"}),
    (ev.Cancelled, {}),
    (ev.Expired, {}),
    (ev.Rejected, {"reason": "x"}),
    (ev.Attempted, {}),
    (ev.Deferred, {"reason": "x", "next_at": NOW}),
    (ev.Held, {"reason": "x", "next_at": NOW}),
    (ev.Released, {"reason": "x", "next_at": NOW}),
    (ev.Delivered, {}),
    (ev.Bounced, {"reason": "x"}),
    (ev.Uncertain, {"reason": "x", "policy": "park"}),
    (ev.Uncertain, {"reason": "x", "policy": "resend", "next_at": NOW}),
    (ev.DeadLettered, {"reason": "policy"}),
    (ev.Discarded, {}),
    (ev.Resolved, {"state": "delivered"}),
    (ev.Resolved, {"state": "bounced"}),
]
PATHS: dict[str, list[int]] = {  # ways that deliveries really go, as places in KINDS
    "delivered": [0, 6, 10],
    "dead": [0, 6, 14],
    "uncertain": [0, 6, 12],
    "doubted": [0, 6, 13, 6, 14],
    "resolved": [0, 6, 12, 16],
    "discarded": [0, 6, 14, 15],
    "expired": [0, 4],
    "suppressed": [2],
    "bounced": [0, 6, 11],
    "sending": [0, 6],
}


def event(number: int, message: str, generation: int, **more: Any) -> ev.DeliveryEvent:
    kind, fields = KINDS[number]
    return kind(
        message_id=message,
        delivery_id=delivery_id(message, RECIPIENT, generation),
        recipient=RECIPIENT,
        generation=generation,
        at=NOW,
        **{**fields, **more},
    )


def facts_of(*generations: str, message: str = MESSAGES[0]) -> Facts:
    facts = Facts({message})
    for number, path in enumerate(generations):
        for step in PATHS[path]:
            facts.fold(event(step, message, number))
    return facts


def letter(generation: int = 0, message: str = MESSAGES[0], **more: Any) -> Candidate:
    digest = split_delivery_id(delivery_id(message, RECIPIENT))[1]
    base: dict[str, Any] = {
        "source": "letter", "partition": 0, "offset": generation, "message_id": message, "digest": digest,
        "generation": generation, "reason": "policy", "lane": "bulk", "domain": "example.com",
    }  # fmt: skip
    return Candidate(**{**base, **more})


def verdict(candidate: Candidate, facts: Facts, **choices: Any) -> str:
    found = decide(candidate, facts, Choices(**choices))
    if found is None:
        return "not asked for"
    return f"generation {found.generation}" if isinstance(found, Replay) else found.guard.value


def include(*guards: Guard) -> frozenset[Guard]:
    return frozenset(guards)


@pytest.mark.parametrize(
    ("generations", "candidate", "included", "expected"),
    [
        (["dead"], letter(), include(), "generation 1"),
        ([], letter(), include(*NAMED), "pending"),
        (["sending"], letter(), include(*NAMED), "pending"),
        (["dead", "sending"], letter(), include(*NAMED), "pending"),
        (["dead", "dead"], letter(), include(), "replayed"),
        (["dead", "dead"], letter(1), include(), "generation 2"),
        (["dead", "delivered"], letter(), include(), "delivered"),
        (["dead", "delivered"], letter(), include(Guard.DELIVERED), "generation 2"),
        (["delivered", "dead"], letter(1), include(), "delivered"),
        (["dead", "suppressed"], letter(), include(), "suppressed"),
        (["dead", "suppressed"], letter(), include(Guard.DELIVERED), "suppressed"),
        (["dead", "expired"], letter(), include(), "replayed"),
        (["uncertain"], letter(reason="uncertain"), include(), "uncertain"),
        (["uncertain"], letter(reason="uncertain"), include(Guard.UNCERTAIN), "generation 1"),
        (["uncertain", "dead"], letter(1), include(), "uncertain"),
        (["doubted"], letter(), include(Guard.UNCERTAIN), "possibly_delivered"),
        (["doubted"], letter(), include(Guard.POSSIBLY_DELIVERED), "generation 1"),
        (["resolved"], letter(), include(Guard.UNCERTAIN), "delivered"),
        (["discarded"], letter(), include(), "discarded"),
        (["discarded"], letter(), include(Guard.DISCARDED), "generation 1"),
        (["dead"], letter(suppressed=True), include(), "suppressed"),
        (["dead"], letter(called_off="campaign"), include(), "cancelled"),
        (["dead"], letter(called_off="campaign"), include(Guard.CANCELLED), "generation 1"),
        (["dead"], letter(called_off="message"), include(Guard.CANCELLED), "cancelled"),
        (["dead"], letter(readable=False), include(), "no_content"),
        (["dead"], letter(too_large=True), include(), "too_large"),
        (["expired"], letter(source="request"), include(), "generation 1"),
        (["bounced"], letter(source="request"), include(), "generation 1"),
        (["delivered"], letter(source="request"), include(), "delivered"),
        (["dead", "expired"], letter(source="request"), include(), "generation 2"),
    ],
)
def test_the_guards(generations: list[str], candidate: Candidate, included: frozenset[Guard], expected: str) -> None:
    assert verdict(candidate, facts_of(*generations), include=included) == expected


def test_a_request_that_is_known_only_by_its_replay_is_pending() -> None:
    facts = facts_of("dead")
    ids = {"message_id": MESSAGES[0], "delivery_id": delivery_id(MESSAGES[0], RECIPIENT), "recipient": RECIPIENT}
    facts.fold(ev.Replayed.model_validate({**ids, "replay_generation": 1, "run": "r", "at": NOW}))
    assert verdict(letter(), facts, include=include(*NAMED)) == "pending"


def test_only_a_suppressed_one_is_forced() -> None:
    for named, forced in ((Guard.DELIVERED, False), (Guard.SUPPRESSED, True)):
        facts = facts_of("delivered" if named is Guard.DELIVERED else "suppressed")
        found = decide(letter(source="request"), facts, Choices(include=include(named)))
        assert isinstance(found, Replay)
        assert found.forced is forced


def test_a_window_can_be_asked_for_by_state_reason_and_provider() -> None:
    facts = Facts({MESSAGES[0]})
    for step in PATHS["dead"]:
        facts.fold(event(step, MESSAGES[0], 0, **({"provider": "primary"} if step in (6, 14) else {})))
    request = letter(source="request")
    assert verdict(request, facts, states=frozenset({State.EXPIRED})) == "not asked for"
    assert verdict(request, facts, states=frozenset({State.DEAD_LETTERED})) == "generation 1"
    assert verdict(request, facts, reason="policy", provider="primary") == "generation 1"
    assert verdict(request, facts, reason="other") == "not asked for"
    assert verdict(request, facts, provider="backup") == "not asked for"
    assert verdict(request, facts_of("uncertain"), states=frozenset({State.UNCERTAIN})) == "generation 1"
    assert verdict(request, facts_of("delivered"), states=frozenset({State.DELIVERED})) == "delivered"


def test_records_that_are_no_delivery() -> None:
    poison = Candidate("poison", 0, 7, None, reason="undecodable")
    conflict = Candidate("conflict", 0, 8, None, reason="key_conflict")
    facts = Facts(set())
    assert verdict(poison, facts) == "undecodable"
    assert verdict(poison, facts, include=include(Guard.UNDECODABLE)) == "generation 0"
    assert verdict(conflict, facts, include=include(*NAMED)) == "key_conflict"
    assert verdict(conflict, facts, new_key=True) == "generation 0"
    again = Candidate("conflict", 0, 8, None, generation=2)
    assert verdict(again, facts, new_key=True) == "key_conflict"  # of a replay: what it asks for was accepted
    facts.fold(ev.LetterDiscarded(partition=0, offset=7, at=NOW))
    assert (status_of(poison, facts), may_discard(poison, facts)) == (Status.DISCARDED, Guard.DISCARDED)
    assert verdict(poison, facts, include=include(Guard.UNDECODABLE)) == "discarded"
    facts.fold(ev.Redriven(partition=0, offset=8, topic="mail.requests", at=NOW))
    assert (status_of(conflict, facts), may_discard(conflict, facts)) == (Status.REPLAYED, Guard.REPLAYED)
    assert verdict(conflict, facts, new_key=True) == "replayed"


@pytest.mark.parametrize(
    ("generations", "status", "guard"),
    [
        (["dead"], Status.OPEN, None),
        (["uncertain"], Status.OPEN, None),
        (["dead", "delivered"], Status.REPLAYED, Guard.REPLAYED),
        (["discarded"], Status.DISCARDED, Guard.DISCARDED),
        (["resolved"], Status.RESOLVED, Guard.DELIVERED),
        ([], Status.OPEN, Guard.PENDING),
    ],
)
def test_the_status_of_a_letter(generations: list[str], status: Status, guard: Guard | None) -> None:
    facts = facts_of(*generations)
    assert (status_of(letter(), facts), may_discard(letter(), facts)) == (status, guard)


def test_domains_are_counted_within_bounds() -> None:
    counts = Counts()
    for n in range(DOMAINS_COUNTED_MAX + 50):
        counts.add(Replay(letter(domain=f"d{n}.example")))
    assert len(counts.domains) == DOMAINS_COUNTED_MAX + 1
    assert counts.domains[OTHERS] == 50


# ---------------------------------------------------------------------------------------------------- whatever happens

_events = st.lists(
    st.tuples(st.integers(0, len(KINDS) - 1), st.integers(0, 1), st.integers(0, 2), st.booleans()), max_size=25
)
_histories = st.lists(st.lists(st.sampled_from(sorted(PATHS)), max_size=3), min_size=2, max_size=2)
_candidates = st.lists(
    st.builds(
        lambda message, generation, offset, source, suppressed: letter(
            generation, MESSAGES[message], offset=offset, source=source, suppressed=suppressed
        ),
        st.integers(0, 1),
        st.integers(0, 3),
        st.integers(0, 50),
        st.sampled_from(["letter", "request"]),
        st.booleans(),
    ),
    max_size=8,
    unique_by=lambda c: c.offset,
)
_included = st.sets(st.sampled_from(sorted(NAMED)))


def _world(histories: list[list[str]], noise: list[tuple[int, int, int, bool]]) -> Facts:
    facts = Facts(set(MESSAGES))
    for message, generations in zip(MESSAGES, histories, strict=True):
        for number, path in enumerate(generations):
            for step in PATHS[path]:
                facts.fold(event(step, message, number))
    for kind, message_number, generation, doubt in noise:
        facts.fold(event(kind, MESSAGES[message_number], generation, possibly_delivered=doubt))
    return facts


def _history(facts: Facts, candidate: Candidate) -> History:
    assert candidate.message_id is not None
    return facts.deliveries.get((candidate.message_id, candidate.digest), History())


@given(_histories, _events, _candidates, _included, st.randoms(use_true_random=False), st.none() | st.integers(0, 5))
def test_no_plan_breaks_a_guard(
    histories: list[list[str]],
    noise: list[tuple[int, int, int, bool]],
    candidates: list[Candidate],
    included: set[Guard],
    dice: Any,
    room: int | None,
) -> None:
    facts = _world(histories, noise)
    choices = Choices(include=frozenset(included), run="r")
    made = plan(candidates, facts, choices, room)
    shuffled = list(candidates)
    dice.shuffle(shuffled)
    assert plan(shuffled, facts, choices, room) == made
    replays = [v for v in made if isinstance(v, Replay)]
    assert room is None or len(replays) <= room
    assert len({(v.candidate.message_id, v.candidate.digest) for v in replays}) == len(replays)
    assert {c.offset for c in candidates if c.source == "letter"} <= {v.candidate.offset for v in made}
    for found in replays:
        history = _history(facts, found.candidate)
        states = {g.state for g in history.generations.values()}
        assert None not in states
        assert not states & OPEN
        assert found.generation == max(history.generations) + 1
        assert found.replays == found.generation - 1
        for state in (State.DELIVERED, State.SUPPRESSED, State.UNCERTAIN):
            assert state not in states or Guard(state.value) in included
        assert not found.candidate.suppressed or Guard.SUPPRESSED in included
        assert found.forced == (found.candidate.suppressed or State.SUPPRESSED in states)


@given(_histories, _events, _candidates, _included, st.integers(0, 8))
def test_a_plan_made_again_after_any_part_of_it_was_written_asks_for_nothing_twice(
    histories: list[list[str]],
    noise: list[tuple[int, int, int, bool]],
    candidates: list[Candidate],
    included: set[Guard],
    written: int,
) -> None:
    facts = _world(histories, noise)
    choices = Choices(include=frozenset(included), run="r")
    replays = [v for v in plan(candidates, facts, choices, None) if isinstance(v, Replay)]
    for found in replays[:written]:
        candidate = found.candidate
        assert candidate.message_id is not None
        facts.fold(
            ev.Replayed(
                message_id=candidate.message_id,
                delivery_id=delivery_id(candidate.message_id, RECIPIENT, found.replays),
                recipient=RECIPIENT,
                generation=found.replays,
                replay_generation=found.generation,
                run="r",
                at=NOW + timedelta(seconds=1),
            )
        )
    again = [v for v in plan(candidates, facts, choices, None) if isinstance(v, Replay)]
    assert again == replays[written:]
    for found in replays[:written]:  # delivered by then, and still included by name: once in a run
        message = found.candidate.message_id
        assert message is not None
        for step in PATHS["delivered"]:
            facts.fold(event(step, message, found.generation))
    assert [v for v in plan(candidates, facts, choices, None) if isinstance(v, Replay)] == replays[written:]


def test_guarded_and_replayed_are_counted_apart() -> None:
    counts = Counts()
    for found in plan([letter(), letter(1, offset=5)], facts_of("dead", "dead"), Choices(), None):
        counts.add(found)
    assert (counts.total, counts.guarded) == (1, {Guard.REPLAYED: 1})
    assert isinstance(plan([letter()], facts_of(), Choices(), None)[0], Guarded)
