"""Rates that hold without asking anybody: what may go, what comes back when, and that nobody overtakes."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postlane.core.limits import BUCKETS_MAX, Bucket, Buckets


def test_a_burst_and_then_the_rate() -> None:
    bucket = Bucket(10)
    assert [bucket.take(0.0, waited=False) for _ in range(12)] == [True] * 10 + [False] * 2
    assert [bucket.take(0.1, waited=False) for _ in range(2)] == [True, False]


def test_a_rate_below_one_a_second() -> None:
    bucket = Bucket(0.25)
    assert bucket.take(0.0, waited=False)
    assert not bucket.take(3.9, waited=False)
    assert bucket.take(4.0, waited=False)


def test_asking_changes_nothing() -> None:
    bucket = Bucket(1)
    assert [bucket.may(0.0, waited=False) for _ in range(3)] == [True] * 3
    assert bucket.take(0.0, waited=False)
    assert not bucket.may(0.5, waited=False)


def test_a_newcomer_does_not_overtake_those_that_wait() -> None:
    bucket = Bucket(1)
    assert bucket.take(0.0, waited=False)
    due = bucket.queue(0.0, 3600)
    assert not bucket.take(due - 0.001, waited=False)
    assert bucket.take(due, waited=True)


def test_who_waits_too_long_is_looked_at_again_before_its_turn() -> None:
    bucket = Bucket(1)
    dues = [bucket.queue(0.0, 60) for _ in range(200)]
    assert dues == sorted(dues)
    assert max(dues) == 60


@pytest.mark.parametrize("late_s", [0.0, 1.0])
def test_100_000_held_mails_come_back_at_the_rate(late_s: float) -> None:
    """In few loops: each is looked at about once, and none goes before its share of the rate allows it."""
    rate, bucket, looks, went = 1000.0, Bucket(1000.0), 0, []
    waiting: list[tuple[float, int]] = [(0.0, n) for n in range(100_000)]
    heapq.heapify(waiting)
    waited: set[int] = set()
    while waiting:
        due, n = heapq.heappop(waiting)
        looks += 1
        now = due if n not in waited else -(-due // max(late_s, 1e-9)) * late_s if late_s else due
        if bucket.take(now, waited=n in waited):
            went.append(now)
        else:
            waited.add(n)
            heapq.heappush(waiting, (bucket.queue(now, 3600), n))
    assert len(went) == 100_000
    assert looks <= 300_000
    assert max(went) <= 100_000 / rate * 1.5 + 5
    for second in range(0, int(max(went)), 7):
        burst = sum(second <= now < second + 1 for now in went)
        assert burst <= 2 * rate + 1


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=200), st.floats(0.1, 50))
def test_never_more_than_the_burst_and_the_rate(steps: list[tuple[float, bool]], rate: float) -> None:
    bucket, now, taken = Bucket(rate), 0.0, 0
    for pause, waited in steps:
        now += pause
        taken += bucket.take(now, waited=waited)
        assert taken <= rate * (now + bucket.burst_s) + 1


def test_buckets_are_bounded_and_forget_only_what_is_full_again() -> None:
    buckets = Buckets()
    busy = buckets.get("busy", 0.001, 0.0)
    busy.take(0.0, waited=False)
    for n in range(BUCKETS_MAX + 10):
        buckets.get(n, 1.0, 0.0)
    assert len(buckets.buckets) <= BUCKETS_MAX + 1
    assert buckets.get("busy", 0.002, 1.0) is busy
    assert busy.rate_per_s == 0.002
