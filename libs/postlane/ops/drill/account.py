"""What the topics and the witness say of each delivery: plain records by id, and nothing decided about them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

ENDS = {
    "Delivered": "delivered",
    "Bounced": "bounced",
    "Suppressed": "suppressed",
    "Expired": "expired",
    "Cancelled": "cancelled",
    "Rejected": "rejected",
    "DeadLettered": "dead_lettered",
}
# By an operator or a bounce, after the end: no second end of the delivery itself.
AFTERWARDS = frozenset({"Replayed", "Discarded", "Resolved"})


@dataclass(frozen=True, slots=True)
class Copy:
    """One mail that the witness took responsibility for; `at` is Unix time in seconds."""

    at: float
    server: str
    digest: str


@dataclass(slots=True)
class Delivery:
    """One delivery. `intents` and `outcomes` are records of the state topic: (hop, offset there, body)."""

    ident: str
    events: list[dict[str, Any]] = field(default_factory=list)
    intents: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)
    outcomes: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)

    @property
    def ends(self) -> list[str]:
        """Every terminal state that was recorded by the pipeline, in order."""
        found = []
        for event in self.events:
            if event["type"] in ENDS:
                found.append(ENDS[event["type"]])
            elif event["type"] == "Uncertain" and event.get("next_at") is None:
                found.append("uncertain")
        return found

    @property
    def doubts(self) -> int:
        """How often its outcome was recorded as unknown."""
        return sum(1 for event in self.events if event["type"] == "Uncertain")

    @property
    def resent(self) -> int:
        """Doubts after which it was sent again."""
        return sum(1 for event in self.events if event["type"] == "Uncertain" and event.get("next_at") is not None)

    @property
    def reason(self) -> str | None:
        """The last reason that an event gave."""
        return next((event["reason"] for event in reversed(self.events) if event.get("reason")), None)


@dataclass(slots=True)
class Hop:
    """One dispatch record: where it lies and whose it is (None: it could not be read)."""

    offset: int
    ident: str | None
    hop: int


@dataclass(slots=True)
class Request:
    """What a request of generation 1 or more asked for: a replay. `forced`: an operator said so by name."""

    message_id: str
    recipient: str
    generation: int
    forced: bool


@dataclass(slots=True)
class Account:
    """Everything on record, by delivery id; filled by `follow`, judged by `checkers`.

    `settled` holds, per lane and partition, the dispatch offsets that an outcome was recorded for; `hops` the dispatch
    records in the order of the log; `committed` the newest positions that were read, each before the log was.
    """

    deliveries: dict[str, Delivery] = field(default_factory=dict)
    by_message: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    conflicts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    hops: dict[tuple[str, int], list[Hop]] = field(default_factory=lambda: defaultdict(list))
    settled: dict[tuple[str, int], set[int]] = field(default_factory=lambda: defaultdict(set))
    committed: dict[tuple[str, int], int] = field(default_factory=dict)
    replays: list[Request] = field(default_factory=list)
    dead_letters: list[dict[str, str]] = field(default_factory=list)  # headers
    nameless: int = 0  # copies at the witness without a delivery id
    unreadable: int = 0  # records that are no JSON objects

    def delivery(self, ident: str) -> Delivery:
        """The delivery of this id, made when it is new."""
        found = self.deliveries.get(ident)
        if found is None:
            found = self.deliveries[ident] = Delivery(ident)
        return found

    def of(self, messages: Iterable[str]) -> list[Delivery]:
        """All deliveries of these messages."""
        return [self.deliveries[d] for m in messages for d in sorted(self.by_message.get(m, ()))]

    def waiting(self, accepted: Iterable[str]) -> list[str]:
        """The accepted messages that are nowhere yet, or have a delivery without an end."""
        return [
            m
            for m in accepted
            if not self.by_message.get(m) or not all(self.deliveries[d].ends for d in self.by_message[m])
        ]

    def copies(self) -> list[tuple[float, str, str]]:
        """(Unix time, delivery id, server) of every copy, in the order of time."""
        return sorted((copy.at, d.ident, copy.server) for d in self.deliveries.values() for copy in d.copies)
