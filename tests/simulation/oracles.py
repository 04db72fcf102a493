"""The invariants of the design, checked at every committed transaction and every body where they are local."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import orjson

from postlane.core.events import DispatchReady, Intent
from postlane.core.lifecycle import TERMINAL, State
from postlane.core.project import DeliveryRow, MessageRow, fold_delivery, fold_message
from postlane.eventlog.codec import decode, decode_event, decode_state
from postlane.eventlog.memory_broker import EPOCH_MS
from postlane.eventlog.ports import Committed, Partition, Received
from postlane.eventlog.topics import TopicNames
from postlane_sender.takeover import floor_of
from tests.simulation.history import History

# Results that only an attempt can have.
_OF_ATTEMPTS = frozenset({"Delivered", "Bounced", "Deferred", "Released", "Uncertain"})
_ENDS = frozenset({"Delivered", "Bounced", "Suppressed", "Expired", "Cancelled", "Rejected", "DeadLettered"})


@dataclass(slots=True)
class LaneBook:
    """What one partition of a lane is known to hold."""

    dispatched: dict[int, str] = field(default_factory=dict)  # offset -> delivery_id#hop
    spoken: list[tuple[int, int]] = field(default_factory=list)  # (state position, dispatch offset)
    low_water: int = 0


class Oracles:
    """Follows everything that is committed. `mails` is told by the workload: what has to come of what."""

    def __init__(self, names: TopicNames, lanes: tuple[str, ...], history: History) -> None:
        self.names, self.history = names, history
        self._dispatch = {names.dispatch(lane): lane for lane in lanes}
        self._state = {names.state(lane): lane for lane in lanes}
        self._groups = {names.sender_group(lane): lane for lane in lanes}
        self.books: dict[tuple[str, int], LaneBook] = defaultdict(LaneBook)
        self.expected: dict[str, str] = {}  # delivery id -> message id
        self.intents: dict[str, list[Intent]] = defaultdict(list)  # by delivery_id#hop
        self.outcomes: dict[str, tuple[str, float]] = {}
        self.hops: dict[str, int] = {}  # the newest dispatch record of a delivery
        self.ready: dict[str, DispatchReady] = {}
        self.bodies: Counter[str] = Counter()
        self.doubts: Counter[str] = Counter()  # those after which it is sent again
        self.ends: dict[str, list[str]] = defaultdict(list)
        self.rows: dict[str, DeliveryRow] = {}
        self.mails: dict[str, MessageRow] = {}
        self.requested: Counter[tuple[str, int]] = Counter()
        self.routed: Counter[str] = Counter()  # first dispatch records
        self.made: Counter[tuple[str, str]] = Counter()  # (delivery_id#hop, dispatch | delay)
        self.seen: dict[str, str] = {}

    # ------------------------------------------------------------------------------------------- one transaction

    def decided(
        self, producer: str, records: list[Received], offsets: Mapping[str, Mapping[Partition, Committed]]
    ) -> None:
        """A transaction was committed."""
        said: list[str] = []
        for record in records:
            said.append(self._record(record))
        for group, positions in offsets.items():
            for partition, committed in sorted(positions.items()):
                said.append(f"{partition.topic}[{partition.number}]:={committed.offset}/{committed.metadata}")
                if group in self._groups:
                    self._position(self._groups[group], partition.number, committed)
        if producer != "-" or records:
            self.history.say(producer[-12:], "committed " + ", ".join(said))

    def _record(self, record: Received) -> str:
        topic, value = record.topic, record.value or b"null"
        where = f"{topic}[{record.partition}]@{record.offset}"
        if topic in self._state and record.value is not None:
            return f"{where} {self._fact(self._state[topic], record)}"
        if topic in self._dispatch or topic in self.names.delays:
            return f"{where} {self._hop(record)}"
        if topic == self.names.events:
            return f"{where} {self._event(record)}"
        if topic == self.names.seen and record.key is not None:
            key = record.key.decode()
            if key in self.seen:
                self.history.breaks("no repeats", f"the key of {key} was accepted twice", key)
            self.seen[key] = orjson.loads(value)["digest"]
        return f"{where} {(record.key or b'').decode()}"

    def _fact(self, lane: str, record: Received) -> str:
        fact = decode_state(record.value or b"")
        key = f"{fact.delivery_id}#{fact.hop}"
        self.books[lane, record.partition].spoken.append((record.offset, fact.offset))
        if isinstance(fact, Intent):
            self.intents[key].append(fact)
            if key in self.outcomes:
                self.history.breaks("no intent after its outcome", f"{key} by {fact.instance}", fact.delivery_id)
            return f"intent {key} by {fact.instance}"
        if key in self.outcomes:
            self.history.breaks(
                "one outcome per hop", f"{key} is {fact.result} and was {self.outcomes[key][0]}", fact.delivery_id
            )
        if fact.result in _OF_ATTEMPTS and not self.intents.get(key):
            self.history.breaks("no outcome without an intent", f"{key} is {fact.result}", fact.delivery_id)
        self.outcomes[key] = fact.result, _now()
        return f"outcome {key} {fact.result}"

    def _hop(self, record: Received) -> str:
        ready = decode(DispatchReady, record.value or b"")
        key = f"{ready.delivery_id}#{ready.hop}"
        self.ready[ready.delivery_id] = ready
        if record.topic in self._dispatch:
            self.books[self._dispatch[record.topic], record.partition].dispatched[record.offset] = key
            self.made[key, "dispatch"] += 1
            if self.made[key, "dispatch"] > 1:
                self.history.breaks("one next hop", f"{key} was dispatched twice", ready.delivery_id)
        return key

    def _event(self, record: Received) -> str:
        event = decode_event(record.value or b"")
        kind = type(event).__name__
        ident = getattr(event, "delivery_id", None)
        message = event.message_id or ""
        if ident is None:
            row = fold_message(self.mails.get(message), event)
            if row is not None:
                self.mails[message] = row
            if kind == "Requested":
                generation = event.generation  # type: ignore[union-attr]
                self.requested[message, generation] += 1
                if self.requested[message, generation] > 1:
                    self.history.breaks("no repeats", f"{message} was accepted twice", message)
            return f"{kind} {message}"
        known = self.rows.get(ident)
        after = fold_delivery(known, event, self.mails.get(message))  # type: ignore[arg-type]
        if after is not None:
            self.rows[ident] = after
        again = getattr(event, "next_at", None) is not None
        if kind == "Uncertain" and again:
            self.doubts[ident] += 1
        if kind in _ENDS or (kind == "Uncertain" and not again):
            self.ends[ident].append(kind)
            if len(self.ends[ident]) > 1:
                self.history.breaks("one terminal state", f"{ident}: {self.ends[ident]}", ident)
        return f"{kind} {ident}#{getattr(event, 'hop', 0)}"

    def _position(self, lane: str, number: int, committed: Committed) -> None:
        """O passes nothing unsettled, and S is not above anything that speaks of a record at or above O."""
        book = self.books[lane, number]
        for offset, key in book.dispatched.items():
            if book.low_water <= offset < committed.offset and key not in self.outcomes:
                self.history.breaks(
                    "O passes nothing unsettled", f"{lane}[{number}]: O={committed.offset} is above {key}", key[:-2]
                )
        if committed.offset < book.low_water:
            self.history.breaks("O never goes back", f"{lane}[{number}]: {committed.offset} after {book.low_water}")
        book.low_water = committed.offset
        floor = floor_of(committed.metadata)
        book.spoken = [(position, offset) for position, offset in book.spoken if offset >= committed.offset]
        for position, offset in book.spoken:
            if position < floor:
                key = book.dispatched.get(offset, "")
                text = f"{lane}[{number}]: S={floor}, but position {position} speaks of {key} at {offset}"
                self.history.breaks("S hides nothing", f"{text} >= O={committed.offset}", key[:-2])

    # ------------------------------------------------------------------------------------------------- one body

    def body_written(self, ident: str, instance: str) -> None:
        """`instance` hands a body to the network now."""
        self.bodies[ident] += 1
        ready, now = self.ready[ident], _moment()
        intents = sum(len(found) for key, found in self.intents.items() if key.startswith(ident))
        self.history.say(instance, f"body {ident}")
        if self.bodies[ident] > intents:
            text = f"body {self.bodies[ident]} of {ident}, {intents} intents committed"
            self.history.breaks("no body without an intent", text, ident)
        if ready.expires_at is not None and now >= ready.expires_at:
            self.history.breaks("expiry", f"{ident} expired at {ready.expires_at}", ident)
        mine = [
            (key, intent)
            for key, found in self.intents.items()
            if key.startswith(ident)
            for intent in found
            if intent.instance == instance.partition("~")[0]
        ]
        live = [(key, i) for key, i in mine if now < i.at + timedelta(milliseconds=i.ttl_ms)]
        if mine and not live:
            self.history.breaks("no body after the lapse", f"{ident}: every intent of {instance} has lapsed", ident)
        elif live and all(key in self.outcomes for key, _ in live):
            self.history.breaks("no body after its outcome", f"{ident}: {live[-1][0]} is settled already", ident)

    # ----------------------------------------------------------------------------------------------- at the end

    def pending(self) -> list[str]:
        """Deliveries that have not ended."""
        return [ident for ident in self.expected if State(self._state_of(ident)) not in TERMINAL]

    def _state_of(self, ident: str) -> str:
        row = self.rows.get(ident)
        return str(State.PENDING) if row is None else row["state"]

    def at_the_end(self, copies: Mapping[str, int], digests: Mapping[str, set[str]]) -> None:
        """Everything is quiet: per delivery, what it came to against what the servers saw."""
        breaks = self.history.breaks
        for ident in self.pending():
            breaks("accepted is kept", f"{ident} is {self._state_of(ident)} for ever", ident)
        for ident in {**self.rows, **copies}:
            if ident not in self.expected:
                breaks("nothing from nowhere", f"{ident} was never asked for", ident)
        for ident in self.expected:
            self._one(ident, copies.get(ident, 0), digests.get(ident, set()))

    def _one(self, ident: str, copies: int, digests: set[str]) -> None:
        breaks, doubts = self.history.breaks, self.doubts[ident]
        state = self._state_of(ident)
        if copies > 1 + doubts:
            breaks("copies", f"{ident}: {copies} copies, {doubts} doubts", ident)
        if len(digests) > 1:
            breaks("a resend is the same bytes", f"{ident}: {sorted(digests)}", ident)
        row = self.rows.get(ident)
        if row is None:
            return
        if state == State.DELIVERED and copies == 0:
            breaks("doubt is no fact", f"{ident} is delivered, no server has it", ident)
        if state in TERMINAL and state != State.DELIVERED and copies and not row["possibly_delivered"]:
            breaks("doubt is no fact", f"{ident} is {state}, and {copies} copies were accepted", ident)
        if row["doubts"] < doubts:
            breaks("fold", f"{ident}: {row['doubts']} doubts in the books, {doubts} recorded", ident)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _moment() -> datetime:
    from datetime import UTC

    return datetime.fromtimestamp(EPOCH_MS / 1000, UTC) + timedelta(seconds=_now())
