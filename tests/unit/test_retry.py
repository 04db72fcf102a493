"""Whole schedules of the pure functions that say when something goes again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postlane.core.policy import Retry
from postlane.core.retry import PAUSE_MAX_S, backoff_s, expires_at, next_attempt_at, pause_s

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_the_default_schedule() -> None:
    plain = [backoff_s(Retry(jitter=0), n, 0.5) for n in range(1, 9)]
    assert plain == [10, 40, 160, 640, 2560, 10240, 21600, 21600]


def test_a_constant_schedule_and_a_huge_count() -> None:
    policy = Retry(first_s=5, factor=1, max_s=7, jitter=0)
    assert {backoff_s(policy, n, 0) for n in (1, 2, 50, 10**9)} == {5}
    assert backoff_s(Retry(jitter=0, factor=10), 10**9, 0) == 21_600
    assert backoff_s(policy, 0, 0) == 5


@given(st.integers(1, 100), st.floats(0, 1, exclude_max=True), st.floats(0, 1))
def test_jitter_stays_within_its_share(failures: int, roll: float, jitter: float) -> None:
    plain = backoff_s(Retry(jitter=0), failures, roll)
    assert plain * (1 - jitter) - 1e-6 <= backoff_s(Retry(jitter=jitter), failures, roll) <= plain * (1 + jitter) + 1e-6


def test_the_time_of_the_next_attempt() -> None:
    assert next_attempt_at(Retry(jitter=0), 2, NOW, 0.9) == NOW + timedelta(seconds=40)


@pytest.mark.parametrize(("moves", "seconds"), [(-3, 1), (0, 1), (1, 2), (5, 32), (6, 60), (10**9, PAUSE_MAX_S)])
def test_pauses_that_spend_no_attempt(moves: int, seconds: float) -> None:
    assert pause_s(moves, 0.5) == pytest.approx(seconds)
    assert pause_s(moves, 0.0) == pytest.approx(seconds * 0.8)
    assert pause_s(moves, 0.999999) == pytest.approx(seconds * 1.2, rel=1e-3)


def test_the_earlier_expiry_holds() -> None:
    policy = Retry(expire_after_s=100)
    latest = NOW + timedelta(seconds=100)
    assert expires_at(policy, NOW, None) == latest
    assert expires_at(policy, NOW, NOW + timedelta(seconds=5)) == NOW + timedelta(seconds=5)
    assert expires_at(policy, NOW, NOW + timedelta(days=5)) == latest
