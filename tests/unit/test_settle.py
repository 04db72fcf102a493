"""What becomes of a delivery when a move of it ends: every class of reply, phase and count; ids, hops and doubts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from postlane.core import settle
from postlane.core.events import (
    Bounced,
    Cancelled,
    DeadLettered,
    Deferred,
    Delivered,
    DispatchReady,
    Expired,
    Held,
    MailContent,
    Released,
    Uncertain,
)
from postlane.core.policy import Retry
from postlane.core.replies import CONSEQUENCES, Phase, Reply, ReplyClass, classify
from postlane.core.settle import Decision

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = Retry(first_s=10, factor=2, max_s=100, jitter=0, give_up_after=3)
REPLIES = {
    ReplyClass.RECIPIENT: (Reply(550, "5.1.1", "no such user"), Phase.RCPT),
    ReplyClass.MAILBOX: (Reply(552, "5.2.2", "full"), Phase.RCPT),
    ReplyClass.CONTENT: (Reply(554, "5.6.0", "no"), Phase.DOT),
    ReplyClass.POLICY: (Reply(550, "5.7.1", "blocked"), Phase.RCPT),
    ReplyClass.INFRASTRUCTURE: (Reply(554, "5.3.0", "broken"), Phase.DOT),
    ReplyClass.TEMPORARY: (Reply(450, "4.2.1", "later"), Phase.RCPT),
    ReplyClass.THROTTLED: (Reply(421, "4.7.0", "slow down"), Phase.MAIL),
    ReplyClass.PROVIDER: (Reply(535, "5.7.8", "bad password"), Phase.MAIL),
}


def ready(**changes: object) -> DispatchReady:
    base: dict[str, object] = {
        "delivery_id": "d", "message_id": "m", "recipient": "a@example.com", "generation": 2, "hop": 5, "attempt": 2,
        "lane": "bulk", "requested_at": NOW, "content": MailContent(sender="b@example.org"), "trace": "t",
    }  # fmt: skip
    return DispatchReady.model_validate({**base, **changes})


def refused(kind: ReplyClass, mail: DispatchReady) -> Decision:
    reply, phase = REPLIES[kind]
    assert classify(reply, phase) is kind
    return settle.refused(mail, reply, phase, "primary", POLICY, NOW, 0.5)


def well_formed(mail: DispatchReady, decision: Decision) -> None:
    """What holds of every decision: one outcome, at most one next hop, all names and the trace kept."""
    assert decision.next is None or decision.next.trace == mail.trace
    event = decision.event
    assert (event.message_id, event.delivery_id, event.recipient) == (mail.message_id, mail.delivery_id, mail.recipient)
    assert (event.generation, event.attempt, event.hop) == (mail.generation, mail.attempt, mail.hop)
    assert event.possibly_delivered is (mail.doubts > 0)
    assert not (decision.next and decision.dead_letter)
    following = decision.next
    if following is not None:
        assert following.hop == mail.hop + 1
        assert following.attempt in (mail.attempt, mail.attempt + 1)
        assert following.due_at is not None
        assert following.due_at >= NOW
        assert following.model_copy(
            update={
                "hop": mail.hop, "attempt": mail.attempt, "doubts": mail.doubts, "due_at": mail.due_at,
                "reason": mail.reason, "failed_providers": mail.failed_providers,
            }
        ) == mail  # fmt: skip


def test_every_class_has_a_reply_here() -> None:
    assert set(REPLIES) == set(ReplyClass) - {ReplyClass.ACCEPTED}


@pytest.mark.parametrize("kind", sorted(REPLIES))
@pytest.mark.parametrize("attempt", [1, 2, 3, 7])
@pytest.mark.parametrize("doubts", [0, 1])
def test_a_refusal(kind: ReplyClass, attempt: int, doubts: int) -> None:
    mail = ready(attempt=attempt, doubts=doubts)
    decision = refused(kind, mail)
    well_formed(mail, decision)
    spent, final, _, failover = CONSEQUENCES[kind]
    event, following = decision.event, decision.next
    if not spent:
        assert isinstance(event, Released)
        assert following is not None
        assert (following.attempt, following.failed_providers) == (attempt, ())
    elif final and not failover:
        assert isinstance(event, Bounced)
        assert (following, decision.dead_letter, event.reason) == (None, None, kind.value)
    elif attempt >= POLICY.give_up_after:
        assert isinstance(event, DeadLettered)
        assert (following, decision.dead_letter) == (None, kind.value)
    else:
        assert isinstance(event, Deferred)
        assert following is not None
        assert following.attempt == attempt + 1
        assert following.failed_providers == (("primary",) if final else ())
        assert event.next_at == following.due_at == NOW + timedelta(seconds=10 * 2 ** (attempt - 1))


def test_throttling_for_ever_spends_no_attempt() -> None:
    mail, pauses = ready(attempt=1, hop=0), []
    for _ in range(50):
        decision = refused(ReplyClass.THROTTLED, mail)
        assert decision.next is not None
        assert decision.next.due_at is not None
        pauses.append((decision.next.due_at - NOW).total_seconds())
        mail = decision.next
    assert (mail.attempt, mail.hop) == (1, 50)
    assert pauses == sorted(pauses)
    assert pauses[-1] == 60


def test_the_providers_that_refused_add_up() -> None:
    first = refused(ReplyClass.POLICY, ready(attempt=1)).next
    assert first is not None
    reply, phase = REPLIES[ReplyClass.INFRASTRUCTURE]
    second = settle.refused(first, reply, phase, "backup", POLICY, NOW, 0.5).next
    assert second is not None
    assert second.failed_providers == ("primary", "backup")


def test_acceptance() -> None:
    mail = ready(doubts=1)
    decision = settle.accepted(mail, Reply(250, "2.0.0", "queued"), "primary", NOW)
    well_formed(mail, decision)
    assert isinstance(decision.event, Delivered)
    assert decision.event.reply is not None
    assert (decision.event.reply.code, decision.next, decision.dead_letter) == (250, None, None)


@pytest.mark.parametrize(
    ("own", "lane", "attempt", "again"),
    [("resend", "park", 1, True), ("park", "resend", 1, False), ("resend", "resend", 3, False)],
)
def test_a_doubt(own: str, lane: str, attempt: int, again: bool) -> None:
    mail = ready(in_doubt=own, attempt=attempt)
    decision = settle.doubtful(mail, "primary", lane, POLICY, NOW, "lost")  # type: ignore[arg-type]
    well_formed(mail, decision)
    event = decision.event
    assert isinstance(event, Uncertain)
    assert event.policy == own
    if again:
        assert decision.next is not None
        assert (decision.next.attempt, decision.next.doubts, event.next_at) == (attempt + 1, 1, NOW)
        after = settle.accepted(decision.next, Reply(250, None, ""), "primary", NOW)
        assert after.event.possibly_delivered, "one copy may have arrived before"
    else:
        assert (decision.next, decision.dead_letter, event.next_at) == (None, "uncertain", None)


def test_a_connection_lost_before_the_dot_spends_an_attempt() -> None:
    mail = ready(attempt=1)
    decision = settle.broken(mail, "primary", POLICY, NOW, 0.5)
    well_formed(mail, decision)
    assert isinstance(decision.event, Deferred)
    assert decision.next is not None
    assert decision.next.attempt == 2


def test_what_ends_without_a_body_spends_no_attempt() -> None:
    mail = ready()
    due = NOW + timedelta(seconds=9)
    for decision, kind in (
        (settle.released(mail, "drained", NOW, 0.5), Released),
        (settle.held(mail, "domain_limit", due, NOW), Held),
    ):
        well_formed(mail, decision)
        assert isinstance(decision.event, kind)
        assert decision.next is not None
        assert (decision.next.attempt, decision.next.reason) == (mail.attempt, decision.event.reason)
        assert decision.event.next_at == decision.next.due_at


@pytest.mark.parametrize(
    ("decision", "kind", "letter"),
    [
        (settle.expired(ready(), NOW), Expired, None),
        (settle.cancelled(ready(), NOW), Cancelled, None),
        (settle.unsendable(ready(), "no template", NOW), DeadLettered, "no template"),
        (settle.given_up_everywhere(ready(), "policy", NOW), DeadLettered, "policy"),
    ],
)
def test_ends(decision: Decision, kind: type, letter: str | None) -> None:
    well_formed(ready(), decision)
    assert isinstance(decision.event, kind)
    assert (decision.next, decision.dead_letter) == (None, letter)
