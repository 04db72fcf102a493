"""What a restore writes, job by job: for each partition the records of one topic, in an order that is always the same.

The order of the jobs is what keeps a restore that is interrupted from mailing: pauses of every lane first, then the
tables, then the gates (an entry in each book without a position, at which routers and senders fail closed), then the
books, the requests and what is on its way, and last the positions, which open the gates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import orjson

from postlane.core.events import Control, Intent, Outcome, Seen
from postlane.eventlog.codec import encode, headers
from postlane.eventlog.ports import Outgoing, Received
from postlane.eventlog.tables import control_key
from postlane.eventlog.topics import TopicNames
from postlane.ops.backup.archive import Archive
from postlane.ops.backup.pending import EVENTS, REQUESTS, SEEN, Fate, Manner, Pending, Placed
from postlane.ops.backup.target import TABLES

SOURCE = "postlane/restore"
GATE = "@restore"
_PAUSE_OF_LANE = b"pause/lane/"
_OLD_PARTS = 2  # a record on its way that has spent half of its topic's retention begins it anew


class Item(NamedTuple):
    """One record to write; `offset` is the one it had where that matters, else -1."""

    offset: int
    record: Outgoing


@dataclass(frozen=True, slots=True)
class Job:
    """One partition of one topic (without prefix). `split`: the old offset whose new place is wanted."""

    kind: str
    topic: str
    number: int
    split: int | None = None

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.topic}/{self.number}"


class Jobs:
    """The jobs of one restore and what each writes. `at` is the time of the restore, the same when it is resumed."""

    def __init__(
        self,
        archive: Archive,
        names: TopicNames,
        topics: tuple[str, ...],
        manner: Manner,
        at: datetime,
        flow_days: float,
    ) -> None:
        self._archive = archive
        self._names = names
        self._topics = topics
        self._manner = manner
        self._at = at
        self._old_ms = int(at.timestamp() * 1000 - flow_days * 86_400_000 / _OLD_PARTS)
        self._pending: tuple[int, Pending] | None = None

    def pauses(self, lanes: tuple[str, ...], reason: str) -> list[Outgoing]:
        """An order for every lane; resumed by hand."""
        orders = [Control(action="pause", scope="lane", name=lane, at=self._at, reason=reason) for lane in lanes]
        return [
            Outgoing(
                self._names.control,
                0,
                control_key("pause", "lane", order.name),
                encode(order),
                headers(Control, SOURCE, f"pause/lane/{order.name}@{order.at.isoformat()}", order.at),
            )
            for order in orders
        ]

    def all(self) -> Iterator[Job]:
        """In the order in which they have to be done."""
        archive, wanted = self._archive, self._topics
        for topic in TABLES:
            if topic in wanted:
                yield from (Job("table", topic, n) for n in range(archive.topics[topic]))
        flows = [t for t in wanted if t.startswith(("mail.dispatch.", "mail.delay."))]
        if SEEN in wanted:
            gated = (SEEN, *(f"mail.state.{lane}" for lane in archive.newest.lanes))
            yield from (Job("gate", topic, n) for topic in gated for n in range(archive.topics[topic]))
            yield from (Job("seen", SEEN, n) for n in range(archive.topics[SEEN]))
        for topic in ("mail.events", "mail.dead-letters"):
            if topic in wanted:
                yield from (Job("copy", topic, n) for n in range(archive.topics[topic]))
        if REQUESTS in wanted:
            for number in range(archive.topics[REQUESTS]):
                split = archive.newest.positions.router.get(REQUESTS, {}).get(number, 0)
                yield Job("requests", REQUESTS, number, split)
        if flows:
            for number in range(archive.topics[flows[0]]):
                yield from (Job("flow", topic, number) for topic in sorted(flows))
                yield from (Job("intents", f"mail.state.{lane}", number) for lane in archive.newest.lanes)

    def items(self, job: Job) -> Iterator[Item]:
        """What a job writes; for intents see `intents`."""
        topic, number = f"{self._names.prefix}{job.topic}", job.number
        if job.kind == "gate":
            yield Item(-1, self._gate(job.topic, topic, number))
        elif job.topic in (SEEN, EVENTS) and SEEN in self._topics:
            pending = self._pending_of(number)
            for record in self._archive.records(job.topic, number):
                if not pending.is_late(record):
                    yield Item(record.offset, _again(record, topic))
        elif job.kind == "flow":
            for placed in self._pending_of(number).placed():
                if placed.topic == job.topic:
                    yield Item(placed.record.offset, self._moved(placed.record, topic))
        else:
            for record in self._archive.records(job.topic, number):
                # The pauses of this restore are what holds, whatever was ordered for a lane before.
                if job.topic == "mail.control" and (record.key or b"").startswith(_PAUSE_OF_LANE):
                    continue
                yield Item(record.offset, _again(record, topic))

    def intents(self, job: Job, offsets: dict[str, int]) -> Iterator[Item]:
        """The book entries of what is in doubt in a lane; `offsets` is where its dispatch records are now, by key.

        An intent keeps what it said but its offset, which is a position and is translated, and the life of the instance
        that wrote it, since no flight recorder knows what came after the point.
        """
        lane = job.topic.removeprefix("mail.state.")
        for placed in self._pending_of(job.number).placed():
            if placed.lane != lane or placed.fate not in (Fate.IN_DOUBT, Fate.UNCERTAIN):
                continue
            offset = offsets[placed.key]
            if placed.intent is not None:
                value = orjson.dumps({**placed.intent, "offset": offset, "boot": ""})
            else:
                value = encode(self._intent(placed, offset))
            topic = f"{self._names.prefix}{job.topic}"
            kind = headers(Intent, SOURCE, f"{placed.key}@{self._at.isoformat()}", self._at)
            yield Item(-1, Outgoing(topic, job.number, placed.key.encode(), value, kind))

    def _pending_of(self, number: int) -> Pending:
        """One partition number's at a time is in memory."""
        if self._pending is None or self._pending[0] != number:
            self._pending = None
            self._pending = (number, Pending(self._archive, number, self._manner, self._at))
        return self._pending[1]

    def _intent(self, placed: Placed, offset: int) -> Intent:
        delivery, _, hop = placed.key.rpartition("#")
        return Intent(
            delivery_id=delivery,
            hop=int(hop),
            attempt=placed.attempt,
            offset=offset,
            instance=SOURCE,
            ttl_ms=0,
            at=self._at,
        )

    def _gate(self, topic: str, full: str, number: int) -> Outgoing:
        """An entry that makes a book non-empty; it is about no mail (a delivery id does not begin with @)."""
        if topic == SEEN:
            entry: Seen | Outcome = Seen(digest="00" * 16, at=self._at)
        else:
            entry = Outcome(delivery_id=GATE, hop=0, offset=-1, result="Restored", at=self._at)
        kind = headers(type(entry), SOURCE, f"{topic}/{number}@{self._at.isoformat()}", self._at)
        return Outgoing(full, number, f"{GATE}#0".encode(), encode(entry), kind)

    def _moved(self, record: Received, topic: str) -> Outgoing:
        """A record on its way: as it was, but not so old that retention takes it from under its reader."""
        again = _again(record, topic)
        if record.timestamp_ms < self._old_ms:
            again.timestamp_ms = int(self._at.timestamp() * 1000)
        return again


def _again(record: Received, topic: str) -> Outgoing:
    return Outgoing(topic, record.partition, record.key, record.value, record.headers, max(0, record.timestamp_ms))
