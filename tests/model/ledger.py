"""The ledger's protocol: events are folded into rows, and the next offset is stored in the same database transaction.

Two ledgers may believe that they own the partition (a zombie). Properties: 1 the rows count every event below the
stored offset exactly once and none above it; 2 every event is counted in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from .explorer import Budget, Step, budget, spend
from .sender_state import NAMES, put

FAULTS = (
    "crash",  # a process dies; the database aborts what it had not committed
    "kick",  # the group gives the partition to the other ledger, this one runs on
    "unknown",  # the outcome of a database commit is not known
    "rebuild",  # an operator empties rows and offsets, and the log is read again
)
CRASH, KICK, UNKNOWN, REBUILD = range(len(FAULTS))
IDLE, ASSIGNED, READY, FOLDED, COMMIT_UNKNOWN = "idle", "assigned", "ready", "folded", "commit unknown"
ROWS_WRITTEN = "rows written"  # only without one_transaction


@dataclass(frozen=True, slots=True)
class Rules:
    """The ledger's protocol; the defaults are as designed."""

    events: int = 2
    batch_max: int = 2
    one_transaction: Literal["yes", "rows first", "offset first"] = "yes"
    start_from: Literal["database", "group"] = "database"  # group: Kafka's committed offset, committed afterwards
    compare_and_set: bool = True  # False: the offset is overwritten, whatever stands there
    after_unknown: Literal["read offset", "say again", "assume"] = "read offset"
    rebuild_resets_offset: bool = True  # False: rows are emptied, offsets are not


class Ledger(NamedTuple):
    alive: bool
    stage: str = IDLE
    next: int = 0  # what it believes is stored
    taken: int = 0  # events in its batch


class World(NamedTuple):
    counted: tuple[int, ...]  # per event: how often the rows count it
    stored: int  # the offset in the database
    group: int  # the offset in Kafka
    ledgers: tuple[Ledger, ...]
    owner: int | None
    budget: Budget


