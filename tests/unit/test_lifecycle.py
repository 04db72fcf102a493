"""The life of a delivery: the table is complete, illegal moves change nothing, and the page shows the table."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postlane.core import events
from postlane.core.lifecycle import OPEN, REPLAYABLE, TERMINAL, TRANSITIONS, State, evolve, legal
from postlane.ops.diagrams import lifecycle_page

ROOT = Path(__file__).parents[2]
STATES: list[State | None] = [None, *State]
# What is said of a delivery and moves it nowhere: a replay begins a new generation, which has a life of its own.
STILL = {"Replayed"}


def kinds() -> set[str]:
    """Every event of one delivery."""
    models = {cls.__name__ for cls in vars(events).values() if isinstance(cls, type)}
    return {
        name for name in models if issubclass(getattr(events, name), events.DeliveryEvent) and name != "DeliveryEvent"
    }


def test_every_event_of_a_delivery_has_its_moves() -> None:
    assert set(TRANSITIONS) == kinds() - STILL


def test_every_state_can_be_reached_and_left_or_is_an_end() -> None:
    reached = {after for moves in TRANSITIONS.values() for after in moves.values()}
    assert reached == set(State)
    left = {before for moves in TRANSITIONS.values() for before in moves}
    assert left >= OPEN
    assert set(State) == OPEN | TERMINAL
    assert not OPEN & TERMINAL
    assert REPLAYABLE <= TERMINAL
    assert State.DELIVERED not in REPLAYABLE
    assert State.SUPPRESSED not in REPLAYABLE
    assert State.UNCERTAIN not in REPLAYABLE


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", sorted(kinds() | {"Nonsense"}))
def test_an_illegal_move_changes_nothing(state: State | None, kind: str) -> None:
    after = evolve(state, kind)
    if legal(state, kind):
        assert after is TRANSITIONS[kind][state]
    else:
        assert after is state


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_what_has_ended_stays_ended(state: State) -> None:
    for kind in kinds():
        for again in (False, True):
            after = evolve(state, kind, again=again)
            assert after in TERMINAL, f"{state} {kind} -> {after}"


def test_a_doubt_that_is_sent_again_goes_on_and_a_parked_one_rests() -> None:
    assert evolve(State.SENDING, "Uncertain", again=True) is State.SCHEDULED
    assert evolve(State.SENDING, "Uncertain") is State.UNCERTAIN
    assert evolve(State.DELIVERED, "Uncertain", again=True) is State.DELIVERED


def test_what_a_person_found_out() -> None:
    assert evolve(State.UNCERTAIN, "Resolved", resolved="delivered") is State.DELIVERED
    assert evolve(State.UNCERTAIN, "Resolved", resolved="bounced") is State.BOUNCED
    assert evolve(State.PENDING, "Resolved", resolved="delivered") is State.PENDING


@given(st.lists(st.tuples(st.sampled_from(sorted(kinds())), st.booleans()), max_size=30))
def test_a_life_never_begins_again(story: list[tuple[str, bool]]) -> None:
    state: State | None = None
    ended = False
    for kind, again in story:
        state = evolve(state, kind, again=again)
        ended = ended or state in TERMINAL
        assert not ended or state in TERMINAL


def test_the_page_is_current() -> None:
    page = (ROOT / "docs/lifecycle.md").read_text(encoding="utf-8")
    assert page == lifecycle_page(), "run: python -m postlane.ops.diagrams"
