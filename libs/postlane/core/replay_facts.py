"""What `mail.events` says of deliveries over all their generations, for whoever plans a replay. Pure folds."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from postlane.core.events import (
    AnyEvent,
    DeliveryEvent,
    LetterDiscarded,
    Redriven,
    Replayed,
    Requested,
    Resolved,
    Uncertain,
)
from postlane.core.identity import split_delivery_id
from postlane.core.lifecycle import State, evolve, legal


@dataclass(slots=True)
class Generation:
    """What the events say of one generation of a delivery; `state` is None while only its request is known."""

    state: State | None = None
    hop: int = 0
    doubted: bool = False
    provider: str | None = None
    reason: str | None = None
    resolved: bool = False


@dataclass(slots=True)
class History:
    """All generations of one delivery, and the names of the replays that asked for one."""

    generations: dict[int, Generation] = field(default_factory=dict)
    runs: frozenset[str] = frozenset()

    @property
    def latest(self) -> int:
        return max(self.generations, default=-1)

    def fold(self, event: DeliveryEvent) -> None:
        """One event of this delivery, in the order of the log. An illegal move changes nothing."""
        mine = self.generations.get(event.generation)
        if mine is None:
            mine = self.generations[event.generation] = Generation()
        if isinstance(event, Replayed):
            self.generations.setdefault(event.replay_generation, Generation())
            self.runs |= {event.run}
            return
        said = event.__dict__
        kind: str = said["type"]
        if not legal(mine.state, kind):
            return
        mine.state = evolve(mine.state, kind, again=said.get("next_at") is not None, resolved=said.get("state"))
        mine.hop = max(mine.hop, event.hop)
        mine.doubted = mine.doubted or event.possibly_delivered or isinstance(event, Uncertain)
        mine.provider = said.get("provider") or mine.provider
        mine.reason = said.get("reason") or mine.reason
        if isinstance(event, Resolved):
            mine.doubted, mine.resolved = False, True


@dataclass(slots=True)
class Facts:
    """What `mail.events` says of the candidates of one partition. Only deliveries of `messages` are kept."""

    messages: frozenset[str] | set[str]
    deliveries: dict[tuple[str, str], History] = field(default_factory=dict)  # by message id, digest of recipient
    accepted: dict[tuple[str, int], datetime] = field(default_factory=dict)  # (message, generation): requested at
    redriven: set[int] = field(default_factory=set)  # offsets of dead letters
    discarded: set[int] = field(default_factory=set)

    def fold(self, event: AnyEvent) -> None:
        """One event, in the order of the log."""
        if isinstance(event, DeliveryEvent):
            if event.message_id not in self.messages:
                return
            try:
                message, digest, _ = split_delivery_id(event.delivery_id)
            except ValueError:
                return
            history = self.deliveries.get((message, digest))
            if history is None:
                history = self.deliveries[message, digest] = History()
            history.fold(event)
        elif isinstance(event, Requested):
            if event.message_id in self.messages:
                self.accepted.setdefault((event.message_id, event.generation), event.requested_at)
        elif isinstance(event, Redriven):
            self.redriven.add(event.offset)
        elif isinstance(event, LetterDiscarded):
            self.discarded.add(event.offset)
