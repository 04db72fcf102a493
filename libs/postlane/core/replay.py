"""Replay: which deliveries may be mailed again as a new generation, and why the others may not. Pure.

What a delivery has come to is folded from its events over all its generations; a plan asks each candidate the same
questions in the same order, and the first that says no is the reason it is guarded. The generation of a replay is one
above the highest that is known when the plan is made, never when it is carried out: two runs that planned from the
same facts ask for the same delivery, of which the router drops the second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

from postlane.core.lifecycle import OPEN, State
from postlane.core.replay_facts import Facts, Generation, History
from postlane.core.route import GENERATION_MAX
from postlane.core.rules import ALL_RULES, Rules

DOMAINS_COUNTED_MAX = 10_000  # distinct ones in a count; the rest is counted together
OTHERS = "(others)"


class Guard(StrEnum):
    """Why a candidate is not replayed."""

    PENDING = "pending"  # a generation is still on its way: never
    DELIVERED = "delivered"
    SUPPRESSED = "suppressed"
    CANCELLED = "cancelled"
    DISCARDED = "discarded"
    REPLAYED = "replayed"  # a later generation is there, or this record was written again already
    UNCERTAIN = "uncertain"
    POSSIBLY_DELIVERED = "possibly_delivered"  # it failed in the end, but an earlier attempt may have arrived
    BOUNCED = "bounced"
    UNDECODABLE = "undecodable"
    KEY_CONFLICT = "key_conflict"
    REPLAYED_BY_RUN = "replayed_by_this_run"
    NO_CONTENT = "no_content"  # the record was too large to be kept whole, or cannot be read here
    TOO_LARGE = "too_large"  # as a request it would be more than the router takes
    REPEATED = "repeated"  # a request that came again, perhaps with other content: not the one that was accepted
    NO_GENERATION = "no_generation"  # the count of generations is at its end
    LIMIT = "limit"  # more than was asked for


# What an operator may ask for by name; the rest holds always.
NAMED = frozenset(
    {
        Guard.DELIVERED,
        Guard.SUPPRESSED,
        Guard.CANCELLED,
        Guard.DISCARDED,
        Guard.UNCERTAIN,
        Guard.POSSIBLY_DELIVERED,
        Guard.BOUNCED,
        Guard.UNDECODABLE,
    }
)


# What a later generation came to is said by its name, rather than that there is one.
_TOLD_BY_STATE = frozenset({State.DELIVERED, State.SUPPRESSED, State.BOUNCED, State.CANCELLED})


class Status(StrEnum):
    """What has become of a dead letter."""

    OPEN = "open"
    REPLAYED = "replayed"
    DISCARDED = "discarded"
    RESOLVED = "resolved"


# -------------------------------------------------------------------------------------------------------- candidates


@dataclass(frozen=True, slots=True)
class Candidate:
    """One delivery, or one record that is none, that an operator's filters chose.

    `source` says what it was found in: a `letter` (the dead letter of a delivery) or a `request` of a window, both to
    be mailed as a new generation; `poison` (to be written again as it is) or `conflict` (to be a mail of its own).
    """

    source: Literal["letter", "request", "poison", "conflict"]
    partition: int
    offset: int
    message_id: str | None
    digest: str = ""  # of the recipient, as in a delivery id
    generation: int = 0
    requested_at: datetime | None = None  # of a request
    hop: int | None = None  # of an undecodable dispatch record that can be read by now
    reason: str = ""
    lane: str = ""
    domain: str = ""
    suppressed: bool = False  # on the list now
    called_off: Literal["", "campaign", "message"] = ""  # an order that holds now
    readable: bool = True
    too_large: bool = False


@dataclass(frozen=True, slots=True)
class Choices:
    """What the operator asks for by name. `run` is the name of the replay: what was forced in it is not forced again.

    `states` restricts a window to deliveries whose latest state is one of them; so do `reason` and `provider`.
    """

    include: frozenset[Guard] = frozenset()
    run: str = ""
    new_key: bool = False
    states: frozenset[State] = frozenset()
    reason: str | None = None
    provider: str | None = None
    limit: int | None = None
    rules: Rules = ALL_RULES


@dataclass(frozen=True, slots=True)
class Replay:
    """This candidate will be written: as `generation`, of the delivery's generation `replays`."""

    candidate: Candidate
    generation: int = 0
    replays: int = 0
    forced: bool = False  # the suppression list does not stop it


@dataclass(frozen=True, slots=True)
class Guarded:
    """This candidate will not be written."""

    candidate: Candidate
    guard: Guard


