"""The book of one dispatch partition: what is unsettled, O and S, and what a takeover finds. Pure.

O, the low-water mark, is the offset of the oldest unsettled dispatch record (everything below it is settled).
S is a state position not above any record, intent or outcome, that belongs to a dispatch record at or above O.
S is computed for the O it is committed with, so that whoever takes the partition over reads `mail.state` from S and
knows all there is to know about every record from O on. Cost of a takeover: what was written since S, O(max_span).

A record written in the tick being drafted gets as its position the end of our own acknowledged records before the
tick: a lower bound that is known without waiting for the broker (the model explores this choice).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from postlane.core.events import DispatchReady, Intent, Outcome
from postlane.core.rules import ALL_RULES, Rules
from postlane.core.settle import Decision


class Stage(IntEnum):
    """Where a dispatch record stands in this process."""

    FRESH = 0  # nothing was written about it
    DOUBT = 1  # a predecessor's intent without outcome: waits until that has lapsed
    STARTING = 2  # its intent is in the tick in flight
    STARTED = 3  # its intent is committed: the body may be written
    ENDED = 4  # its decision waits for a tick
    SETTLING = 5  # its outcome is in the tick in flight
    SETTLED = 6


@dataclass(slots=True, eq=False)
class Cell:
    """The records of one tick in one partition: their lowest possible position, how many entries rest on it."""

    position: int
    entries: int = 0


@dataclass(slots=True, eq=False)
class Entry:
    """One dispatch record that is not settled, or settled but above O."""

    partition: int
    offset: int
    mail: DispatchReady | None  # None: undecodable, on its way to the dead letters
    stage: Stage = Stage.FRESH
    decision: Decision | None = None
    cell: Cell | None = None
    lapse_at: float = 0.0  # monotonic seconds; no body is begun at or after it
    provider: str = ""
    envelope_from: str = ""
    recipient: str = ""
    body: bytes | None = None
    begun: bool = False  # the body may have reached the server
    slot: int = -1  # in the flight recorder
    raw: Any = None  # the record as it was read: its bytes go to the dead letters, its headers carry the trace
    trouble: str = ""  # why it could not be decoded
    weight_bytes: int = 0  # of the record as it was read
    counted: bool = False  # against the limits of conversations at a time
    span: Any = None  # of the attempt under way, where traces are on
    trace: Any = None  # headers that carry the context of the last attempt's span

    @property
    def key(self) -> str:
        """The key of its book entries."""
        return f"@{self.offset}#0" if self.mail is None else f"{self.mail.delivery_id}#{self.mail.hop}"

    @property
    def size_bytes(self) -> int | None:
        """The size of the body, None where there is none yet."""
        return None if self.body is None else len(self.body)

    @property
    def eight_bit(self) -> bool | None:
        """Whether the body has bytes above 127."""
        return None if self.body is None else not self.body.isascii()


class Found(IntEnum):
    """What the books say of a dispatch record at a takeover."""

    FRESH = 0
    IN_DOUBT = 1
    SETTLED = 2


@dataclass(slots=True)
class History:
    """What `mail.state` said between S and its end: the knowledge of a takeover."""

    outcomes: set[str] = field(default_factory=set)
    intents: dict[str, Intent] = field(default_factory=dict)
    latest_hop: dict[str, int] = field(default_factory=dict)
    last_offset: int = -1
    records: int = 0
    by_hop: bool = True  # False is a test's mistake: an outcome of one hop speaks for all of the delivery

    def add(self, record: Intent | Outcome) -> None:
        """One committed state record, in the order of the log."""
        key = f"{record.delivery_id}#{record.hop}"
        if isinstance(record, Outcome):
            self.outcomes.add(key)
        else:
            self.intents[key] = record
        self.latest_hop[record.delivery_id] = max(record.hop, self.latest_hop.get(record.delivery_id, -1))
        self.last_offset = max(self.last_offset, record.offset)
        self.records += 1

    def find(self, entry: Entry) -> tuple[Found, Intent | None]:
        """By `delivery_id#hop`; a record of a later hop settles all earlier hops."""
        key = entry.key
        if key in self.outcomes:
            return Found.SETTLED, None
        if entry.mail is not None and self.latest_hop.get(entry.mail.delivery_id, -1) > entry.mail.hop:
            return Found.SETTLED, None
        if not self.by_hop and entry.mail is not None and self._settled_somewhere(entry.mail.delivery_id):
            return Found.SETTLED, None
        intent = self.intents.get(key)
        return (Found.FRESH, None) if intent is None else (Found.IN_DOUBT, intent)

    def _settled_somewhere(self, delivery: str) -> bool:
        return any(key.startswith(f"{delivery}#") for key in self.outcomes)


@dataclass(slots=True)
class Book:
    """One owned partition: `low_water` is O and `state_floor` is S as they were committed when it was taken over."""

    partition: int
    low_water: int
    state_floor: int
    state_end: int  # position after the last own (or read) acknowledged state record
    history: History | None = None
    next_offset: int = -1
    entries: deque[Entry] = field(default_factory=deque)
    cells: deque[Cell] = field(default_factory=deque)
    said: int = -1  # the O of the last commit
    held_bytes: int = 0  # of the records read and not settled
    rules: Rules = ALL_RULES
    _draft_cell: Cell | None = None
    _moved: list[Entry] = field(default_factory=list)
    _dropped: list[Cell] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.next_offset = self.low_water
        self.said = self.low_water
        # Everything that the takeover finds rests on S until O has passed what the history speaks of.
        self.cells.append(Cell(self.state_floor))

    @property
    def span(self) -> int:
        """How far reading is ahead of O, in records."""
        return self.next_offset - self.oldest

    @property
    def oldest(self) -> int:
        """O as it stands now."""
        return self.entries[0].offset if self.entries else self.next_offset

    @property
    def unsettled(self) -> int:
        """Records that still have to be dealt with: not those that are settled and stand behind one that is not."""
        return sum(entry.stage < Stage.SETTLED for entry in self.entries)

    def all_entries(self) -> Iterable[Entry]:
        """What is not settled, with what the tick in flight settles."""
        yield from self._moved
        yield from self.entries

    def admit(self, entry: Entry) -> tuple[Found, Intent | None]:
        """A dispatch record was read; says what the history knows of it. Records come in the order of the log."""
        if entry.offset < self.next_offset:
            return Found.SETTLED, None  # delivered twice by the reader: known already
        self.next_offset = entry.offset + 1
        if self.history is None:
            self.entries.append(entry)
            return Found.FRESH, None
        found, intent = self.history.find(entry)
        if entry.offset <= self.history.last_offset:
            self._rest_on(entry, self.cells[0])
        if found is Found.SETTLED:
            entry.stage = Stage.SETTLED
        elif found is Found.IN_DOUBT:
            entry.stage = Stage.DOUBT
        self.entries.append(entry)
        if entry.offset >= self.history.last_offset:
            self.history = None
        return found, intent

    # ------------------------------------------------------------------------------------- one tick: draft, then …

    def note(self, entry: Entry, stage: Stage) -> None:
        """The tick being drafted writes a state record for `entry`, which enters `stage` (STARTING or SETTLING)."""
        entry.stage = stage
        if entry.cell is None:
            if self._draft_cell is None:
                self._draft_cell = Cell(self.state_end)
                self.cells.append(self._draft_cell)
            self._rest_on(entry, self._draft_cell)

    def position(self) -> tuple[int, int]:
        """(O, S) to be committed with the drafted tick: O counts its outcomes as settled, S is computed for that O."""
        while self.entries and self.entries[0].stage >= Stage.SETTLING:
            entry = self.entries.popleft()
            self._moved.append(entry)
            if entry.cell is not None:
                entry.cell.entries -= 1
        if self.history is None:
            while self.cells and self.cells[0].entries == 0:
                self._dropped.append(self.cells.popleft())
        floor = self.cells[0].position if self.cells else self.state_end
        if self.rules is not ALL_RULES:
            return self._mistaken(floor)
        return self.oldest, floor

    def _mistaken(self, floor: int) -> tuple[int, int]:
        """(O, S) with the rules of a test that takes one out."""
        offset = self.oldest
        if not self.rules.floor_counts_outcomes:
            unsettled = [e.cell.position for e in self.entries if e.cell is not None and e.stage < Stage.SETTLING]
            floor = min(unsettled, default=self.state_end)
        if not self.rules.low_water_is_unsettled and self.entries:
            offset += 1
        return offset, floor

    def committed(self, drafted: Iterable[Entry], state_end: int | None) -> None:
        """… the tick was committed; `state_end` is the position after its last state record here."""
        for entry in drafted:
            entry.stage = Stage.STARTED if entry.stage is Stage.STARTING else Stage.SETTLED
        self.said = self.oldest
        if state_end is not None:
            self.state_end = max(self.state_end, state_end)
        self._draft_cell = None
        self._moved.clear()
        self._dropped.clear()

    def rolled_back(self, drafted: Iterable[Entry]) -> None:
        """… nothing of it happened: `drafted` are the entries that `note` was called for in it."""
        for cell in reversed(self._dropped):
            self.cells.appendleft(cell)
        for entry in self._moved:
            if entry.cell is not None:
                entry.cell.entries += 1
        self.entries.extendleft(reversed(self._moved))
        for entry in drafted:
            entry.stage = Stage.FRESH if entry.stage is Stage.STARTING else Stage.ENDED
            if entry.cell is not None and entry.cell is self._draft_cell:
                entry.cell.entries -= 1
                entry.cell = None
        if self._draft_cell is not None and self._draft_cell in self.cells:
            self.cells.remove(self._draft_cell)
        self._draft_cell = None
        self._moved.clear()
        self._dropped.clear()

    @property
    def stale(self) -> bool:
        """O has moved since it was last committed, although nothing was written (the history settled it)."""
        while self.entries and self.entries[0].stage is Stage.SETTLED:
            entry = self.entries.popleft()
            if entry.cell is not None:
                entry.cell.entries -= 1
        return self.oldest != self.said

    @staticmethod
    def _rest_on(entry: Entry, cell: Cell) -> None:
        entry.cell = cell
        cell.entries += 1
