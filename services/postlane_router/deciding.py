"""From records read to transactions: the decisions of postlane.core applied to a poll's worth of records.

No I/O beyond the store's look-up, no clock: the same records, knowledge and time give the same transactions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from postlane.core.delay import STEPS, End, Step, Wait, look, look_at_ms
from postlane.core.events import (
    Conflicted,
    DeadLettered,
    DispatchReady,
    Fact,
    Undecodable,
)
from postlane.core.identity import split_delivery_id
from postlane.core.knowledge import Knowledge
from postlane.core.route import RoutePolicy, content_of, route
from postlane.core.rules import ALL_RULES, Rules
from postlane.eventlog.codec import Unreadable, decode_record, trace_headers, without_trace
from postlane.eventlog.dead_letters import dead_letter
from postlane.eventlog.ports import Outgoing, Partition, Received
from postlane.eventlog.topics import TopicNames
from postlane.telemetry.tracing import OFF, Span, Tracer
from postlane_router import tracing
from postlane_router.batch import Batch
from postlane_router.reading import Reading, fault_of, read_request
from postlane_router.store import DAY_S, Entry, SeenStore
from postlane_router.writing import Writer, encode_content

log = logging.getLogger("postlane.router")

KEY_SHOWN_MAX_BYTES = 64
TRACE_MAX_BYTES = 512  # W3C Trace Context 3.3.1.5


class KeyConflict(Exception):
    """An idempotency key came again with other content."""


class UnknownLane(Exception):
    """A dispatch record names a lane that is not configured any more."""


@dataclass(slots=True)
class Poll:
    """What one poll brought, read but not decided: `known` is what the store says of the keys of `readings`."""

    records: Sequence[Received]
    readings: dict[int, Reading | Unreadable] = field(default_factory=dict)  # by place in `records`
    known: dict[bytes, bytes] = field(default_factory=dict)


class Decider:
    """Decides records in order. `waits` collects where a delay partition has to wait, and until when (unix ms)."""

    def __init__(
        self,
        names: TopicNames,
        policy: RoutePolicy,
        knows: Knowledge,
        store: SeenStore,
        rules: Rules = ALL_RULES,
        tracer: Tracer = OFF,
    ) -> None:
        self._tracer = tracer
        self._span: Span | None = None  # of the record that is being decided, where traces are on
        self._names = names
        self._policy = policy
        self._knows = knows
        self._store = store
        self._rules = rules
        self._writer = Writer(names)
        self._refused: set[tuple[Partition, int]] = set()
        self._steps = {names.delay(step): seconds for step, seconds in STEPS}

    def refuse(self, partition: Partition, offset: int) -> None:
        """What this record becomes is more than the broker takes: it is for the dead letters."""
        self._refused.add((partition, offset))

    def read(self, records: Sequence[Received], pending: Batch | None = None) -> Poll:
        """Decode the requests and look their keys up, all at once; those of a `pending` batch count as known.

        Raises StoreBroken.
        """
        poll = Poll(records)
        requests = self._names.requests
        for place, record in enumerate(records):
            if record.topic == requests:
                poll.readings[place] = _read(record)
        keys = [reading.key for reading in poll.readings.values() if isinstance(reading, Reading)]
        poll.known = {
            key: digest for key, digest in zip(keys, self._store.find(keys), strict=True) if digest is not None
        }
        if pending is not None:
            for entries in pending.entries.values():
                poll.known.update((entry.key, entry.digest) for entry in entries)
        return poll

    def names_unknown_template(self, poll: Poll) -> bool:
        """Whether a request names a template that the tables do not have (yet)."""
        for reading in poll.readings.values():
            template = reading.request.template if isinstance(reading, Reading) else None
            if template is not None and self._knows.template_version(template.id, template.version) is None:
                return True
        return False

    def decide(
        self,
        poll: Poll,
        now: datetime,
        looked: dict[Partition, int],
        waits: dict[Partition, tuple[int, int]],
        max_bytes: int,
    ) -> Iterator[Batch]:
        """The transactions of a poll, each once the one before was committed.

        `looked` is the offset of a delay partition whose time has come however its record is stamped; `waits` gets
        (offset, unix ms) of each delay partition whose next record is not to be looked at yet.
        """
        self._writer.now(now)
        now_ms = int(now.timestamp() * 1000)
        batch = Batch()
        for place, record in enumerate(poll.records):
            reading = poll.readings.get(place)
            if self._tracer.enabled:
                group, read = self._names.router_group, batch.read
                wanted = self._tracer.wants(record.headers, record.key)
                self._span = tracing.begin(self._tracer, group, record, now, reading is None) if wanted else None
            if self._refused and (Partition(record.topic, record.partition), record.offset) in self._refused:
                error = Unreadable("what becomes of it is larger than the broker takes")
                batch.take(record, None if reading is None else "undecodable", self._undecodable(record, error, now))
            elif reading is not None:
                self._request(batch, poll, record, reading, now)
            else:
                partition = Partition(record.topic, record.partition)
                if partition not in waits:
                    self._delayed(batch, record, partition, now, now_ms, looked, waits)
            if self._span is not None and batch.read > read:
                tracing.decided(batch, self._span)
            if batch.written_bytes >= max_bytes:
                yield batch
                batch = Batch()
        if batch.offsets:
            yield batch

    # -------------------------------------------------------------------------------------------------- requests

    def _request(
        self, batch: Batch, poll: Poll, record: Received, reading: Reading | Unreadable, now: datetime
    ) -> None:
        if isinstance(reading, Unreadable):
            batch.take(record, "undecodable", self._undecodable(record, reading, now))
            return
        digest = bytes.fromhex(reading.digest)
        known = poll.known.get(reading.key) if self._rules.dedup else None
        if known == digest:
            batch.take(record, "repeated", [])
            return
        if known is not None:
            batch.take(record, "conflicted", self._conflict(reading, now))
            return
        try:
            written = self._accept(batch, reading, now)
        except Exception as error:  # a bug that one mail meets must not stop the others' mail
            log.exception("a request could not be routed", extra=_place(record) | tracing.ids(self._span))
            batch.take(record, "undecodable", self._undecodable(record, error, now))
            return
        poll.known[reading.key] = digest
        batch.remember(record.partition, Entry(reading.key, digest, int(now.timestamp()) // DAY_S))
        batch.take(record, "accepted", written)

    def _accept(self, batch: Batch, reading: Reading, now: datetime) -> list[Outgoing]:
        record, request, partition = reading.record, reading.request, reading.record.partition
        size_bytes = len(record.value or b"")
        content = content_of(request, reading.people)
        fault, spoken = fault_of(content), tracing.spoken(self._span)
        made = route(request, reading.people, content, fault, size_bytes, self._knows, self._policy, now, spoken)
        trace = self._trace(record)
        key = request.message_id.encode()
        written = [self._writer.seen(partition, reading.key, reading.digest)]
        written += self._events(record, key, made.events, trace)
        if made.deliveries:
            body = encode_content(made.content)
            for delivery in made.deliveries:
                written.append(self._writer.dispatch(partition, key, delivery.ready, body, delivery.step, trace))
                self._count(batch, delivery.ready, delivery.step)
        return written

    def _conflict(self, reading: Reading, now: datetime) -> list[Outgoing]:
        record, request = reading.record, reading.request
        event = Conflicted(message_id=request.message_id, generation=request.generation, at=now)
        error = KeyConflict("the key was accepted before with other content")
        letter = dead_letter(record, self._names.router_group, "key_conflict", error)
        return [letter, *self._events(record, request.message_id.encode(), [event], self._trace(record))]

    # ----------------------------------------------------------------------------------------------- delay stage

    def _delayed(
        self,
        batch: Batch,
        record: Received,
        partition: Partition,
        now: datetime,
        now_ms: int,
        looked: dict[Partition, int],
        waits: dict[Partition, tuple[int, int]],
    ) -> None:
        try:
            ready = decode_record(DispatchReady, record)
            split_delivery_id(ready.delivery_id)
        except (Unreadable, ValueError) as error:
            batch.count_letter("undecodable")
            batch.take(record, None, self._undecodable(record, error, now))
            return
        step_s = self._steps[record.topic]
        if looked.get(partition) != record.offset:
            look_ms = look_at_ms(step_s, record.timestamp_ms, ready.due_at, ready.expires_at)
            if look_ms > now_ms:
                # However a record is stamped, it holds the others back no longer than one step from now.
                waits[partition] = record.offset, min(look_ms, now_ms + step_s * 1000)
                return
        batch.take(record, None, self._looked_at(batch, record, ready, now))

    def _looked_at(self, batch: Batch, record: Received, ready: DispatchReady, now: datetime) -> list[Outgoing]:
        trace = self._trace(record)
        onward = None if self._span is None else trace
        key = ready.message_id.encode()
        decision = look(ready, self._knows, now)
        if isinstance(decision, End):
            return self._events(record, key, [decision.event], trace)
        if isinstance(decision, Wait):
            self._count(batch, ready, decision.step)
            written = self._events(record, key, [decision.event] if decision.event else [], trace)
            if decision.ready is not None:
                content = encode_content(decision.ready.content)
                changed = self._writer.dispatch(record.partition, key, decision.ready, content, decision.step, trace)
                return [changed, *written]
            return [_onward(record, self._names.delay(decision.step.name), onward), *written]
        if ready.lane not in self._policy.lanes:
            batch.count_letter("unknown_lane")
            return self._no_lane(record, ready, now)
        self._count(batch, ready, None)
        return [
            _onward(record, self._writer.lane(ready.lane), onward),
            *self._events(record, key, [decision.event] if decision.event else [], trace),
        ]

    def _no_lane(self, record: Received, ready: DispatchReady, now: datetime) -> list[Outgoing]:
        error = UnknownLane(f"the lane {ready.lane!r} is not configured any more")
        group = self._names.router_group
        letter = dead_letter(record, group, "unknown_lane", error, delivery_id=ready.delivery_id)
        event = DeadLettered(
            message_id=ready.message_id,
            delivery_id=ready.delivery_id,
            recipient=ready.recipient,
            generation=ready.generation,
            attempt=ready.attempt,
            hop=ready.hop,
            possibly_delivered=ready.doubts > 0,
            at=now,
            reason="unknown_lane",
        )
        return [letter, *self._events(record, ready.message_id.encode(), [event], self._trace(record))]

    # ------------------------------------------------------------------------------------------------------ both

    def _undecodable(self, record: Received, error: Exception, now: datetime) -> list[Outgoing]:
        reason = error.reason if isinstance(error, Unreadable) else type(error).__name__
        event = Undecodable(
            message_id=_shown(record.key),
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            reason=reason,
            at=now,
        )
        letter = dead_letter(record, self._names.router_group, "undecodable", Unreadable(reason))
        key = event.message_id.encode() if event.message_id else None
        return [letter, *self._events(record, key, [event], self._trace(record))]

    def _events(
        self, record: Received, key: bytes | None, events: Sequence[Fact], trace: Sequence[tuple[str, bytes]]
    ) -> list[Outgoing]:
        source = f"{record.topic}/{record.partition}/{record.offset}/"
        make, partition = self._writer.event, record.partition
        return [make(partition, key, event, f"{source}{n}".encode(), trace) for n, event in enumerate(events)]

    def _trace(self, record: Received) -> list[tuple[str, bytes]]:
        """The W3C trace context to hand on: the span's, else the record's unless it is longer than one can be, for it
        goes into every record of a mail."""
        if self._span is not None:
            return self._tracer.headers(self._span)
        return [(k, v) for k, v in trace_headers(record.headers) if v is not None and len(v) <= TRACE_MAX_BYTES]

    def _count(self, batch: Batch, ready: DispatchReady, step: Step | None) -> None:
        if self._span is not None:
            tracing.dispatched(self._tracer, self._span, ready, step)
        if step is None:
            batch.count_lane(ready.lane)
        else:
            batch.count_step(step.name)


def _read(record: Received) -> Reading | Unreadable:
    try:
        return read_request(record)
    except Unreadable as unreadable:
        return unreadable
    except Exception as error:  # a bug that one mail meets must not stop the others' mail
        log.exception("a request could not be read", extra=_place(record))
        return Unreadable(f"it could not be read: {type(error).__name__}")


def _onward(record: Received, topic: str, trace: Sequence[tuple[str, bytes]] | None) -> Outgoing:
    """The record as it is, in another topic: whatever a newer version wrote into it stays. `trace` takes the place of
    its trace context, where this stay has a span."""
    headers = record.headers if trace is None else [*without_trace(record.headers), *trace]
    return Outgoing(topic, record.partition, record.key, record.value, headers)


def _shown(key: bytes | None) -> str | None:
    """A key as an event may carry it: only when it looks like a message id."""
    if key is None or len(key) > KEY_SHOWN_MAX_BYTES or not key.isascii():
        return None
    text = key.decode()
    return text if text.replace("-", "").isalnum() else None


def _place(record: Received) -> dict[str, object]:
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset}
