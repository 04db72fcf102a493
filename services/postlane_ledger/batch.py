"""A batch of records, decoded, and what folding it changes: values only, no database.

Decoding happens before the transaction begins and never fails: what cannot be read is kept with the reason. Folding
needs the rows that the batch touches, as they stand in the database under the transaction's lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import orjson

from postlane.core.events import AnyEvent, DeliveryEvent
from postlane.core.project import (
    TEXT_MAX_CHARS,
    DeliveryRow,
    MessageRow,
    fold_delivery,
    fold_message,
    misfit,
    text,
    unix_ms,
)
from postlane.eventlog.codec import Unreadable, check_type, decode_event, header
from postlane.eventlog.ports import Received
from postlane.ops.books_schema import MAILS

KEPT_MAX_BYTES = 4096  # of an unreadable record; the whole stays in the log


class Entry(NamedTuple):
    """An event with its place in the log."""

    partition: int
    offset: int
    event: AnyEvent
    body: str


class Tally(NamedTuple):
    """The key of one count of deliveries; "" is none."""

    partition: int
    lane: str
    tenant: str
    campaign: str
    provider: str
    state: str


@dataclass(slots=True)
class Batch:
    """What was read: per partition in order, with [first, next) offsets of each partition."""

    records: Sequence[Received]
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    unreadable: list[tuple[Received, str]] = field(default_factory=list)

    @property
    def message_ids(self) -> set[str]:
        return {ident for entry in self.entries if (ident := entry.event.message_id) is not None}

    @property
    def delivery_ids(self) -> set[str]:
        return {entry.event.delivery_id for entry in self.entries if isinstance(entry.event, DeliveryEvent)}

    def halves(self) -> tuple[Batch, Batch]:
        """Two batches that follow one another in every partition; used to find a record that a database refuses."""
        middle = len(self.records) // 2
        first, second = self.records[:middle], self.records[middle:]
        refused = {(record.partition, record.offset): reason for record, reason in self.unreadable}
        return prepare(first, refused), prepare(second, refused)


@dataclass(slots=True)
class Changes:
    """The rows to write. Row sequences are in the order of the tables' columns where they are tuples."""

    messages: list[MessageRow]
    deliveries: list[DeliveryRow]
    events: list[tuple[Any, ...]]
    tallies: dict[Tally, int]
    unreadable: list[tuple[Any, ...]]
    types: Counter[str]


def prepare(records: Sequence[Received], refused: Mapping[tuple[int, int], str] | None = None) -> Batch:
    """Decode a batch. `refused` names records (partition, offset) that are unreadable for a reason found later."""
    batch = Batch(records)
    refused = refused or {}
    for partition, run in groupby(records, key=lambda record: record.partition):
        taken = list(run)
        first = batch.spans[partition][0] if partition in batch.spans else taken[0].offset
        batch.spans[partition] = (first, taken[-1].offset + 1)
    for record in records:
        reason = refused.get((record.partition, record.offset))
        if reason is None:
            try:
                batch.entries.append(_entry(record))
                continue
            except Unreadable as unreadable:
                reason = unreadable.reason
        batch.unreadable.append((record, reason))
    return batch


def _entry(record: Received) -> Entry:
    event = decode_event(record.value)
    kind = header(record.headers, "ce_type")
    if kind is not None:
        check_type(type(event), kind)
    reason = misfit(event)
    if reason is not None:
        raise Unreadable(reason)
    return Entry(record.partition, record.offset, event, _body(event))


def _body(event: AnyEvent) -> str:
    """The compact JSON of the timeline: what the other columns do not say already."""
    said = {name: value for name, value in event.__dict__.items() if value is not None and name not in _COLUMNS}
    try:
        return orjson.dumps(said, default=vars, option=orjson.OPT_UTC_Z).decode()
    except (TypeError, ValueError):  # an integer beyond 64 bits
        raise Unreadable("a value that no JSON of ours can hold") from None


_COLUMNS = frozenset({"message_id", "delivery_id", "type", "at"})


def fold(batch: Batch, messages: Mapping[str, MessageRow], deliveries: Mapping[str, DeliveryRow]) -> Changes:
    """What the batch makes of the rows as they stand; both mappings hold all rows that it touches and that exist."""
    mails: dict[str, MessageRow] = dict(messages)
    rows: dict[str, DeliveryRow] = dict(deliveries)
    homes: dict[str, int] = {}
    timeline: list[tuple[Any, ...]] = []
    types: Counter[str] = Counter()
    for partition, offset, event, body in batch.entries:
        ident, delivery = event.message_id, None
        if isinstance(event, DeliveryEvent):
            delivery = event.delivery_id
            known = rows.get(delivery)
            row = fold_delivery(known, event, None if known is not None else mails.get(event.message_id))
            if row is not None and row is not known:
                rows[delivery] = row
                homes[delivery] = partition
        elif ident is not None:
            mail = fold_message(mails.get(ident), event)
            if mail is not None:
                mails[ident] = mail
                homes[ident] = partition
        timeline.append((partition, offset, ident, delivery, event.type, unix_ms(event.at), body))
        types[event.type] += 1
    changed_mails = [mail for ident, mail in mails.items() if mail is not messages.get(ident)]
    changed_rows = [row for ident, row in rows.items() if row is not deliveries.get(ident)]
    return Changes(
        changed_mails,
        changed_rows,
        timeline,
        _differences(changed_mails, changed_rows, messages, deliveries, homes),
        [_kept(record, reason) for record, reason in batch.unreadable],
        types,
    )


def _differences(
    mails: Collection[MessageRow],
    rows: Collection[DeliveryRow],
    mails_before: Mapping[str, MessageRow],
    rows_before: Mapping[str, DeliveryRow],
    homes: Mapping[str, int],
) -> dict[Tally, int]:
    counts: Counter[Tally] = Counter()
    for mail in mails:
        if mail["message_id"] not in mails_before:
            home = homes[mail["message_id"]]
            counts[Tally(home, mail["lane"], mail["tenant"], mail["campaign"] or "", "", MAILS)] += 1
    for row in rows:
        home = homes[row["delivery_id"]]
        before = rows_before.get(row["delivery_id"])
        if before is not None:
            counts[_tally(home, before)] -= 1
        counts[_tally(home, row)] += 1
    return {tally: n for tally, n in counts.items() if n}


def _tally(home: int, row: DeliveryRow) -> Tally:
    return Tally(home, row["lane"], row["tenant"], row["campaign"] or "", row["provider"] or "", row["state"])


def _kept(record: Received, reason: str) -> tuple[Any, ...]:
    key = None if record.key is None else record.key[:KEPT_MAX_BYTES]
    value = None if record.value is None else record.value[:KEPT_MAX_BYTES]
    return (record.partition, record.offset, record.timestamp_ms, text(reason, TEXT_MAX_CHARS), key, value)
