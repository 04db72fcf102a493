"""Three books of the same mails, kept by three parts that do not know each other, compared id by id.

topics   the fold of mail.events, as anybody who reads Kafka can make it
ledger   the rows in the database of postlane_ledger
witness  what the practice SMTP server wrote down before it answered 250
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from postlane.core.events import AnyEvent, DeliveryEvent, Uncertain
from postlane.core.project import project
from postlane.eventlog.codec import decode_event
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.ports import Partition
from postlane.eventlog.topics import TopicNames
from postlane.local.practice import PracticeControl

READ_DEADLINE_S = 30.0
COMPARED = ("state", "recipient", "generation", "attempt", "hop", "doubts", "possibly_delivered", "replayed_as")


@dataclass(slots=True)
class Copies:
    """What the witness has of one delivery."""

    count: int = 0
    digests: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Books:
    """All three, by id. Rows are dicts with the columns of the ledger's tables."""

    asked_for: frozenset[str] = frozenset()  # message ids that a publisher has a receipt for
    topic_mails: Mapping[str, Any] = field(default_factory=dict)
    topics: Mapping[str, Any] = field(default_factory=dict)
    ledger_mails: Mapping[str, Any] = field(default_factory=dict)
    ledger: Mapping[str, Any] = field(default_factory=dict)
    happened: Mapping[str, int] = field(default_factory=Counter)  # events of a delivery
    sent_again: Mapping[str, int] = field(default_factory=dict)  # doubts that were answered by sending again
    witness: Mapping[str, Copies] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Every disagreement, with the id that it is about; empty when all three say the same."""
        found = [f"{m}: accepted, and the topics do not know it" for m in self.asked_for - self.topic_mails.keys()]
        found += [f"{m}: accepted, and the ledger does not know it" for m in self.asked_for - self.ledger_mails.keys()]
        found += [f"{m}: in the books, and nobody asked for it" for m in self.topic_mails.keys() - self.asked_for]
        found += [f"{d}: the witness has a mail that no book knows" for d in self.witness.keys() - self.topics.keys()]
        for ident in sorted(self.topics.keys() | self.ledger.keys()):
            found += [f"{ident}: {problem}" for problem in self._about(ident)]
        return found + self._missing_recipients()

    def _about(self, ident: str) -> Iterator[str]:
        said, row = self.topics.get(ident), self.ledger.get(ident)
        if said is None or row is None:
            yield "in one of topics and ledger only"
            return
        for name in COMPARED:
            if said[name] != row[name]:
                yield f"{name} is {said[name]} by the topics, {row[name]} by the ledger"
        copies = self.witness.get(ident, Copies())
        state, again = said["state"], self.sent_again.get(ident, 0)
        if state == "delivered" and not copies.count:
            yield "delivered by the books, and the witness has nothing"
        if copies.count > 1 + again:
            yield f"the witness has {copies.count} copies, the books allow {1 + again}"
        if len(copies.digests) > 1:
            yield "a repeat was not the same bytes"
        if copies.count and state != "delivered" and not said["doubts"]:
            yield f"{state} by the books without a doubt, and the witness has it"

    def _missing_recipients(self) -> list[str]:
        first = Counter(row["message_id"] for row in self.topics.values() if row["generation"] == 0)
        return [
            f"{ident}: {mail['recipients']} recipients, {first[ident]} deliveries"
            for ident, mail in self.topic_mails.items()
            if first[ident] != mail["recipients"]
        ]

    def table(self) -> list[tuple[str, int, int, int, int]]:
        """(state, deliveries by the topics, by the ledger, copies that the witness has of them, replayed since)."""
        states = Counter(row["state"] for row in self.topics.values())
        ledger = Counter(row["state"] for row in self.ledger.values())
        replayed = Counter(row["state"] for row in self.topics.values() if row["replayed_as"] is not None)
        copies: Counter[str] = Counter()
        for ident, seen in self.witness.items():
            copies[self.topics[ident]["state"] if ident in self.topics else "unknown"] += seen.count
        order = sorted(states | ledger | copies, key=lambda state: (state != "delivered", state))
        return [(state, states[state], ledger[state], copies[state], replayed[state]) for state in order]

    @property
    def repeated(self) -> int:
        """Copies beyond the first of a delivery, as the witness has them."""
        return sum(copies.count - 1 for copies in self.witness.values())

    def in_state(self, *states: str) -> list[str]:
        """The deliveries that stand so and were not replayed, by id."""
        return sorted(d for d, r in self.topics.items() if r["state"] in states and r["replayed_as"] is None)


def read_books(bootstrap: str, database: Path, witness: PracticeControl, asked_for: Iterable[str]) -> Books:
    """The books as they stand now; the witness is read last, so what the topics say happened is in it by then."""
    ledger_mails, ledger = read_ledger(database)
    events = asyncio.run(_read_events(bootstrap))
    topic_mails, topics = project(events)
    happened = Counter(event.delivery_id for event in events if isinstance(event, DeliveryEvent))
    again: Counter[str] = Counter()
    for event in events:
        if isinstance(event, Uncertain) and event.next_at is not None:
            again[event.delivery_id] += 1
    copies: dict[str, Copies] = defaultdict(Copies)
    for entry in witness.ledger():
        if entry.accepted and entry.delivery is not None:
            copies[entry.delivery].count += 1
            copies[entry.delivery].digests.add(entry.sha256)
    return Books(frozenset(asked_for), topic_mails, topics, ledger_mails, ledger, happened, again, dict(copies))


def read_ledger(database: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of mails and deliveries in the ledger's database, by id; read with nothing but sqlite3."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")  # one moment for both tables
        mails = {row["message_id"]: dict(row) for row in connection.execute("SELECT * FROM messages")}
        rows = [dict(row) for row in connection.execute("SELECT * FROM deliveries")]
    return mails, {row["delivery_id"]: {**row, "possibly_delivered": bool(row["possibly_delivered"])} for row in rows}


async def _read_events(bootstrap: str) -> list[AnyEvent]:
    log, names = KafkaLog(bootstrap, {}, "postlane-demo"), TopicNames("")
    try:
        numbers = range(await log.partition_count(names.events))
        ends = await log.high_watermarks([Partition(names.events, number) for number in numbers])
        events: list[AnyEvent] = []
        for partition, end in ends.items():
            if end:
                async for batch in log.read(partition, 0, end, deadline_s=READ_DEADLINE_S):
                    events += [decode_event(record.value) for record in batch]
        return events
    finally:
        await log.close()
