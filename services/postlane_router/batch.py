"""One transaction in the making: what it writes, what it has read, what is remembered once it is committed."""

from __future__ import annotations

from dataclasses import dataclass, field

from postlane.eventlog.ports import Outgoing, Partition, Received
from postlane.telemetry.tracing import Span
from postlane_router.store import Entry

LETTERS = {"undecodable": "undecodable", "conflicted": "key_conflict"}  # what goes to the dead letters, and why


@dataclass(slots=True)
class Batch:
    """`offsets` is where each partition read goes on; `entries` are the keys accepted, per partition number."""

    records: list[Outgoing] = field(default_factory=list)
    offsets: dict[Partition, int] = field(default_factory=dict)
    entries: dict[int, list[Entry]] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)  # requests, by what became of them
    lanes: dict[str, int] = field(default_factory=dict)  # dispatch records, by lane
    steps: dict[str, int] = field(default_factory=dict)  # dispatch records into the delay stage, by step
    letters: dict[str, int] = field(default_factory=dict)  # dead letters, by reason
    spans: list[Span] = field(default_factory=list)  # of its records, where traces are on; they end with its commit
    read: int = 0
    last: tuple[Partition, int] | None = None  # where the last record read lies
    outcome: str | None = None  # what became of it, where it was a request
    written_bytes: int = 0

    def take(self, record: Received, outcome: str | None, written: list[Outgoing]) -> None:
        """`record` is done; `written` is all that comes of it; `outcome` is None for a record of the delay stage."""
        partition = Partition(record.topic, record.partition)
        self.offsets[partition] = record.offset + 1
        self.last = partition, record.offset
        self.outcome = outcome
        if outcome is not None:
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
            if outcome in LETTERS:
                self.count_letter(LETTERS[outcome])
        self.records += written
        self.read += 1
        for out in written:
            self.written_bytes += len(out.value or b"")

    def remember(self, partition: int, entry: Entry) -> None:
        """A key that was accepted."""
        self.entries.setdefault(partition, []).append(entry)

    def count_lane(self, lane: str) -> None:
        """A dispatch record went to its lane."""
        self.lanes[lane] = self.lanes.get(lane, 0) + 1

    def count_letter(self, reason: str) -> None:
        """A record went to the dead letters."""
        self.letters[reason] = self.letters.get(reason, 0) + 1

    def count_step(self, step: str) -> None:
        """A dispatch record went into the delay stage."""
        self.steps[step] = self.steps.get(step, 0) + 1