class LedgerModel:
    """Two ledgers over one partition of mail.events, under `rules`, with `faults` and at most `together` of them."""

    def __init__(self, rules: Rules, faults: Mapping[str, int], together: int | None = None) -> None:
        self.rules = rules
        self.budget = budget(FAULTS, faults, together)

    def initial(self) -> World:
        ledgers = (Ledger(True, ASSIGNED), Ledger(True))
        return World((0,) * self.rules.events, 0, 0, ledgers, 0, self.budget)

    def broken(self, state: World) -> str | None:
        if any(ledger.stage == ROWS_WRITTEN for ledger in state.ledgers if ledger.alive):
            return None  # half of a write that is under way
        for event, times in enumerate(state.counted):
            if times != (1 if event < state.stored else 0):
                return f"1: event {event} is counted {times} times, and the stored offset is {state.stored}"
        return None

    def unfinished(self, state: World) -> str | None:
        if any(times != 1 for times in state.counted):
            return f"2: nothing more can happen, and the rows count {state.counted}"
        return None

    def steps(self, state: World) -> Iterator[Step]:
        if (left := spend(state.budget, REBUILD)) is not None:
            stored = 0 if self.rules.rebuild_resets_offset else state.stored
            emptied = state._replace(counted=(0,) * self.rules.events, stored=stored, budget=left)
            yield Step("operator: rebuilds the ledger", emptied, fault=True)
        for who, ledger in enumerate(state.ledgers):
            if ledger.alive:
                yield from self._faults(state, who, ledger)
                yield from self._fold(state, who, ledger)
            else:
                yield Step(f"{NAMES[who]} starts again", _join(_put(state, who, Ledger(True)), who))

    def _faults(self, world: World, who: int, ledger: Ledger) -> Iterator[Step]:
        name = NAMES[who]
        if (left := spend(world.budget, CRASH)) is not None:
            after = _put(world, who, Ledger(False))._replace(budget=left)
            yield Step(f"{name} crashes", _hand_over(after, who), fault=True)
        if world.owner == who and (left := spend(world.budget, KICK)) is not None:
            after = _hand_over(world._replace(budget=left), who)
            yield Step(f"group: {name} misses its session and runs on", after, fault=True)
        if world.owner != who and ledger.stage != IDLE:
            yield Step(f"{name} notices that it was dropped", _join(_put(world, who, Ledger(True)), who))

    def _fold(self, world: World, who: int, ledger: Ledger) -> Iterator[Step]:
        rules, name = self.rules, NAMES[who]
        if ledger.stage == ASSIGNED:
            start = world.stored if rules.start_from == "database" else world.group
            yield Step(f"{name} starts at {start}", _put(world, who, Ledger(True, READY, start)))
        elif ledger.stage == READY:
            if world.stored < ledger.next and rules.compare_and_set:  # rebuilt meanwhile: seen at the latest when idle
                yield Step(f"{name} finds the offset behind, starts again", _put(world, who, Ledger(True, ASSIGNED)))
            for taken in range(1, min(rules.batch_max, rules.events - ledger.next) + 1):
                label = f"{name} folds events {ledger.next}..{ledger.next + taken - 1}"
                yield Step(label, _put(world, who, ledger._replace(stage=FOLDED, taken=taken)))
            if world.group < ledger.next and world.owner == who:
                yield Step(f"{name} tells the group {ledger.next}", world._replace(group=ledger.next))
        elif ledger.stage == FOLDED:
            yield from self._write(world, who, ledger)
        elif ledger.stage == ROWS_WRITTEN:
            yield self._second_half(world, who, ledger)
        elif ledger.stage == COMMIT_UNKNOWN:
            believed = {
                "read offset": Ledger(True, ASSIGNED),
                "say again": ledger._replace(stage=FOLDED),
                "assume": Ledger(True, READY, ledger.next + ledger.taken),
            }[rules.after_unknown]
            yield Step(f"{name} connects again: {rules.after_unknown}", _put(world, who, believed))

    def _write(self, world: World, who: int, ledger: Ledger) -> Iterator[Step]:
        rules, name = self.rules, NAMES[who]
        if rules.compare_and_set and world.stored != ledger.next:
            again = _put(world, who, Ledger(True, ASSIGNED))
            yield Step(f"{name}: the stored offset is {world.stored}, rolled back", again)
            return
        done = Ledger(True, READY, ledger.next + ledger.taken)
        if rules.one_transaction == "rows first":
            half = _put(_count(world, ledger), who, ledger._replace(stage=ROWS_WRITTEN))
            yield Step(f"{name} writes the rows", half)
            return
        if rules.one_transaction == "offset first":
            half = _put(world._replace(stored=done.next), who, ledger._replace(stage=ROWS_WRITTEN))
            yield Step(f"{name} writes the offset", half)
            return
        written = _count(world, ledger)._replace(stored=done.next)
        yield Step(f"{name} commits rows and offset {done.next}", _put(written, who, done))
        if (left := spend(world.budget, UNKNOWN)) is not None:
            unknown = ledger._replace(stage=COMMIT_UNKNOWN)
            label = f"{name}: outcome of the database commit unknown"
            yield Step(f"{label} (it was applied)", _put(written, who, unknown)._replace(budget=left), fault=True)
            yield Step(f"{label} (it was not applied)", _put(world, who, unknown)._replace(budget=left), fault=True)

    def _second_half(self, world: World, who: int, ledger: Ledger) -> Step:
        done = Ledger(True, READY, ledger.next + ledger.taken)
        if self.rules.one_transaction == "rows first":
            return Step(f"{NAMES[who]} writes the offset", _put(world._replace(stored=done.next), who, done))
        return Step(f"{NAMES[who]} writes the rows", _put(_count(world, ledger), who, done))


def _count(world: World, ledger: Ledger) -> World:
    batch = range(ledger.next, ledger.next + ledger.taken)
    return world._replace(counted=tuple(n + (event in batch) for event, n in enumerate(world.counted)))


def _put(world: World, who: int, ledger: Ledger) -> World:
    return world._replace(ledgers=put(world.ledgers, who, ledger))


def _join(world: World, who: int) -> World:
    if world.owner is None:
        return _put(world, who, Ledger(True, ASSIGNED))._replace(owner=who)
    return world


def _hand_over(world: World, who: int) -> World:
    if world.owner != who:
        return world
    heir = 1 - who
    if world.ledgers[heir].alive:
        return _put(world, heir, Ledger(True, ASSIGNED))._replace(owner=heir)
    return world._replace(owner=None)
