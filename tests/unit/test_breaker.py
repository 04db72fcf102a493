"""The breaker: opens after failures in a row, probes ever more rarely, closes on trial, ramps up, gives way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from postlane.core.breaker import Breaker, BreakerState


def breaker(**changes: float) -> Breaker:
    return Breaker(**{"connections_max": 8, "failures_to_open": 3, "probe_first_s": 1.0, "probe_max_s": 8.0, **changes})  # type: ignore[arg-type]


def fail(one: Breaker, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        one.failed(now)


def test_failures_in_a_row_open_it_and_a_success_between_does_not() -> None:
    one = breaker()
    fail(one, 2)
    one.succeeded()
    fail(one, 2)
    assert one.state is BreakerState.CLOSED
    fail(one, 1)
    assert (one.state, one.allowed(0.5), one.healthy(0.5)) == (BreakerState.OPEN, 0, False)


def test_probes_come_ever_more_rarely_up_to_a_bound() -> None:
    one, now, waits = breaker(), 0.0, []
    fail(one, 3, now)
    for _ in range(6):
        waits.append(one.probe_at - now)
        now = one.probe_at
        assert one.allowed(now) == 1
        assert one.state is BreakerState.HALF_OPEN
        one.failed(now)
    assert waits == [1, 2, 4, 8, 8, 8]


def test_a_provider_that_is_reached_but_answers_no_mail_opens_again_for_longer() -> None:
    one = breaker()
    fail(one, 3, 0.0)
    one.allowed(1.0)
    one.reached()
    assert (one.state, one.allowed(1.0)) == (BreakerState.CLOSED, 1)
    one.failed(1.0)
    assert (one.state, one.probe_at) == (BreakerState.OPEN, 3.0)
    one.allowed(3.0)
    one.reached()
    one.succeeded()
    fail(one, 2, 3.0)
    assert one.state is BreakerState.CLOSED
    fail(one, 1, 3.0)
    assert one.probe_at == 4.0, "an answered mail begins the pauses anew"


def test_the_window_ramps_up_and_is_halved() -> None:
    one = breaker()
    one.throttled()
    assert one.allowed(0) == 4
    for _ in range(9):
        one.throttled()
    assert one.allowed(0) == 1
    for _ in range(20):
        one.succeeded()
    assert one.allowed(0) == 8


def test_a_late_success_closes_an_open_breaker_with_one_connection() -> None:
    one = breaker()
    fail(one, 3)
    one.succeeded()
    assert (one.state, one.allowed(0)) == (BreakerState.CLOSED, 1)


@given(st.lists(st.sampled_from(["succeeded", "failed", "throttled", "reached", "allowed"]), max_size=80))
def test_whatever_happens_it_recovers(moves: list[str]) -> None:
    one, now = breaker(), 0.0
    for move in moves:
        now += 0.3
        getattr(one, move)(*([now] if move in ("failed", "allowed") else []))
        assert 1.0 <= one.window <= 8.0
        assert one.probe_at <= now + one.probe_max_s
        assert 0 <= one.allowed(now) <= 8
    now += one.probe_max_s
    assert one.allowed(now) >= 1
    one.reached()
    one.succeeded()
    assert one.state is BreakerState.CLOSED
