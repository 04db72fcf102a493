"""The checker: reads topics with a plain client and the witness's ledger, and knows nothing of the services.

Every check is per id: totals that agree prove nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from confluent_kafka import Consumer, TopicPartition

from postlane.eventlog.topics import TopicNames
from postlane.local.practice import PracticeControl

TERMINAL = {
    "Delivered": "delivered",
    "Bounced": "bounced",
    "Suppressed": "suppressed",
    "Expired": "expired",
    "Cancelled": "cancelled",
    "Rejected": "rejected",
    "DeadLettered": "dead_lettered",
}
TRIED = frozenset({"Delivered", "Bounced", "Deferred", "Uncertain", "Released"})  # outcomes that need an intent


@dataclass(slots=True)
class Delivery:
    """What the topics say of one delivery."""

    events: list[dict[str, Any]] = field(default_factory=list)
    intents: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)  # (hop, offset, record)
    outcomes: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)
    copies: int = 0
    digests: set[str] = field(default_factory=set)

    @property
    def terminal(self) -> list[str]:
        """Every terminal state that was recorded."""
        states = [TERMINAL[e["type"]] for e in self.events if e["type"] in TERMINAL]
        return states + ["uncertain" for e in self.events if e["type"] == "Uncertain" and "next_at" not in e]

    @property
    def doubts(self) -> int:
        return sum(1 for e in self.events if e["type"] == "Uncertain")

    @property
    def resent(self) -> int:
        """Doubts after which it was sent again."""
        return sum(1 for e in self.events if e["type"] == "Uncertain" and "next_at" in e)


@dataclass(slots=True)
class Books:
    """Everything, by delivery id, and by message id."""

    deliveries: dict[str, Delivery] = field(default_factory=lambda: defaultdict(Delivery))
    by_message: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    dead_letters: list[tuple[bytes | None, bytes | None, dict[str, bytes]]] = field(default_factory=list)
    other_events: list[dict[str, Any]] = field(default_factory=list)
    foreign_copies: list[str] = field(default_factory=list)

    def settled(self, accepted: Mapping[str, object]) -> bool:
        return all(
            self.by_message.get(message) and all(self.deliveries[d].terminal for d in self.by_message[message])
            for message in accepted
        )

    def count(self, state: str) -> int:
        return sum(1 for d in self.deliveries.values() if state in d.terminal)

    def summary(self) -> dict[str, int]:
        totals: dict[str, int] = defaultdict(int)
        for delivery in self.deliveries.values():
            totals[delivery.terminal[-1] if delivery.terminal else "pending"] += 1
            totals["copies"] += delivery.copies
            totals["doubts"] += delivery.doubts
        return dict(totals)

    def problems(self, accepted: Mapping[str, object]) -> list[str]:
        """Every broken promise, by id."""
        found = [f"{m}: accepted and nowhere in the books" for m in accepted if not self.by_message.get(m)]
        found += [f"{d}: the witness has a copy that nobody requested" for d in self.foreign_copies]
        for ident, delivery in self.deliveries.items():
            found += [f"{ident}: {problem}" for problem in _problems(delivery)]
        return found


def _problems(d: Delivery) -> Iterator[str]:
    if len(d.terminal) > 1:
        yield f"more than one terminal state: {d.terminal}"
    if not d.terminal and d.events:
        yield f"not settled; last event {d.events[-1]['type']}"
    if d.copies > 1 + d.resent:
        yield f"{d.copies} copies and {d.resent} doubts that were sent again"
    if "delivered" in d.terminal and d.copies == 0:
        yield "recorded as delivered, and the witness has no copy"
    if d.copies and not d.intents:
        yield "a copy without an intent"
    if d.copies and "delivered" not in d.terminal and not d.doubts:
        yield f"the witness has {d.copies} copies, the books say {d.terminal} without a doubt"
    if len(d.digests) > 1:
        yield "a resend was not byte-identical"
    outcomes = [hop for hop, _, _ in d.outcomes]
    if len(outcomes) != len(set(outcomes)):
        yield f"a hop has two outcomes: {sorted(outcomes)}"
    began = {hop: offset for hop, offset, _ in reversed(d.intents)}
    for hop, offset, record in d.outcomes:
        if record["result"] in TRIED and not (hop in began and began[hop] < offset):
            yield f"hop {hop}: outcome {record['result']} without an intent before it"


# ---------------------------------------------------------------------------------------------------------- reading


def read_topic(bootstrap: str, topic: str) -> list[Any]:
    """Every committed message of a topic, by a plain client, up to the ends that the brokers report now."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "checker",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 20,
        }
    )
    try:
        found = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        ends = {}
        for number in found:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)
            if high > low:
                ends[number] = high
        consumer.assign([TopicPartition(topic, number, 0) for number in ends])
        messages = []
        while ends:
            messages += [m for m in consumer.consume(5000, 0.1) if m.error() is None]
            for tp in consumer.position([TopicPartition(topic, number) for number in ends]):
                if tp.offset >= ends[tp.partition]:
                    del ends[tp.partition]
        return messages
    finally:
        consumer.close()


def read_books(bootstrap: str, names: TopicNames, lanes: tuple[str, ...], witness: PracticeControl) -> Books:
    """The books of an installation as they stand now."""
    books = Books()
    for message in read_topic(bootstrap, names.events):
        event = orjson.loads(message.value())
        if "delivery_id" in event:
            books.deliveries[event["delivery_id"]].events.append(event)
            books.by_message[event["message_id"]].add(event["delivery_id"])
        else:
            books.other_events.append(event)
    for lane in lanes:
        for message in read_topic(bootstrap, names.state(lane)):
            record = orjson.loads(message.value())
            if record["delivery_id"].startswith("@"):
                continue
            delivery = books.deliveries[record["delivery_id"]]
            kept = delivery.intents if record["kind"] == "intent" else delivery.outcomes
            kept.append((record["hop"], message.offset(), record))
    for message in read_topic(bootstrap, names.dead_letters):
        books.dead_letters.append((message.key(), message.value(), dict(message.headers() or [])))
    for copy in witness.ledger():  # last: what the topics say happened must be in it by now
        if not copy.accepted or copy.delivery is None:
            continue
        if copy.delivery not in books.deliveries:
            books.foreign_copies.append(copy.delivery)
            continue
        books.deliveries[copy.delivery].copies += 1
        books.deliveries[copy.delivery].digests.add(copy.sha256)
    return books