@dataclass(slots=True)
class Counts:
    """How many, by what an operator decides by."""

    total: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    lanes: Counter[str] = field(default_factory=Counter)
    domains: Counter[str] = field(default_factory=Counter)
    guarded: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: Replay | Guarded) -> None:
        """Count one verdict."""
        if isinstance(verdict, Guarded):
            self.guarded[verdict.guard] += 1
            return
        candidate = verdict.candidate
        self.total += 1
        self.reasons[candidate.reason or "(none)"] += 1
        self.lanes[candidate.lane or "(none)"] += 1
        domain = candidate.domain or "(none)"
        known = domain in self.domains or len(self.domains) < DOMAINS_COUNTED_MAX
        self.domains[domain if known else OTHERS] += 1


# --------------------------------------------------------------------------------------------------------- decisions


def decide(candidate: Candidate, facts: Facts, choices: Choices) -> Replay | Guarded | None:
    """What becomes of one candidate; None where the operator's filters on its history leave it out."""
    if candidate.source in ("poison", "conflict"):
        return _decide_record(candidate, facts, choices)
    history = facts.deliveries.get((candidate.message_id or "", candidate.digest)) or History()
    latest = history.generations.get(history.latest, Generation())
    if not _asked_for(candidate, latest, choices):
        return None
    named = _named_guards(candidate, history, latest)
    guard = _never(candidate, history, latest)
    if guard is None and not _was_accepted(candidate, facts):
        guard = Guard.REPEATED
    if guard is None:
        guard = next((g for g in named if not _included(g, candidate, choices)), None)
    if guard is None and named and choices.run in history.runs:
        guard = Guard.REPLAYED_BY_RUN
    guard = guard or _unfit(candidate)
    if guard is not None:
        return Guarded(candidate, guard)
    generation = history.latest + 1 if choices.rules.replay_raises_generation else history.latest
    return Replay(candidate, generation, history.latest, forced=Guard.SUPPRESSED in named)


def _was_accepted(candidate: Candidate, facts: Facts) -> bool:
    accepted = facts.accepted.get((candidate.message_id or "", candidate.generation))
    return candidate.requested_at is None or accepted is None or accepted == candidate.requested_at


def _unfit(candidate: Candidate) -> Guard | None:
    if not candidate.readable:
        return Guard.NO_CONTENT
    return Guard.TOO_LARGE if candidate.too_large else None


def _asked_for(candidate: Candidate, latest: Generation, choices: Choices) -> bool:
    if choices.states and (latest.state or State.PENDING) not in choices.states:
        return False
    if candidate.source != "request":
        return True
    if choices.reason is not None and latest.reason != choices.reason:
        return False
    return choices.provider is None or latest.provider == choices.provider


def _never(candidate: Candidate, history: History, latest: Generation) -> Guard | None:
    """What holds whatever the operator says."""
    stuck = candidate.hop is not None and _is_stuck(candidate, latest, history.latest)
    for number, generation in history.generations.items():
        if (generation.state is None or generation.state in OPEN) and not (stuck and number == candidate.generation):
            return Guard.PENDING
    if not history.generations:
        return Guard.PENDING  # not routed yet, or nothing is known of it: then nothing is risked
    if candidate.source == "letter" and candidate.generation != history.latest and latest.state not in _TOLD_BY_STATE:
        return Guard.REPLAYED
    if candidate.called_off == "message":
        return Guard.CANCELLED
    if history.latest >= GENERATION_MAX:
        return Guard.NO_GENERATION
    return None


def _is_stuck(candidate: Candidate, latest: Generation, number: int) -> bool:
    """Whether the delivery rests in this very letter: its dispatch record could not be read, and nothing came after."""
    return (
        candidate.hop is not None
        and candidate.generation == number
        and latest.hop <= candidate.hop
        and latest.state is not State.SENDING
    )


def _named_guards(candidate: Candidate, history: History, latest: Generation) -> list[Guard]:
    """What stands against it unless the operator names it, in the order of what weighs most."""
    states = {generation.state for generation in history.generations.values()}
    doubted = any(g.doubted for g in history.generations.values() if g.state is not State.UNCERTAIN)
    found = {
        Guard.DELIVERED: State.DELIVERED in states,
        Guard.SUPPRESSED: State.SUPPRESSED in states or candidate.suppressed,
        Guard.CANCELLED: latest.state is State.CANCELLED or bool(candidate.called_off),
        Guard.DISCARDED: latest.state is State.DISCARDED,
        Guard.UNCERTAIN: State.UNCERTAIN in states,
        Guard.POSSIBLY_DELIVERED: doubted and State.DELIVERED not in states,
        Guard.BOUNCED: latest.state is State.BOUNCED and candidate.source == "letter",
        Guard.UNDECODABLE: candidate.hop is not None,
    }
    return [guard for guard, holds in found.items() if holds]


