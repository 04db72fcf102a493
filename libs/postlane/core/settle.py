"""What becomes of a delivery when a move of it ends: (dispatch, what happened, policy, now, die) -> decision.

A decision is an event, and either the next dispatch record (hop + 1), or a dead letter, or neither (it is over).
Throttling, outages and lost connections before a body are *not yet*: they spend no attempt. A failure is never
claimed over a copy that may have arrived: terminal events after a doubt carry `possibly_delivered`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from postlane.core.events import (
    Bounced,
    Cancelled,
    DeadLettered,
    Deferred,
    Delivered,
    DeliveryEvent,
    DispatchReady,
    Expired,
    Held,
    InDoubt,
    Released,
    ReplyInfo,
    Uncertain,
)
from postlane.core.policy import Retry
from postlane.core.replies import CONSEQUENCES, Phase, Reply, ReplyClass, classify
from postlane.core.retry import next_attempt_at, pause_s


@dataclass(frozen=True, slots=True)
class Decision:
    """One settled dispatch record: exactly one outcome, at most one next hop."""

    event: DeliveryEvent
    next: DispatchReady | None = None
    dead_letter: str | None = None  # the reason, where the record goes to the dead letters


# -------------------------------------------------------------------------------------------- an SMTP attempt ended


def accepted(mail: DispatchReady, reply: Reply, provider: str, now: datetime) -> Decision:
    """The server took responsibility (2xx to the dot)."""
    return Decision(Delivered(**_ids(mail, now), provider=provider, reply=_info(reply)))


def refused(
    mail: DispatchReady, reply: Reply, phase: Phase, provider: str, policy: Retry, now: datetime, roll: float
) -> Decision:
    """A server said no to the command of `phase`: bounce, try later, try elsewhere, or not yet."""
    kind = classify(reply, phase)
    consequence = CONSEQUENCES[kind]
    if not consequence.attempt:
        return released(mail, kind.value, now, roll)
    if consequence.final and not consequence.failover:
        return Decision(Bounced(**_ids(mail, now), provider=provider, reply=_info(reply), reason=kind.value))
    failed = (*mail.failed_providers, provider) if consequence.final else mail.failed_providers
    return _try_again(mail, kind.value, reply, provider, failed, policy, now, roll)


def broken(mail: DispatchReady, provider: str, policy: Retry, now: datetime, roll: float) -> Decision:
    """The connection ended within the body, before the dot: provably not accepted, and an attempt was spent."""
    return _try_again(mail, "connection_lost", None, provider, mail.failed_providers, policy, now, roll)


def _try_again(
    mail: DispatchReady,
    reason: str,
    reply: Reply | None,
    provider: str,
    failed: tuple[str, ...],
    policy: Retry,
    now: datetime,
    roll: float,
) -> Decision:
    if mail.attempt >= policy.give_up_after:
        return Decision(
            DeadLettered(**_ids(mail, now), provider=provider, reply=_info(reply), reason=reason), dead_letter=reason
        )
    due = next_attempt_at(policy, mail.attempt, now, roll)
    following = _following(mail, due, reason, attempt=mail.attempt + 1, failed_providers=failed)
    event = Deferred(**_ids(mail, now), provider=provider, reply=_info(reply), reason=reason, next_at=due)
    return Decision(event, next=following)


def given_up_everywhere(mail: DispatchReady, reason: str, now: datetime) -> Decision:
    """Every provider of the lane refused this mail for reasons of its own."""
    return Decision(DeadLettered(**_ids(mail, now), reason=reason), dead_letter=reason)


def doubtful(
    mail: DispatchReady, provider: str | None, lane_policy: InDoubt, policy: Retry, now: datetime, reason: str
) -> Decision:
    """Nobody knows whether the server accepted it: `resend` sends the same bytes again, `park` asks a person."""
    choice = mail.in_doubt or lane_policy
    event = Uncertain(**_ids(mail, now), provider=provider, reason=reason, policy=choice)
    if choice == "park" or mail.attempt >= policy.give_up_after:
        return Decision(event, dead_letter="uncertain")
    following = _following(mail, now, reason, attempt=mail.attempt + 1, doubts=mail.doubts + 1)
    return Decision(event.model_copy(update={"next_at": now}), next=following)


# ------------------------------------------------------------------------------------------ it ended without a body


def released(mail: DispatchReady, reason: str, now: datetime, roll: float) -> Decision:
    """The intent ends without an accepted body: proof of not sent, no attempt spent."""
    due = now + timedelta(seconds=pause_s(mail.hop - (mail.attempt - 1), roll))
    event = Released(**_ids(mail, now), reason=reason, next_at=due)
    return Decision(event, next=_following(mail, due, reason))


def held(mail: DispatchReady, reason: str, due: datetime, now: datetime) -> Decision:
    """It may not start now; it waits outside the partition, so that nothing waits behind it."""
    return Decision(Held(**_ids(mail, now), reason=reason, next_at=due), next=_following(mail, due, reason))


def expired(mail: DispatchReady, now: datetime) -> Decision:
    """Its time is over."""
    return Decision(Expired(**_ids(mail, now)))


def cancelled(mail: DispatchReady, now: datetime) -> Decision:
    """It was called off before its body was written."""
    return Decision(Cancelled(**_ids(mail, now)))


def unsendable(mail: DispatchReady, reason: str, now: datetime) -> Decision:
    """It cannot be composed (a template that fails, content that no server may be shown)."""
    return Decision(DeadLettered(**_ids(mail, now), reason=reason), dead_letter=reason)


def is_throttled(reply: Reply, phase: Phase) -> bool:
    """Whether a refusal speaks of the provider's pace rather than of this mail."""
    return classify(reply, phase) is ReplyClass.THROTTLED


# ---------------------------------------------------------------------------------------------------------- details


def _ids(mail: DispatchReady, now: datetime) -> dict[str, Any]:
    return {
        "message_id": mail.message_id,
        "delivery_id": mail.delivery_id,
        "recipient": mail.recipient,
        "generation": mail.generation,
        "attempt": mail.attempt,
        "hop": mail.hop,
        "possibly_delivered": mail.doubts > 0,
        "at": now,
    }


def _following(mail: DispatchReady, due: datetime, reason: str, **changes: Any) -> DispatchReady:
    return mail.model_copy(update={"hop": mail.hop + 1, "due_at": due, "reason": reason, **changes})


def _info(reply: Reply | None) -> ReplyInfo | None:
    return None if reply is None else ReplyInfo(code=reply.code, enhanced=reply.enhanced, text=reply.text)
