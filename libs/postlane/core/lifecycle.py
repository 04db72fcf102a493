"""The life of a delivery: its states, the legal moves in one table, and the fold of its events.

The table is the specification: the diagram in the docs is made from it, and an event that is no legal move changes
nothing. Events of one delivery are totally ordered (one partition), so the fold needs no clock.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    SCHEDULED = "scheduled"
    HELD = "held"
    SENDING = "sending"
    DELIVERED = "delivered"
    BOUNCED = "bounced"
    SUPPRESSED = "suppressed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REJECTED = "rejected"
    DEAD_LETTERED = "dead_lettered"
    UNCERTAIN = "uncertain"
    DISCARDED = "discarded"


S = State
OPEN = frozenset({S.PENDING, S.SCHEDULED, S.HELD, S.SENDING})
TERMINAL = frozenset(State) - OPEN
# Settled for good; the other terminal states may be replayed as a new generation.
REPLAYABLE = frozenset({S.BOUNCED, S.CANCELLED, S.EXPIRED, S.REJECTED, S.DEAD_LETTERED, S.DISCARDED})

# event type -> {state before -> state after}; None is "not known yet".
TRANSITIONS: dict[str, dict[State | None, State]] = {
    "Routed": {None: S.PENDING, S.SCHEDULED: S.PENDING, S.HELD: S.PENDING},
    "Scheduled": {None: S.SCHEDULED, S.SCHEDULED: S.SCHEDULED, S.HELD: S.SCHEDULED, S.PENDING: S.SCHEDULED},
    "Suppressed": dict.fromkeys((None, S.PENDING, S.SCHEDULED, S.HELD), S.SUPPRESSED),  # pending: after a release
    "Rejected": {None: S.REJECTED},
    "Cancelled": dict.fromkeys((None, *OPEN), S.CANCELLED),
    "Expired": dict.fromkeys((None, *OPEN), S.EXPIRED),
    "Attempted": {S.PENDING: S.SENDING, S.SCHEDULED: S.SENDING, S.HELD: S.SENDING, S.SENDING: S.SENDING},
    "Deferred": {S.SENDING: S.SCHEDULED},
    "Held": {S.PENDING: S.HELD, S.SCHEDULED: S.HELD, S.HELD: S.HELD},
    "Released": {S.SENDING: S.PENDING},
    "Delivered": {S.SENDING: S.DELIVERED},
    "Bounced": {S.SENDING: S.BOUNCED, S.DELIVERED: S.BOUNCED, S.UNCERTAIN: S.BOUNCED},
    "Uncertain": {S.SENDING: S.UNCERTAIN},
    "DeadLettered": dict.fromkeys((None, *OPEN), S.DEAD_LETTERED),
    "Discarded": {S.DEAD_LETTERED: S.DISCARDED, S.UNCERTAIN: S.DISCARDED},
    "Resolved": {S.UNCERTAIN: S.DELIVERED, S.DISCARDED: S.DELIVERED},
}


def evolve(state: State | None, kind: str, *, again: bool = False, resolved: str | None = None) -> State | None:
    """The state after an event of type `kind`; the same state when the move is not legal.

    `again`: an Uncertain event that carries `next_at`, so the delivery is sent again rather than parked.
    `resolved`: what a Resolved event found out, "delivered" or "bounced".
    """
    after = TRANSITIONS.get(kind, {}).get(state)
    if after is None:
        return state
    if kind == "Uncertain" and again:
        return State.SCHEDULED
    if kind == "Resolved" and resolved is not None:
        return State(resolved)
    return after


def legal(state: State | None, kind: str) -> bool:
    """Whether an event of type `kind` may follow in `state`."""
    return state in TRANSITIONS.get(kind, {})