def _included(guard: Guard, candidate: Candidate, choices: Choices) -> bool:
    if guard in choices.include:
        return True
    by_state = {
        Guard.CANCELLED: State.CANCELLED,
        Guard.DISCARDED: State.DISCARDED,
        Guard.UNCERTAIN: State.UNCERTAIN,
        Guard.BOUNCED: State.BOUNCED,
    }.get(guard)
    return by_state is not None and by_state in choices.states


def _decide_record(candidate: Candidate, facts: Facts, choices: Choices) -> Replay | Guarded:
    offset = candidate.offset
    guard: Guard | None = None
    if offset in facts.redriven:
        guard = Guard.REPLAYED
    elif offset in facts.discarded and Guard.DISCARDED not in choices.include:
        guard = Guard.DISCARDED
    elif candidate.source == "poison" and Guard.UNDECODABLE not in choices.include:
        guard = Guard.UNDECODABLE
    elif candidate.source == "conflict" and (not choices.new_key or candidate.generation > 0):
        guard = Guard.KEY_CONFLICT
    else:
        guard = _unfit(candidate)
    return Replay(candidate) if guard is None else Guarded(candidate, guard)


def plan(candidates: Iterable[Candidate], facts: Facts, choices: Choices, room: int | None) -> list[Replay | Guarded]:
    """The verdicts on the candidates of one partition, by offset and recipient. `room` is how many may be replayed.

    Of several candidates for one delivery (letters of several generations, or a window with more than one request)
    the one of the latest generation stands for all.
    """
    verdicts: list[Replay | Guarded] = []
    ordered = sorted(candidates, key=lambda c: (c.offset, c.digest))
    best = _best(ordered, facts)
    for candidate in ordered:
        verdict: Replay | Guarded | None
        if candidate.message_id is not None and best[candidate.message_id, candidate.digest] is not candidate:
            if candidate.source == "request":
                continue
            verdict = Guarded(candidate, Guard.REPLAYED)
        else:
            verdict = decide(candidate, facts, choices)
        if isinstance(verdict, Replay) and room is not None:
            if room <= 0:
                verdict = Guarded(candidate, Guard.LIMIT)
            else:
                room -= 1
        if verdict is not None:
            verdicts.append(verdict)
    return verdicts


def _best(ordered: list[Candidate], facts: Facts) -> dict[tuple[str, str], Candidate]:
    best: dict[tuple[str, str], Candidate] = {}
    for candidate in ordered:
        if candidate.message_id is None:
            continue
        key = candidate.message_id, candidate.digest
        known = best.get(key)
        if known is None or _rank(candidate, facts) > _rank(known, facts):
            best[key] = candidate
    return best


def _rank(candidate: Candidate, facts: Facts) -> tuple[int, bool]:
    return candidate.generation, _was_accepted(candidate, facts)


def status_of(candidate: Candidate, facts: Facts) -> Status:
    """What has become of a dead letter."""
    if candidate.source in ("poison", "conflict"):
        if candidate.offset in facts.redriven:
            return Status.REPLAYED
        return Status.DISCARDED if candidate.offset in facts.discarded else Status.OPEN
    history = facts.deliveries.get((candidate.message_id or "", candidate.digest))
    if history is None:
        return Status.OPEN
    if history.latest > candidate.generation:
        return Status.REPLAYED
    mine = history.generations.get(candidate.generation, Generation())
    if mine.state is State.DISCARDED:
        return Status.DISCARDED
    return Status.RESOLVED if mine.resolved else Status.OPEN


def may_discard(candidate: Candidate, facts: Facts) -> Guard | None:
    """Why a dead letter cannot be discarded, None when it can."""
    status = status_of(candidate, facts)
    if status is Status.REPLAYED:
        return Guard.REPLAYED
    if status is Status.DISCARDED:
        return Guard.DISCARDED
    if candidate.source in ("poison", "conflict"):
        return None
    history = facts.deliveries.get((candidate.message_id or "", candidate.digest)) or History()
    state = history.generations.get(candidate.generation, Generation()).state
    if state in (State.DEAD_LETTERED, State.UNCERTAIN):
        return None
    return {State.DELIVERED: Guard.DELIVERED, State.BOUNCED: Guard.BOUNCED}.get(state or State.PENDING, Guard.PENDING)
