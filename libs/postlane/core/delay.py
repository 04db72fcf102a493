"""The delay stage: where a mail that may not go yet waits, and what becomes of it when it is looked at.

A delay topic is a queue: its first record holds back the others. So a record waits in the longest step that it can
wait out, is looked at when the step is over or when it is due, whichever comes first, and moves to a shorter step
until nothing remains. Within one topic the records come due nearly in their order, which bounds what one can be late
because of another: `LATE_MAX_S`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from postlane.core.events import Cancelled, DeliveryEvent, DispatchReady, Expired, Routed, Scheduled, Suppressed
from postlane.core.knowledge import Knowledge


class Step(NamedTuple):
    """One delay topic, `mail.delay.<name>`."""

    name: str
    seconds: int


STEPS: tuple[Step, ...] = (
    Step("1s", 1),
    Step("10s", 10),
    Step("1m", 60),
    Step("10m", 600),
    Step("1h", 3_600),
    Step("6h", 21_600),
    Step("1d", 86_400),
)
LATE_MAX_S = 2.5  # what a step may be longer than what remains
PAUSED_AGAIN_S = 10.0  # how often something paused is looked at
PAUSED = "paused"
_LONGEST_FIRST = tuple(reversed(STEPS))
_SHORTEST = STEPS[0]


def plan(due_at: datetime | None, now: datetime) -> Step | None:
    """The step in which a record due at `due_at` waits next; None: go now.

    The longest step that is no longer than what remains, or longer by at most a quarter of itself and LATE_MAX_S
    (8 seconds wait once in the step of 10, not eight times in that of 1). Any remainder waits in the shortest step.
    """
    if due_at is None:
        return None
    remaining_s = (due_at - now).total_seconds()
    if remaining_s <= 0:
        return None
    for step in _LONGEST_FIRST:
        if step.seconds - remaining_s <= min(step.seconds / 4, LATE_MAX_S):
            return step
    return _SHORTEST


def look_at_ms(step_s: int, appended_ms: int, due_at: datetime | None, expires_at: datetime | None) -> int:
    """When (unix ms) a record in a delay topic is looked at: after the step, or when it is due or over before that."""
    look = appended_ms + step_s * 1000
    for time in (due_at, expires_at):
        if time is not None:
            # Rounded up: a millisecond early would make one more round of the shortest step.
            look = min(look, -int(-time.timestamp() * 1000 // 1))
    return look


def until(due_at: datetime | None, expires_at: datetime | None) -> datetime | None:
    """What a waiting record waits for: that it is due, or over before that."""
    if due_at is None or expires_at is None:
        return due_at
    return min(due_at, expires_at)


@dataclass(frozen=True, slots=True)
class Go:
    """To the lane now; `event` says so where the router had scheduled it."""

    event: Routed | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Into `step`. `ready` replaces the record where it has changed; `event`, where the cause of waiting is new."""

    step: Step
    ready: DispatchReady | None = None
    event: Scheduled | None = None


@dataclass(frozen=True, slots=True)
class End:
    """It ends here."""

    event: DeliveryEvent


def look(ready: DispatchReady, knows: Knowledge, now: datetime) -> Go | Wait | End:
    """What becomes of a record of the delay stage when it is looked at.

    Whatever ends a mail does so at once; a pause counts when it is due. `hop` and `attempt` stay: they were raised by
    whoever sent it here.
    """
    ids: dict[str, Any] = {
        "message_id": ready.message_id,
        "delivery_id": ready.delivery_id,
        "recipient": ready.recipient,
        "generation": ready.generation,
        "attempt": ready.attempt,
        "hop": ready.hop,
        "possibly_delivered": ready.doubts > 0,
        "at": now,
    }
    if knows.cancelled(ready.message_id, ready.campaign, ready.requested_at):
        return End(Cancelled(**ids))
    if not ready.forced and knows.suppressed(ready.tenant, ready.recipient):
        return End(Suppressed(**ids, reason="suppressed"))
    if ready.expires_at is not None and ready.expires_at <= now:
        return End(Expired(**ids))
    step = plan(until(ready.due_at, ready.expires_at), now)
    if step is not None:
        return Wait(step)
    if knows.paused(ready.tenant, ready.campaign):
        due_at = now + timedelta(seconds=PAUSED_AGAIN_S)
        again = ready.model_copy(update={"due_at": due_at, "reason": PAUSED})
        event = None
        if ready.reason != PAUSED:
            event = Scheduled(**ids, lane=ready.lane, next_at=due_at, reason=PAUSED)
        return Wait(plan(until(due_at, ready.expires_at), now) or _SHORTEST, again, event)
    if ready.hop == 0:
        template = ready.content.template
        return Go(Routed(**ids, lane=ready.lane, template_version=None if template is None else template.version))
    return Go()
