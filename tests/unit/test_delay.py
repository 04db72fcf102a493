"""The delay stage never lets a mail go early, bounds how late it is and how often it moves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postlane.core.delay import LATE_MAX_S, PAUSED, STEPS, End, Go, Step, Wait, look, look_at_ms, plan
from postlane.core.events import DispatchReady, MailContent, TemplateRef

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MESSAGE = "6f0d3f0e-2f0b-5d0a-9a53-0c8a1b6d7e11"


class Known:
    """A Knowledge with nothing in it, or what the test says."""

    def __init__(self, suppressed: bool = False, cancelled: bool = False, paused: bool = False) -> None:
        self.answers = suppressed, cancelled, paused

    def suppressed(self, tenant: str, address: str) -> bool:
        return self.answers[0]

    def cancelled(self, message_id: str, campaign: str | None, requested_at: datetime) -> bool:
        return self.answers[1]

    def paused(self, tenant: str, campaign: str | None) -> bool:
        return self.answers[2]

    def template_version(self, template: str, version: int | None) -> int | None:
        return version


def ready(**changes: Any) -> DispatchReady:
    base: dict[str, Any] = {
        "delivery_id": f"{MESSAGE}.0123456789abcdef.0",
        "message_id": MESSAGE,
        "recipient": "ada@example.com",
        "lane": "bulk",
        "hop": 2,
        "attempt": 2,
        "requested_at": NOW - timedelta(hours=1),
        "due_at": NOW,
        "content": MailContent(sender="shop@example.org"),
    }
    return DispatchReady(**{**base, **changes})


@pytest.mark.parametrize(
    ("remaining_s", "step"),
    [
        (-5, None),
        (0, None),
        (0.001, "1s"),
        (0.5, "1s"),
        (1, "1s"),
        (7.4, "1s"),
        (7.5, "10s"),
        (8, "10s"),
        (10, "10s"),
        (57, "10s"),
        (57.5, "1m"),
        (599, "10m"),
        (3_600, "1h"),
        (86_399, "1d"),
        (864_000, "1d"),
    ],
)
def test_plan(remaining_s: float, step: str | None) -> None:
    planned = plan(NOW + timedelta(seconds=remaining_s), NOW)
    assert (planned and planned.name) == step


def test_without_a_due_time_it_goes_now() -> None:
    assert plan(None, NOW) is None


@given(st.floats(0.001, 40 * 86_400), st.lists(st.floats(0, 0.3), min_size=1, max_size=5), st.floats(0, 1))
def test_never_early_and_late_and_hops_bounded(wait_s: float, slack: list[float], block: float) -> None:
    """`slack`: how late the loop looks; `block`: how much of what a topic can hold it back, it does."""
    due = NOW + timedelta(seconds=wait_s)
    now, hops = NOW, 0
    late_max_s = LATE_MAX_S + max(slack) + 0.002
    while (step := plan(due, now)) is not None:
        appended_ms = int(now.timestamp() * 1000)
        own_s = look_at_ms(step.seconds, appended_ms, due, None) / 1000
        # A record before it in the topic was appended earlier, so it holds it back no longer than the whole step.
        held_s = max(own_s, own_s + block * (appended_ms / 1000 + step.seconds - own_s))
        now = datetime.fromtimestamp(held_s + slack[hops % len(slack)], UTC)
        hops += 1
        assert hops < 100
    assert now >= due
    assert (now - due).total_seconds() <= late_max_s
    assert hops <= wait_s // 86_400 + 3 + 5 + 5 + 9 + 5 + 9 + 2


@pytest.mark.parametrize("step", STEPS)
def test_looked_at_after_the_step_or_when_due_or_over(step: Step) -> None:
    appended_ms = int(NOW.timestamp() * 1000)
    after_ms = appended_ms + step.seconds * 1000
    soon = NOW + timedelta(seconds=0.25)
    later = NOW + timedelta(days=30)
    assert look_at_ms(step.seconds, appended_ms, later, None) == after_ms
    assert look_at_ms(step.seconds, appended_ms, soon, later) == appended_ms + 250
    assert look_at_ms(step.seconds, appended_ms, later, soon) == appended_ms + 250
    assert look_at_ms(step.seconds, appended_ms, None, None) == after_ms


def test_looked_at_is_rounded_up_to_the_millisecond() -> None:
    appended_ms = int(NOW.timestamp() * 1000)
    assert look_at_ms(10, appended_ms, NOW + timedelta(microseconds=1), None) == appended_ms + 1


def test_due_goes_on_with_the_same_hop_and_no_event() -> None:
    assert look(ready(), Known(), NOW) == Go()


def test_what_the_router_scheduled_is_routed_when_it_goes() -> None:
    content = MailContent(sender="a@example.org", template=TemplateRef(id="t", version=3))
    decision = look(ready(hop=0, attempt=1, content=content), Known(), NOW)
    assert isinstance(decision, Go)
    assert decision.event is not None
    assert (decision.event.lane, decision.event.template_version, decision.event.hop) == ("bulk", 3, 0)


def test_not_due_waits_on_unchanged() -> None:
    assert look(ready(due_at=NOW + timedelta(seconds=30)), Known(), NOW) == Wait(STEPS[1])


@pytest.mark.parametrize(
    ("known", "changes", "kind"),
    [
        (Known(cancelled=True, suppressed=True), {}, "Cancelled"),
        (Known(suppressed=True), {"expires_at": NOW}, "Suppressed"),
        (Known(), {"expires_at": NOW}, "Expired"),
        (Known(paused=True), {"expires_at": NOW}, "Expired"),
        (Known(cancelled=True), {"due_at": NOW + timedelta(days=2)}, "Cancelled"),
    ],
)
@pytest.mark.parametrize("doubts", [0, 1])
def test_what_ends_it(known: Known, changes: dict[str, Any], kind: str, doubts: int) -> None:
    decision = look(ready(doubts=doubts, **changes), known, NOW)
    assert isinstance(decision, End)
    event = decision.event
    assert type(event).__name__ == kind
    assert (event.attempt, event.hop, event.possibly_delivered) == (2, 2, doubts > 0)


def test_a_forced_replay_passes_the_suppression_list() -> None:
    assert look(ready(forced=True), Known(suppressed=True), NOW) == Go()


def test_a_pause_is_told_once_and_looked_at_every_ten_seconds() -> None:
    first = look(ready(reason="policy"), Known(paused=True), NOW)
    assert isinstance(first, Wait)
    assert first.ready is not None
    assert first.event is not None
    assert (first.step.name, first.event.reason, first.ready.reason) == ("10s", PAUSED, PAUSED)
    assert first.ready.due_at == first.event.next_at == NOW + timedelta(seconds=10)
    second = look(first.ready, Known(paused=True), NOW + timedelta(seconds=10))
    assert isinstance(second, Wait)
    assert second.event is None
    assert look(first.ready, Known(), NOW + timedelta(seconds=10)) == Go()


def test_what_expires_while_it_waits_is_looked_at_then() -> None:
    decision = look(ready(due_at=NOW + timedelta(hours=3), expires_at=NOW + timedelta(seconds=12)), Known(), NOW)
    assert decision == Wait(STEPS[1])
