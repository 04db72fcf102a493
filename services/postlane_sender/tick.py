"""The tick: one Kafka transaction that writes down what has come about and what is about to be tried.

1. Snapshot: the membership as it was captured at the assignment, unchanged for the whole tick.
2. Outcomes: for every delivery that ended its record in `mail.state`, its event, and its next hop or dead letter.
3. Intents: for deliveries about to be sent, no more than the courier has places for.
4. Positions: for every partition that 2 and 3 wrote for, and every one whose O moved: O, with S in the metadata.
5. Commit. Committed: bodies may be written. Aborted: everything is as before. Unknown: rebuild, re-read, reconcile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from postlane.core import delay
from postlane.core.books import Book, Entry, Found, History, Stage
from postlane.core.events import Attempted, DispatchReady, Fact, Undecodable
from postlane.core.settle import Decision
from postlane.eventlog import codec
from postlane.eventlog.dead_letters import dead_letter
from postlane.eventlog.errors import Aborted, CommitUnknown, Retriable
from postlane.eventlog.ports import (
    Committed,
    Headers,
    Membership,
    Outgoing,
    Partition,
    Received,
    Transaction,
    Transactor,
)
from postlane_sender import wire
from postlane_sender.admission import Admission
from postlane_sender.lane import LaneState
from postlane_sender.takeover import BooksDamaged, metadata, read_state

REBUILD_PAUSE_S = 0.25
REREAD_DEADLINE_S = 30.0
ABORT_PAUSE_FIRST_S = 0.02
ABORT_PAUSE_MAX_S = 1.0
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


class Ticker:
    """Drafts ticks, commits them one at a time, and brings their result into the books."""

    def __init__(self, lane: LaneState, transactor: Transactor, admission: Admission) -> None:
        self._lane = lane
        self._transactor = transactor
        self._admission = admission
        self._state_topic = lane.state
        self._events_topic = lane.names.events
        self._busy = asyncio.Lock()
        self._aborts = 0
        if lane.failpoints.point == "in_commit":
            transactor.before_commit = lambda: lane.failpoints.hit("in_commit")  # type: ignore[attr-defined]

    async def tick(self) -> bool:
        """One tick, unless there is nothing to say. True when something was committed. Raises Fenced, Fatal."""
        async with self._busy:
            draft = self._draft()
            if draft is None:
                return False
            return await self._commit(draft)

    async def idle(self) -> None:
        """Returns when no tick is in flight."""
        async with self._busy:
            pass

    # ------------------------------------------------------------------------------------------------- steps 1 to 4

    def _draft(self) -> Draft | None:
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
        self._note(draft, entry, Stage.SETTLING)
        event = decision.event
        result = type(event).__name__
        key = mail.message_id.encode()
        outcome = wire.outcome(mail.delivery_id, mail.hop, entry.offset, result, now)
        draft.records.append(self._state(entry, outcome))
        draft.records.append(self._event(entry, type(event), codec.encode(event), key, stamp))
        if decision.next is not None:
            draft.records.append(self._next(entry, decision.next, key, now, stamp))
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
                if partition in draft.membership.partitions:
                    draft.offsets[partition] = Committed(offset, metadata(floor))

    # ------------------------------------------------------------------------------------------------------ records

    def _state(self, entry: Entry, value: bytes) -> Outgoing:
        return Outgoing(self._state_topic, entry.partition, entry.key.encode(), value)

    def _event(self, entry: Entry, kind: type[Fact], value: bytes, key: bytes | None, stamp: _Stamp) -> Outgoing:
        ident = f"{self._lane.name}/{entry.partition}/{entry.offset}/{kind.__name__}"
        return Outgoing(self._events_topic, entry.partition, key, value, stamp.headers(kind, ident, _trace(entry)))

    def _next(self, entry: Entry, following: DispatchReady, key: bytes, now: datetime, stamp: _Stamp) -> Outgoing:
        step = delay.plan(following.due_at, now) or delay.STEPS[0]
        return Outgoing(
            self._lane.names.delay(step.name),
            entry.partition,
            key,
            codec.encode(following),
            stamp.headers(DispatchReady, f"{following.delivery_id}/{following.hop}", _trace(entry)),
        )

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

    # --------------------------------------------------------------------------------------------------------- step 5

    async def _commit(self, draft: Draft) -> bool:
        lane = self._lane
        lane.failpoints.hit("before_intent")
        started = lane.clock.monotonic()
        transaction = Transaction(draft.records, draft.offsets, draft.membership)
        try:
            ends = await self._transactor.commit(transaction)
        except Aborted:
            self._roll_back(draft, draft.books)
            lane.metrics.fenced_total.labels(lane.name).inc()
            self._aborts += 1
            await asyncio.sleep(min(ABORT_PAUSE_FIRST_S * 2**self._aborts, ABORT_PAUSE_MAX_S))
            return False
        except CommitUnknown:
            await self._find_out(draft)
            return True
        self._aborts = 0
        lane.failpoints.hit("after_commit")
        lane.metrics.tick_seconds.labels(lane.name).observe(lane.clock.monotonic() - started)
        lane.metrics.tick_records.labels(lane.name).observe(len(draft.records))
        state_ends = {p.number: end for p, end in ends.items() if p.topic == lane.state}
        self._apply(draft, state_ends, draft.books)
        return True

    def _apply(self, draft: Draft, ends: dict[int, int], numbers: Collection[int]) -> None:
        """The tick was committed for these partitions."""
        lane = self._lane
        for number in numbers:
            book = draft.books[number]
            if lane.books.get(number) is not book:
                continue  # lost meanwhile: what it held is another's
            entries = draft.noted.get(number, [])
            book.committed(entries, ends.get(number))
            for entry in entries:
                if entry.stage is Stage.STARTED:
                    lane.courier.proceed(entry)
                else:
                    self._let_go(entry)
        lane.progress.set()

    def _let_go(self, entry: Entry) -> None:
        lane = self._lane
        if entry.provider:
            self._admission.over(entry)
        lane.recorder.free(entry)
        if entry.decision is not None:
            lane.metrics.outcomes_total.labels(lane.name, type(entry.decision.event).__name__).inc()
        entry.body = None
        entry.raw = None

    def _roll_back(self, draft: Draft, numbers: Collection[int]) -> None:
        """Nothing of the tick happened for these partitions: as before, and the envelopes are taken back."""
        lane = self._lane
        again: list[Entry] = []
        for number in numbers:
            book = draft.books[number]
            if lane.books.get(number) is not book:
                continue
            entries = draft.noted.get(number, [])
            book.rolled_back(entries)
            for entry in entries:
                if entry.stage is Stage.FRESH:
                    lane.courier.withdraw(entry)
                    self._admission.over(entry)
                    again.append(entry)
                else:
                    lane.ended.append(entry)
        lane.fresh.extendleft(sorted(again, key=lambda entry: entry.offset, reverse=True))
        lane.work.set()
        lane.progress.set()

    # ------------------------------------------------------------------------------------- a commit of unknown outcome

    async def _find_out(self, draft: Draft) -> None:
        """Rebuild the producer (which settles what it left open), read what really happened, reconcile."""
        lane = self._lane
        lane.gate_open = False
        lane.problem = "the outcome of a commit is unknown; asking the log"
        lane.metrics.rebuilds_total.labels(lane.name, "commit_unknown").inc()
        try:
            happened = await self._reread(draft) if lane.rules.reread_unknown_commit else await self._forget()
        finally:
            lane.gate_open = True
            lane.problem = None
        numbers = [partition.number for partition in draft.offsets]
        self._apply(draft, happened, [n for n in numbers if n in happened])
        self._roll_back(draft, [n for n in numbers if n not in happened])

    async def _reread(self, draft: Draft) -> dict[int, int]:
        while True:
            await self._rebuild()
            try:
                return await self._what_happened(draft)
            except Retriable:
                await asyncio.sleep(REBUILD_PAUSE_S)

    async def _forget(self) -> dict[int, int]:
        await self._rebuild()
        return {}

    async def _rebuild(self) -> None:
        while True:
            try:
                await self._transactor.rebuild()
                return
            except Retriable:
                await asyncio.sleep(REBUILD_PAUSE_S)

    async def _what_happened(self, draft: Draft) -> dict[int, int]:
        """For each partition of which a record of the draft is in the state topic: the end that was read to."""
        lane = self._lane
        found: dict[int, int] = {}
        for number, entries in draft.noted.items():
            if lane.books.get(number) is not draft.books[number]:
                continue
            state = Partition(lane.state, number)
            end = (await lane.log.high_watermarks([state]))[state]
            start = draft.ends_before[number]
            history = History()
            if start < end:
                async for batch in lane.log.read(state, start, end, deadline_s=REREAD_DEADLINE_S):
                    for record in batch:
                        read_state(history, record)
            if _all_there(history, entries, lane):  # the records of a transaction are there as a whole or not at all
                found[number] = end
        return found


def _all_there(history: History, entries: Iterable[Entry], lane: LaneState) -> bool:
    """Whether the records of these entries are in the log."""
    verdicts = {_is_there(history, entry, lane) for entry in entries}
    if len(verdicts) > 1:
        raise BooksDamaged(
            "half of a transaction is in the state topic; sending stops. See docs/runbooks/state-lost.md"
        )
    return verdicts == {True}


def _is_there(history: History, entry: Entry, lane: LaneState) -> bool:
    found, intent = history.find(entry)
    if entry.stage is Stage.SETTLING:
        return found is Found.SETTLED
    return intent is not None and intent.instance == lane.instance and intent.boot == lane.boot


def _trace(entry: Entry) -> Headers:
    return codec.trace_headers(entry.raw.headers) if isinstance(entry.raw, Received) else ()


class _Stamp:
    """The CloudEvents headers of one tick: what all its records share is made once."""

    def __init__(self, now: datetime) -> None:
        self._time = now
        self._fixed: dict[type[Fact], list[tuple[str, bytes]]] = {}

    def headers(self, model: type[Fact], ident: str, trace: Headers) -> Headers:
        fixed = self._fixed.get(model)
        if fixed is None:
            made = codec.headers(model, SOURCE, "", self._time)
            fixed = self._fixed[model] = [pair for pair in made if pair[0] != "ce_id"]
        return [*fixed, ("ce_id", ident.encode()), *trace]
