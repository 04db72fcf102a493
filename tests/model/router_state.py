"""The world of the router's model and its rules: one partition of requests, a changelog of keys, a local store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from .explorer import Budget

FAULTS = (
    "crash",  # a process dies; its volume with the store stays
    "wipe",  # ... and its volume is lost
    "kick",  # the group drops a member that runs on: a zombie
    "unknown",  # the outcome of a commit is not known
    "expire",  # the broker times a living process's transaction out
)
CRASH, WIPE, KICK, UNKNOWN, EXPIRE = range(len(FAULTS))

# a router's way to the partition; catching up only without store_atomic
IDLE, ASSIGNED, FETCHED, BOUNDED, RUNNING = "idle", "assigned", "fetched", "bounded", "running"
CATCHING_UP = "catching up"

# a pass; half remembered only without store_atomic
NO_PASS, BEGUN, OFFSETS_SENT, OUTCOME_UNKNOWN = "", "begun", "offsets sent", "outcome unknown"
REMEMBERING, HALF_REMEMBERED = "remembering", "half remembered"

OPEN, COMMITTED, ABORTED, COMMITTING = "open", "committed", "aborted", "committing"


@dataclass(frozen=True, slots=True)
class Rules:
    """The router's protocol; the defaults are as designed. `requests` are the keys in the order of the log."""

    requests: str = "aba"
    batch_max: int = 2
    seen_in_transaction: bool = True  # False: the changelog is written by itself, before the transaction
    position_in_transaction: bool = True  # False: the position is committed by itself, before the transaction
    group_metadata: bool = True
    stable_fetch: bool = True
    restore_to: Literal["high watermark", "last stable offset"] = "high watermark"
    restore_committed_only: bool = True  # False: aborted changelog records are believed
    catch_up: bool = True  # False: a store that is there is taken as complete
    store_after_commit: bool = True  # False: the store is ahead of the changelog
    store_atomic: bool = True  # False: applied position first, keys after it
    dedup_in_batch: bool = True
    replaced_changelog: bool = False  # the world: A's store is of an earlier mail.seen and claims key b
    foreign_store: Literal["topic id", "position", "ignored"] = "topic id"  # how that is noticed
    after_unknown: Literal["take over again", "assume", "say again"] = "take over again"


class Seen(NamedTuple):
    """A record of mail.seen."""

    key: str
    writer: int
    fate: str


class Transaction(NamedTuple):
    phase: str
    queued: tuple[str, ...]  # keys on their way to mail.seen
    dispatched: tuple[str, ...]
    position: int | None
    seen_marker: bool = False
    offsets_marker: bool = False


class Router(NamedTuple):
    """One process and its volume (`store`, `applied`)."""

    alive: bool
    store: frozenset[str] = frozenset()
    applied: int = 0
    foreign: bool = False  # the store is of another mail.seen
    mode: str = IDLE
    next: int = 0
    bound: int = 0
    stage: str = NO_PASS
    taken: int = 0  # requests in the pass under way
    accepted: tuple[str, ...] = ()
    stale: bool = False


class World(NamedTuple):
    seen: tuple[Seen, ...]
    position: int
    transactions: tuple[Transaction | None, ...]
    routers: tuple[Router, ...]
    members: tuple[bool, ...]
    owner: int | None
    dispatched: tuple[str, ...]  # committed, in sorted order: what only the witness sees at once
    budget: Budget


def undecided(seen: tuple[Seen, ...]) -> int:
    """The last stable offset of mail.seen."""
    return next((position for position, entry in enumerate(seen) if entry.fate == OPEN), len(seen))


def stamped(seen: tuple[Seen, ...], who: int, fate: str) -> tuple[Seen, ...]:
    return tuple(e._replace(fate=fate) if e.writer == who and e.fate == OPEN else e for e in seen)
