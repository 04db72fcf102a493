"""What was on its way at the point of a backup, and what the books say of it; one partition number at a time.

A delivery is pending when a dispatch or delay record of it was not passed yet and no book settles it:
- the state topic: an outcome under `delivery_id#hop`, or any entry of a later hop;
- a later hop that is itself in the backup, or the same hop one stage further (its book was copied a moment too early);
- an event that ended it, written while the cut was taken.
What the router made of requests that it had not passed at the point is from after the point: their keys are forgotten,
their deliveries are not pending, and the router makes it again.
What has an intent and no outcome is in doubt, as after a crash. What has none was not begun at the point; whether it
was sent after the point nobody can say, unless an operator can (`Manner.FRESH`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import orjson

from postlane.core.events import MailRequested
from postlane.core.route import dedup_key, recipients
from postlane.eventlog.codec import Unreadable, decode
from postlane.eventlog.ports import Received
from postlane.eventlog.topics import DELAY_STEPS
from postlane.ops.backup.archive import Archive

ENDS = frozenset({"Delivered", "Bounced", "Cancelled", "Expired", "Suppressed", "Rejected", "DeadLettered"})
SEEN, EVENTS, REQUESTS = "mail.seen", "mail.events", "mail.requests"
ID_CHARS = 36  # of a message id, which a delivery id begins with
SHORTEST = f"mail.delay.{DELAY_STEPS[0][0]}"


class Manner(StrEnum):
    """What may have become of pending mails between the point and the loss."""

    UNCERTAIN = "uncertain"  # they may have been sent: the lane's policy for doubts decides, and the books say so
    FRESH = "fresh"  # nothing was sent after the point: the old senders had been stopped before the backup


class Fate(StrEnum):
    """Why a pending delivery is put where it is put."""

    SCHEDULED = "scheduled"  # not due yet: waits on in its delay topic
    IN_DOUBT = "in doubt"  # an intent without outcome, at the point
    UNCERTAIN = "uncertain"  # due; may have been sent after the point
    FRESH = "fresh"  # due; was not sent
    UNREADABLE = "unreadable"  # for the dead letters, by whoever reads it


@dataclass(frozen=True, slots=True)
class Placed:
    """One pending delivery: its record as it was, where it goes (topic without prefix), its intent if it had one."""

    record: Received
    topic: str
    fate: Fate
    lane: str
    key: str
    attempt: int = 1
    intent: dict[str, Any] | None = None


@dataclass(slots=True)
class _Books:
    """What the state topics and the last events said."""

    outcomes: set[str] = field(default_factory=set)
    intents: dict[str, dict[str, Any]] = field(default_factory=dict)
    latest_hop: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)  # delivery -> hop of the event that ended it

    def settle(self, delivery: str, hop: int) -> bool:
        return (
            f"{delivery}#{hop}" in self.outcomes
            or self.latest_hop.get(delivery, -1) > hop
            or self.ended.get(delivery, -1) >= hop
        )


@dataclass(frozen=True, slots=True)
class _Mail:
    """What is needed of a dispatch record; `delivery` None: it could not be read."""

    delivery: str | None
    hop: int = 0
    lane: str = ""
    attempt: int = 1
    due_at: datetime | None = None


class Pending:
    """The pending deliveries of one partition number, and the keys that have to be forgotten there."""

    def __init__(self, archive: Archive, number: int, manner: Manner, now: datetime) -> None:
        self._archive = archive
        self._number = number
        self._manner = manner
        self._now = now
        self._positions = archive.newest.positions
        self.late = self._read_late()
        self._books = self._read_books()
        self._best: dict[str, tuple[int, int, str, int]] = {}  # delivery -> (hop, stage, topic, offset)
        for topic in self._flows():
            for record, mail in self._read_flow(topic):
                if mail.delivery is not None:
                    found = (mail.hop, int(topic.startswith("mail.dispatch.")), topic, record.offset)
                    self._best[mail.delivery] = max(found, self._best.get(mail.delivery, found))

    def placed(self) -> Iterator[Placed]:
        """Every pending delivery, once."""
        for topic in self._flows():
            for record, mail in self._read_flow(topic):
                placed = self._place(topic, record, mail)
                if placed is not None:
                    yield placed

    def position(self, topic: str) -> int:
        """O of the router in a topic, or of the sender in a dispatch topic."""
        lane = topic.removeprefix("mail.dispatch.")
        if lane != topic:
            return self._positions.senders.get(lane, {}).get(self._number, (0, 0))[0]
        return self._positions.router.get(topic, {}).get(self._number, 0)

    def unrouted(self) -> int:
        """How many requests the router had not passed."""
        return sum(1 for _ in self._archive.records(REQUESTS, self._number, self.position(REQUESTS)))

    def is_late(self, record: Received) -> bool:
        """Whether an entry of `mail.seen` or an event is about a request that was routed after the point."""
        if not self.late:
            return False
        if record.topic == SEEN:
            return record.offset >= self._mark(SEEN) and (record.key or b"").decode("utf-8", "replace") in self.late
        if record.offset < self._mark(EVENTS):
            return False
        event = _json(record.value)
        own = event.get("delivery_id") in self.late
        return own or (not event.get("generation") and event.get("message_id") in self.late)

    # ------------------------------------------------------------------------------------------------------ details

    def _mark(self, topic: str) -> int:
        return self._positions.marks.get(topic, {}).get(self._number, 0)

    def _read_late(self) -> set[str]:
        """The keys (message id; of a replay, delivery id) of what was routed after the router's positions."""
        seen = self._archive.records(SEEN, self._number, self._mark(SEEN))
        candidates = {record.key for record in seen if record.key is not None}
        late = set()
        for record in self._archive.records(REQUESTS, self._number, self.position(REQUESTS)) if candidates else ():
            try:
                request = decode(MailRequested, record.value)
                key = dedup_key(request, recipients(request))
            except (Unreadable, ValueError, IndexError):
                continue  # for the dead letters
            if key.encode() in candidates:
                late.add(key)
        return late

    def _flows(self) -> list[str]:
        return sorted(t for t in self._archive.topics if t.startswith(("mail.dispatch.", "mail.delay.")))

    def _read_flow(self, topic: str) -> Iterator[tuple[Received, _Mail]]:
        for record in self._archive.records(topic, self._number, self.position(topic)):
            mail = _mail(record)
            if self.late and mail.delivery is not None and self._is_of_late(mail.delivery):
                continue
            yield record, mail

    def _is_of_late(self, delivery: str) -> bool:
        return delivery in self.late or (delivery.endswith(".0") and delivery[:ID_CHARS] in self.late)

    def _read_books(self) -> _Books:
        books = _Books()
        for lane in self._archive.newest.lanes:
            floor = self._positions.senders.get(lane, {}).get(self._number, (0, 0))[1]
            for record in self._archive.records(f"mail.state.{lane}", self._number, floor):
                entry = _json(record.value)
                delivery, hop = entry.get("delivery_id"), entry.get("hop")
                if not isinstance(delivery, str) or not isinstance(hop, int):
                    continue
                if entry.get("kind") == "intent":
                    books.intents[f"{delivery}#{hop}"] = entry
                else:
                    books.outcomes.add(f"{delivery}#{hop}")
                books.latest_hop[delivery] = max(hop, books.latest_hop.get(delivery, -1))
        for record in self._archive.records(EVENTS, self._number, self._mark(EVENTS)):
            event = _json(record.value)
            delivery, hop = event.get("delivery_id"), event.get("hop", 0)
            over = event.get("type") in ENDS or (event.get("type") == "Uncertain" and event.get("next_at") is None)
            if over and isinstance(delivery, str) and isinstance(hop, int):
                books.ended[delivery] = max(hop, books.ended.get(delivery, -1))
        return books

    def _place(self, topic: str, record: Received, mail: _Mail) -> Placed | None:
        delivery, key = mail.delivery, f"{mail.delivery}#{mail.hop}"
        if delivery is None:
            if f"@{record.offset}#0" in self._books.outcomes:
                return None
            return Placed(record, topic, Fate.UNREADABLE, mail.lane, key)
        if self._best[delivery][2:] != (topic, record.offset) or self._books.settle(delivery, mail.hop):
            return None
        intent = self._books.intents.get(key)
        waits = topic.startswith("mail.delay.")
        if waits and mail.due_at is not None and mail.due_at > self._now:
            return Placed(record, topic, Fate.SCHEDULED, mail.lane, key)
        lane_topic = f"mail.dispatch.{mail.lane}"
        if mail.lane not in self._archive.newest.lanes:
            return Placed(record, topic, Fate.UNREADABLE, mail.lane, key)
        if intent is not None:
            return Placed(record, lane_topic, Fate.IN_DOUBT, mail.lane, key, mail.attempt, intent)
        if self._manner is Manner.UNCERTAIN:
            return Placed(record, lane_topic, Fate.UNCERTAIN, mail.lane, key, mail.attempt)
        # Through the delay stage, not straight to the sender: the router looks at the suppressions there.
        return Placed(record, topic if waits else SHORTEST, Fate.FRESH, mail.lane, key)


def _mail(record: Received) -> _Mail:
    body = _json(record.value)
    delivery, hop, lane, attempt = (body.get(name) for name in ("delivery_id", "hop", "lane", "attempt"))
    hop, attempt = 0 if hop is None else hop, 1 if attempt is None else attempt
    if not (isinstance(delivery, str) and isinstance(hop, int) and isinstance(lane, str) and isinstance(attempt, int)):
        return _Mail(None)
    due = body.get("due_at")
    try:
        return _Mail(delivery, hop, lane, attempt, datetime.fromisoformat(due) if isinstance(due, str) else None)
    except ValueError:
        return _Mail(None)


def _json(value: bytes | None) -> dict[str, Any]:
    try:
        body = orjson.loads(value or b"{}")
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}
