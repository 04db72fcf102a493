"""What becomes of a delivery: every class of reply, doubts, and the arithmetic of attempts and hops."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from postlane.core import settle
from postlane.core.breaker import Breaker, BreakerState
from postlane.core.events import Bounced, DeadLettered, Deferred, Delivered, DispatchReady, MailContent, Released
from postlane.core.limits import Bucket
from postlane.core.policy import Retry
from postlane.core.replies import Phase, Reply

NOW = datetime(2026, 1, 2, tzinfo=UTC)
RETRY = Retry(first_s=10, factor=4, jitter=0, give_up_after=3)


def mail(**changes: object) -> DispatchReady:
    base = DispatchReady(
        delivery_id="d", message_id="m", recipient="a@example.com", lane="bulk", requested_at=NOW,
        content=MailContent(sender="b@example.com"),
    )  # fmt: skip
    return base.model_copy(update=changes)


@pytest.mark.parametrize(
    ("reply", "phase", "event", "attempt"),
    [
        (Reply(550, "5.1.1", "unknown"), Phase.RCPT, Bounced, None),
        (Reply(554, "5.6.0", "content"), Phase.DOT, Bounced, None),
        (Reply(550, "5.7.1", "blocked"), Phase.RCPT, Deferred, 2),
        (Reply(451, "4.3.0", "later"), Phase.RCPT, Deferred, 2),
        (Reply(421, "4.7.0", "slow down"), Phase.MAIL, Released, 1),
        (Reply(454, None, "Throttling failure: rate exceeded"), Phase.DOT, Released, 1),
        (Reply(535, "5.7.8", "bad credentials"), Phase.AUTH, Released, 1),
    ],
)
def test_a_refusal(reply: Reply, phase: Phase, event: type, attempt: int | None) -> None:
    decision = settle.refused(mail(), reply, phase, "p", RETRY, NOW, 0.5)
    assert type(decision.event) is event
    if attempt is None:
        assert decision.next is None
    else:
        assert decision.next is not None
        assert (decision.next.attempt, decision.next.hop) == (attempt, 1)
        assert decision.next.due_at is not None
        assert decision.next.due_at > NOW


def test_a_provider_s_own_refusal_sends_it_elsewhere() -> None:
    decision = settle.refused(mail(), Reply(550, "5.7.1", "blocked"), Phase.RCPT, "primary", RETRY, NOW, 0.5)
    assert decision.next is not None
    assert decision.next.failed_providers == ("primary",)


def test_the_last_attempt_is_a_dead_letter_and_says_if_a_copy_may_have_arrived() -> None:
    for doubts in (0, 1):
        last = mail(attempt=3, doubts=doubts)
        decision = settle.refused(last, Reply(451, None, "later"), Phase.DOT, "p", RETRY, NOW, 0.5)
        assert isinstance(decision.event, DeadLettered)
        assert (decision.next, decision.dead_letter) == (None, "temporary")
        assert decision.event.possibly_delivered is bool(doubts)


def test_doubt() -> None:
    again = settle.doubtful(mail(in_doubt="resend"), "p", "park", RETRY, NOW, "lost")
    assert again.next is not None
    assert (again.next.hop, again.next.attempt, again.next.doubts, again.dead_letter) == (1, 2, 1, None)
    parked = settle.doubtful(mail(in_doubt="park"), "p", "resend", RETRY, NOW, "lost")
    assert (parked.next, parked.dead_letter) == (None, "uncertain")


def test_what_was_accepted_is_over() -> None:
    decision = settle.accepted(mail(doubts=1), Reply(250, "2.0.0", "ok"), "p", NOW)
    assert isinstance(decision.event, Delivered)
    assert decision.event.possibly_delivered
    assert (decision.next, decision.dead_letter) == (None, None)


def test_releases_come_back_later_and_later_and_spend_no_attempt() -> None:
    now, current, waits = NOW, mail(), []
    for _ in range(8):
        decision = settle.released(current, "throttled", now, 0.5)
        assert decision.next is not None
        assert decision.next.due_at is not None
        waits.append((decision.next.due_at - now).total_seconds())
        current = decision.next
    assert waits == sorted(waits)
    assert waits[0] == 1
    assert waits[-1] <= 60
    assert current.attempt == 1


def test_100_000_held_mails_come_back_at_the_rate_they_may_go_at() -> None:
    bucket = Bucket(rate_per_s=100)
    while bucket.take(0.0, waited=False):
        pass
    due = [bucket.queue(0.0, 10_000) for _ in range(100_000)]
    assert due == sorted(due)
    busiest = max(sum(1 for t in due if second <= t < second + 1) for second in (5, 500, 990))
    assert busiest <= 101
    assert not bucket.take(1.0, waited=False), "one that has not waited does not overtake"
    assert bucket.take(due[0], waited=True)


def test_a_breaker_opens_probes_and_ramps_up() -> None:
    breaker = Breaker(8, 3, 1.0, 4.0)
    for _ in range(3):
        breaker.failed(10.0)
    assert breaker.allowed(10.5) == 0
    assert breaker.allowed(11.0) == 1
    breaker.failed(11.0)
    assert (breaker.allowed(12.0), breaker.allowed(13.0)) == (0, 1)
    breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED
    assert breaker.allowed(13.0) == 1
    breaker.succeeded()
    assert breaker.allowed(13.0) == 2


def test_a_hold_keeps_the_attempt() -> None:
    decision = settle.held(mail(attempt=2, hop=5), "domain_limit", NOW + timedelta(seconds=9), NOW)
    assert decision.next is not None
    assert (decision.next.attempt, decision.next.hop, decision.next.reason) == (2, 6, "domain_limit")
