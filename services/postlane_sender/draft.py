"""What a tick says: the records of one transaction, and the positions that go with them (steps 1 to 4 of `tick`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from postlane.core import delay, settle
from postlane.core.books import Book, Entry, Stage
from postlane.core.events import Attempted, DispatchReady, Fact, Undecodable
from postlane.core.settle import Decision
from postlane.eventlog import codec
from postlane.eventlog.dead_letters import dead_letter
from postlane.eventlog.ports import Committed, Headers, Membership, Outgoing, Partition, Received
from postlane_sender import tracing, wire
from postlane_sender.admission import Admission
from postlane_sender.lane import LaneState
from postlane_sender.takeover import metadata

SOURCE = "postlane/sender"


@dataclass(slots=True)
class Draft:
    """One tick before it is committed. `noted`: by partition, the entries that it writes state records for."""

    membership: Membership
    records: list[Outgoing] = field(default_factory=list)
    noted: dict[int, list[Entry]] = field(default_factory=dict)
    books: dict[int, Book] = field(default_factory=dict)
    offsets: dict[Partition, Committed] = field(default_factory=dict)
    ends_before: dict[int, int] = field(default_factory=dict)  # our end of each state partition before this tick
    later: list[Outgoing] = field(default_factory=list)  # a test's mistake: next hops outside the transaction


class Drafter:
    """Drafts one tick after the other."""

    def __init__(self, lane: LaneState, admission: Admission) -> None:
        self._lane = lane
        self._admission = admission
        self._state_topic = lane.state
        self._events_topic = lane.names.events

    def draft(self) -> Draft | None:
        """Steps 1 to 4; None when there is nothing to say."""
        lane = self._lane
        membership = lane.membership
        if membership is None or not lane.gate_open:
            return None
        now = lane.clock.now()
        draft = Draft(membership)
        stamp = _Stamp(now)
        starting: list[Entry] = []
        for entry in self._admission.admit(lane.policy.tick_records_max):
            if entry.stage is Stage.ENDED:
                lane.ended.append(entry)
            else:
                starting.append(entry)
        ended, lane.ended = lane.ended, []
        for entry in ended:
            if entry.partition in lane.books or not lane.rules.drop_not_owned:
                self._say_outcome(draft, entry, now, stamp)
        for entry in starting:
            self._say_intent(draft, entry, now, stamp)
        self._say_positions(draft)
        return draft if draft.records or draft.offsets else None

    # ----------------------------------------------------------------------------------------------- what is said

    def _note(self, draft: Draft, entry: Entry, stage: Stage) -> None:
        noted = draft.noted.get(entry.partition)
        book = self._lane.books[entry.partition]
        if noted is None:
            noted = draft.noted[entry.partition] = []
            draft.ends_before[entry.partition] = book.state_end
        noted.append(entry)
        book.note(entry, stage)

    def _say_intent(self, draft: Draft, entry: Entry, now: datetime, stamp: _Stamp) -> None:
        lane, mail = self._lane, entry.mail
        assert mail is not None
        self._note(draft, entry, Stage.STARTING)
        if lane.tracer.enabled:
            tracing.begin(lane, entry, mail)
        key = mail.message_id.encode()
        draft.records.append(self._state(entry, wire.intent(lane, entry, mail, now)))
        draft.records.append(self._event(entry, Attempted, wire.attempted(entry, mail, now), key, stamp))
        lane.courier.start(entry)
        self._admission.begun(entry)

    def _say_outcome(self, draft: Draft, entry: Entry, now: datetime, stamp: _Stamp) -> None:
        mail, decision = entry.mail, entry.decision
        if mail is None:
            self._say_poison(draft, entry, now, stamp)
            return
        assert decision is not None
        key = mail.message_id.encode()
        following = None
        if decision.next is not None:
            following = self._next(entry, decision.next, key, now, stamp)
            if following is None:
                decision = entry.decision = settle.unsendable(mail, "cannot_be_written_again", now)
        self._note(draft, entry, Stage.SETTLING)
        event = decision.event
        result = type(event).__name__
        outcome = wire.outcome(mail.delivery_id, mail.hop, entry.offset, result, now)
        draft.records.append(self._state(entry, outcome))
        draft.records.append(self._event(entry, type(event), codec.encode(event), key, stamp))
        if following is not None:
            (draft.records if self._lane.rules.retry_in_transaction else draft.later).append(following)
        if decision.dead_letter is not None:
            draft.records.append(self._dead(entry, mail, decision))

    def _say_poison(self, draft: Draft, entry: Entry, now: datetime, stamp: _Stamp) -> None:
        record = entry.raw
        assert isinstance(record, Received)
        self._note(draft, entry, Stage.SETTLING)
        reason = entry.trouble
        event = Undecodable(
            topic=record.topic, partition=record.partition, offset=record.offset, reason=reason[:200], at=now
        )
        outcome = wire.outcome(f"@{record.offset}", 0, record.offset, "Undecodable", now)
        draft.records.append(self._state(entry, outcome))
        draft.records.append(self._event(entry, Undecodable, codec.encode(event), record.key, stamp))
        draft.records.append(dead_letter(record, self._lane.group, "undecodable", codec.Unreadable(reason)))

    def _say_positions(self, draft: Draft) -> None:
        lane = self._lane
        for number, book in lane.books.items():
            if number in draft.noted or book.stale:
                offset, floor = book.position()
                draft.books[number] = book
                partition = Partition(lane.dispatch, number)
                if partition in draft.membership.partitions and self._fences(draft, number):
                    draft.offsets[partition] = Committed(offset, metadata(floor))

    def _fences(self, draft: Draft, number: int) -> bool:
        """Offsets go with every tick, also one of nothing but intents: they are what the broker checks us by."""
        if self._lane.rules.fence_every_tick:
            return True
        return any(entry.stage is Stage.SETTLING for entry in draft.noted.get(number, ()))

    # ------------------------------------------------------------------------------------------------------ records

    def _state(self, entry: Entry, value: bytes) -> Outgoing:
        return Outgoing(self._state_topic, entry.partition, entry.key.encode(), value)

    def _event(self, entry: Entry, kind: type[Fact], value: bytes, key: bytes | None, stamp: _Stamp) -> Outgoing:
        ident = f"{self._lane.name}/{entry.partition}/{entry.offset}/{kind.__name__}"
        return Outgoing(self._events_topic, entry.partition, key, value, stamp.headers(kind, ident, _trace(entry)))

    def _next(
        self, entry: Entry, following: DispatchReady, key: bytes, now: datetime, stamp: _Stamp
    ) -> Outgoing | None:
        """The next hop; None where what was read cannot be written (numbers, depth or size beyond what JSON takes)."""
        try:
            value = codec.encode(following)
        except (TypeError, ValueError, RecursionError):
            return None
        if len(value) > codec.VALUE_MAX_BYTES:
            return None
        step = delay.plan(following.due_at, now) or delay.STEPS[0]
        ident = f"{following.delivery_id}/{following.hop}"
        headers = stamp.headers(DispatchReady, ident, _trace(entry))
        return Outgoing(self._lane.names.delay(step.name), entry.partition, key, value, headers)

    def _dead(self, entry: Entry, mail: DispatchReady, decision: Decision) -> Outgoing:
        event = decision.event
        original = entry.raw
        assert isinstance(original, Received)
        return dead_letter(
            original,
            self._lane.group,
            decision.dead_letter or "",
            None,
            attempts=mail.attempt,
            reply=getattr(event, "reply", None),
            provider=getattr(event, "provider", None),
            delivery_id=mail.delivery_id,
        )


def _trace(entry: Entry) -> Headers:
    trace: Headers | None = entry.trace
    if trace is not None:
        return trace
    return codec.trace_headers(entry.raw.headers) if isinstance(entry.raw, Received) else ()


class _Stamp:
    """The CloudEvents headers of one tick: what all its records share is made once."""

    def __init__(self, now: datetime) -> None:
        self._time = now
        self._fixed: dict[type[Fact], list[tuple[str, bytes]]] = {}

    def headers(self, model: type[Fact], ident: str, trace: Sequence[tuple[str, bytes]]) -> Headers:
        fixed = self._fixed.get(model)
        if fixed is None:
            made = codec.headers(model, SOURCE, "", self._time)
            fixed = self._fixed[model] = [pair for pair in made if pair[0] != "ce_id"]
        return [*fixed, ("ce_id", ident.encode()), *trace]
