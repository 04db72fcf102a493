"""The fleet's word and a breaker: advice that opens nothing by itself and counts for nothing against own results."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from postlane.core.breaker import OWN_WORD_S, Breaker, BreakerState
from postlane.core.health_state import HealthState

DOWN, UP, UNKNOWN = HealthState.DOWN, HealthState.UP, HealthState.UNKNOWN


def breaker() -> Breaker:
    return Breaker(connections_max=8, failures_to_open=3, probe_first_s=1.0, probe_max_s=30.0)


def test_down_changes_nothing_while_own_mails_are_answered() -> None:
    one = breaker()
    for second in range(60):
        one.succeeded()
        one.hinted(DOWN, float(second))
        assert (one.state, one.allowed(float(second))) == (BreakerState.CLOSED, 8)
    one.failed(60.0)
    one.failed(60.0)
    assert one.state is BreakerState.CLOSED, "as many failures as ever"


def test_down_makes_a_sender_without_results_of_its_own_careful() -> None:
    one = breaker()
    one.hinted(DOWN, 0.0)
    assert (one.state, one.allowed(0.0)) == (BreakerState.CLOSED, 1)
    one.succeeded()
    one.hinted(DOWN, 1.0)
    one.succeeded()
    assert one.allowed(1.0) == 3, "answered mails widen it, whatever the hint"


def test_with_down_its_own_next_failure_opens_it_and_without_it_does_not() -> None:
    one, other = breaker(), breaker()
    one.hinted(DOWN, 0.0)
    one.failed(1.0)
    other.failed(1.0)
    assert (one.state, other.state) == (BreakerState.OPEN, BreakerState.CLOSED)


def test_own_good_results_are_worth_something_for_a_while_only() -> None:
    one = breaker()
    one.succeeded()
    one.hinted(DOWN, 0.0)
    one.hinted(DOWN, OWN_WORD_S - 0.1)
    assert one.allowed(9.0) == 8
    one.hinted(DOWN, OWN_WORD_S)
    assert one.allowed(10.0) == 1


def test_up_brings_the_next_probe_forward_to_the_first_pause() -> None:
    one, now = breaker(), 0.0
    for _ in range(3):
        one.failed(now)
    for _ in range(6):
        now = one.probe_at
        one.allowed(now)
        one.failed(now)
    assert one.probe_at - now == 30.0
    one.hinted(UP, now)
    assert not one.healthy(now + 0.9)
    assert one.healthy(now + 1.0)
    assert one.state is BreakerState.HALF_OPEN


def test_an_expired_word_leaves_it_alone() -> None:
    one = breaker()
    one.hinted(DOWN, 0.0)
    one.hinted(UNKNOWN, 20.0)
    one.failed(20.0)
    assert one.state is BreakerState.CLOSED


steps = st.lists(st.tuples(st.sampled_from(["ok", "hint"]), st.sampled_from(list(HealthState))), max_size=60)


@settings(max_examples=80, deadline=None)
@given(steps)
def test_no_sequence_of_hints_without_own_failures_opens_it(done: list[tuple[str, HealthState]]) -> None:
    one = breaker()
    for second, (what, hint) in enumerate(done):
        if what == "ok":
            one.succeeded()
        else:
            one.hinted(hint, float(second))
        assert one.state is BreakerState.CLOSED
        assert one.allowed(float(second)) >= 1
