"""Windows and verdicts: unknown until a whole window was watched, down by what is recent, degraded by the window."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from postlane.core.breaker import BreakerState
from postlane.core.health import View, judge, summarise
from postlane.core.health_facts import Observed, Tally
from postlane.core.health_state import HealthState
from postlane.core.health_sums import Kind, Sums
from postlane.core.health_window import SENDERS_MAX, Window
from postlane.core.policy import Health

AT = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = Health()
GOOD = Tally(delivered=30, answer_s=((40, 30),))
BAD = Tally(unreached=5)


def seen(total: Tally, instance: str = "s1", **more: object) -> Observed:
    return Observed(provider="p", instance=instance, at=AT, total=total, **more)  # type: ignore[arg-type]


def state(window: Window, now: float) -> HealthState:
    return summarise("p", window, now, AT, POLICY).state


def sums(**counts: int) -> Sums:
    made = Sums()
    made.merge(Tally(**counts))
    return made


def view(window: Sums, recent: Sums | None = None, **more: object) -> View:
    return View(True, recent or window, window, **more)  # type: ignore[arg-type]


def test_nothing_is_said_before_a_whole_window_was_watched() -> None:
    window = Window(30, since=100)
    for now in range(100, 130):
        window.add(now, seen(BAD))
        assert state(window, now) is HealthState.UNKNOWN
    assert state(window, 130) is HealthState.DOWN


def test_what_came_before_the_window_counts_no_more() -> None:
    window = Window(30, since=0)
    window.add(40, seen(GOOD, domains={"example.com": GOOD}))
    assert summarise("p", window, 69, AT, POLICY).delivered == 30
    later = summarise("p", window, 75, AT, POLICY)
    assert (later.delivered, later.domains, later.state) == (0, {}, HealthState.UNKNOWN)
    assert window.idle(75)


def test_it_goes_down_within_seconds_and_up_again() -> None:
    window = Window(30, since=-100)
    for now in range(30):
        window.add(now, seen(GOOD))
    assert state(window, 29) is HealthState.UP
    for now in range(30, 43):
        window.add(now, seen(BAD, breaker=BreakerState.OPEN))
    assert state(window, 42) is HealthState.DOWN
    for now in range(43, 80):
        window.add(now, seen(GOOD))
    assert state(window, 79) is HealthState.UP


def test_all_senders_that_report_have_it_shut_and_nothing_is_tried() -> None:
    window = Window(30, since=-100)
    for name in ("s1", "s2"):
        window.add(0, seen(Tally(), instance=name, breaker=BreakerState.OPEN))
    told = summarise("p", window, 1, AT, POLICY)
    assert (told.state, told.senders, told.senders_open) == (HealthState.DOWN, 2, 2)
    window.add(1, seen(GOOD, instance="s1"))
    assert state(window, 1) is HealthState.DEGRADED, "one of two reaches it"


@pytest.mark.parametrize(
    ("view_", "expected"),
    [
        (view(sums(delivered=19)), HealthState.UNKNOWN),
        (view(sums(delivered=20)), HealthState.UP),
        (view(sums(bounced=100)), HealthState.UP),
        (view(sums(delivered=75, deferred=25)), HealthState.DEGRADED),
        (view(sums(delivered=76, deferred=24)), HealthState.UP),
        (view(sums(delivered=70, blocked=30)), HealthState.DEGRADED),
        (view(sums(delivered=74, deferred=9, throttled=9, failed=9)), HealthState.DEGRADED),
        (view(sums(failed=2)), HealthState.UNKNOWN),
        (view(sums(failed=3)), HealthState.DOWN),
        (view(sums(delivered=1, failed=9)), HealthState.DOWN),
        (view(sums(delivered=2, failed=9)), HealthState.UNKNOWN),
        (view(sums(delivered=100), sums(unreached=3)), HealthState.DOWN),
        (view(sums(delivered=100), senders=2, senders_open=1), HealthState.DEGRADED),
        (view(sums(delivered=100), oldest_wait_s=61), HealthState.DEGRADED),
        (View(False, sums(failed=100), sums(failed=100)), HealthState.UNKNOWN),
    ],
)
def test_the_verdict(view_: View, expected: HealthState) -> None:
    verdict = judge(view_, POLICY)
    assert verdict.state is expected
    assert bool(verdict.reason) == (expected is not HealthState.UP)


def test_slow_answers_degrade() -> None:
    slow = sums(delivered=100)
    for _ in range(100):
        slow.answers.add(12)
    assert judge(view(slow), POLICY).state is HealthState.DEGRADED


def test_one_domain_that_blocks_degrades_itself_and_not_the_provider() -> None:
    window = Window(30, since=-100)
    good, blocked = Tally(delivered=300), Tally(blocked=30)
    window.add(0, seen(Tally(delivered=300, blocked=30), domains={"good.example": good, "strict.example": blocked}))
    told = summarise("p", window, 1, AT, POLICY)
    assert told.state is HealthState.UP
    assert {d: f.state for d, f in told.domains.items()} == {
        "good.example": HealthState.UP,
        "strict.example": HealthState.DEGRADED,
    }


def test_senders_are_bounded_and_those_that_fall_silent_are_forgotten() -> None:
    window = Window(30, since=0)
    for number in range(SENDERS_MAX + 50):
        window.add(50, seen(Tally(), instance=f"s{number}"))
    assert len(window.senders(50, 30)) == SENDERS_MAX
    window.add(70, seen(Tally(), instance="last"))
    assert [sender.at for sender in window.senders(81, 30) if sender.at < 70] == []


def test_the_sum_of_kinds_is_what_the_figures_show() -> None:
    window = Window(30, since=-100)
    tally = Tally(**{kind.value: number for number, kind in enumerate(Kind, 1)})
    window.add(0, seen(tally))
    told = summarise("p", window, 0, AT, POLICY)
    assert {kind: getattr(told, kind.value) for kind in Kind} == {kind: n for n, kind in enumerate(Kind, 1)}
