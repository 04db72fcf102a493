"""The world of the sender's model: what the broker, the group, the senders and the SMTP server know."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from .explorer import Budget

# a dispatch record as one sender's book has it
FRESH, READY, BODY, IN_DOUBT, SETTLED = "fresh", "ready", "body", "in doubt", "settled"
CHECKED = "checked"  # deadline looked at, body not begun (only with pause_after_check)
DELIVERED, FAILED, UNCERTAIN, RELEASED, HELD = "delivered", "failed", "uncertain", "released", "held"
INTENT_TOLD = "intent?"  # in the tick in flight
TOLD = {name: name + "?" for name in (DELIVERED, FAILED, UNCERTAIN, RELEASED, HELD)}
RESULT_OF = {told: name for name, told in TOLD.items()}
AFTER_COMMIT = {INTENT_TOLD: READY, **dict.fromkeys(RESULT_OF, SETTLED)}
AFTER_ABORT = {INTENT_TOLD: FRESH, **RESULT_OF, TOLD[HELD]: FRESH}

# a sender's way to a partition
IDLE, ASSIGNED, FETCHED, BOUNDED, RUNNING = "idle", "assigned", "fetched", "bounded", "running"
CLOSED = "closed"  # failed closed: a person has to look
REVOKED = "revoked"  # the partition went while a tick was in flight (only without revoke_waits)

# a tick
NO_TICK, BEGUN, OFFSETS_SENT, OUTCOME_UNKNOWN, FENCED = "", "begun", "offsets sent", "outcome unknown", "fenced"

# records and transactions at the broker
INTENT, OUTCOME = "intent", "outcome"
OPEN, COMMITTED, ABORTED = "open", "committed", "aborted"
TIMED_OUT, COMMITTING = "timed out", "committing"

NAMES = "ABCDEFGH"
T = TypeVar("T")


class Record(NamedTuple):
    """A dispatch record; its offset stands for delivery_id#hop."""

    delivery: int
    hop: int
    attempt: int
    doubted: bool  # an earlier hop ended in doubt


class Entry(NamedTuple):
    """A record of mail.state."""

    kind: str
    offset: int  # of the dispatch record it speaks of
    writer: int
    fate: str


class Offsets(NamedTuple):
    """What is committed for the partition: O, and S in its metadata; -1 when nothing is."""

    low_water: int
    floor: int


class Transaction(NamedTuple):
    """A producer's transaction; `queued` and `hops_queued` are still in the client."""

    phase: str
    queued: tuple[Entry, ...]
    hops: tuple[Record, ...]
    hops_queued: bool
    intents: tuple[int, ...]
    outcomes: tuple[tuple[int, str], ...]
    offsets: Offsets | None = None
    state_marker: bool = False  # still on its way to mail.state
    offsets_marker: bool = False  # still on its way to the committed offsets


class Sender(NamedTuple):
    """One process: its place in the takeover, its book (from dispatch offset `base` on), its tick."""

    alive: bool
    mode: str = IDLE
    base: int = 0
    floor: int = 0  # S as fetched
    bound: int = 0
    book: tuple[str, ...] = ()
    marks: tuple[int, ...] = ()  # per book item: no record of it stands below; -1: it has none
    known_end: int = 0  # just after the last acknowledged own record: later own records stand at or above
    tick: str = NO_TICK
    stale: bool = False  # the generation moved on since the snapshot
    stray: str = ""  # a delayed EndTxn of this producer epoch is still in the network: COMMITTED or ABORTED
    fenced: bool = False  # a newer producer of the same transactional id exists
    lock: bool = False  # holds the lock of its instance's flight recorder


class Ghost(NamedTuple):
    """What only the witness knows."""

    copies: tuple[int, ...]  # accepted by the SMTP server, per delivery
    doubts: tuple[int, ...]  # recorded, per delivery
    terminal: tuple[str, ...]
    settled: frozenset[int]  # dispatch offsets with a committed outcome
    intents: frozenset[tuple[int, int]]  # committed: (dispatch offset, process)
    accepted: frozenset[tuple[int, int]]
    lapsed: frozenset[tuple[int, int]]  # the intent's time-to-live is over
    adrift: frozenset[tuple[int, int]]  # body cut off; the server may still take it
    begun: frozenset[tuple[int, int]]  # what the flight recorder knows


class World(NamedTuple):
    """Everything."""

    dispatch: tuple[Record, ...]
    delayed: tuple[Record, ...]
    log: tuple[Entry | None, ...]  # mail.state; None where the cleaner took a record
    committed: Offsets
    transactions: tuple[Transaction | None, ...]
    senders: tuple[Sender, ...]
    members: tuple[bool, ...]
    owner: int | None
    ghost: Ghost
    budget: Budget
    log_start: int = 0  # retention took what is below


def put(items: tuple[T, ...], index: int, item: T) -> tuple[T, ...]:
    """`items` with another item at `index`."""
    return (*items[:index], item, *items[index + 1 :])


def with_sender(world: World, who: int, sender: Sender) -> World:
    return world._replace(senders=put(world.senders, who, sender))


def with_transaction(world: World, who: int, transaction: Transaction | None) -> World:
    return world._replace(transactions=put(world.transactions, who, transaction))


def aborted(world: World, who: int) -> World:
    """The world after the broker aborted the open transaction of `who` (if any)."""
    return world._replace(log=stamped(world, who, ABORTED), transactions=put(world.transactions, who, None))


def stamped(world: World, who: int, fate: str) -> tuple[Entry | None, ...]:
    """mail.state with the open records of `who` decided."""
    return tuple(e._replace(fate=fate) if e and e.writer == who and e.fate == OPEN else e for e in world.log)


def undecided(log: tuple[Entry | None, ...]) -> int:
    """The last stable offset: the first record whose transaction is neither committed nor aborted."""
    for position, entry in enumerate(log):
        if entry and entry.fate == OPEN:
            return position
    return len(log)


def cut_off(world: World, who: int, wire_outlives: bool) -> World:
    """`who` stops all conversations; with `wire_outlives` a begun body may still be accepted later."""
    sender = world.senders[who]
    if not wire_outlives or BODY not in sender.book:
        return world
    adrift = {(sender.base + k, who) for k, item in enumerate(sender.book) if item == BODY}
    return world._replace(ghost=world.ghost._replace(adrift=world.ghost.adrift | adrift))
