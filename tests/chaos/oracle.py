"""The checkers of a chaos run: plain clients that follow the topics and the witness, and compare per id.

They reuse the acceptance tests' account of a delivery and add what a long run needs: they read each record once, and
check all along that positions never passed an unsettled delivery, that the witness has the bytes that the request
calls for, and that the ledger's database is the fold of the log.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from pydantic import ValidationError

from postlane.core.events import DispatchReady
from postlane.core.identity import split_delivery_id
from postlane.eventlog.tables import TemplateTable
from postlane.local.practice.client import LedgerEntry
from postlane_sender.composer import Composer
from tests.acceptance.checker import Books, Delivery, _problems
from tests.chaos.load import Accepted
from tests.chaos.town import LANES, PARTITIONS, Town

_TIMEOUT_S = 15.0


class Oracle:
    """Everything that is on record, kept up to date by `catch_up`."""

    def __init__(self, town: Town) -> None:
        self._town = town
        self.books = Books()
        self.entries: list[LedgerEntry] = []
        self.unreadable = 0  # records that are no JSON objects: the nemesis's poison
        self._digests: dict[str, str] = {}  # delivery id -> of the bytes that its request calls for
        self._dispatched: dict[tuple[str, int], list[tuple[int, str, int]]] = defaultdict(list)
        self._checked: dict[tuple[str, int], int] = defaultdict(int)
        self._composer = Composer(TemplateTable())
        self._admin = AdminClient({"bootstrap.servers": town.bootstrap, "log_level": 0})
        self._consumer = Consumer(
            {
                "bootstrap.servers": town.bootstrap,
                "group.id": "oracle",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "check.crcs": True,
                "log_level": 0,
            }
        )
        names = town.names
        self._readers: dict[str, Callable[[Any, dict[str, Any]], None]] = {names.events: self._event}
        for lane in LANES:
            self._readers[names.state(lane)] = self._state
            self._readers[names.dispatch(lane)] = self._dispatch
        self._parts = [TopicPartition(topic, n, 0) for topic in self._readers for n in range(PARTITIONS)]
        self._consumer.assign(self._parts)

    def close(self) -> None:
        self._consumer.close()

    # ----------------------------------------------------------------------------------------------------- reading

    def catch_up(self) -> bool:
        """Read up to the ends that the brokers report now, then the witness. False where they do not answer."""
        try:
            ends = {
                (tp.topic, tp.partition): self._consumer.get_watermark_offsets(tp, timeout=_TIMEOUT_S)[1]
                for tp in self._parts
            }
            deadline = time.monotonic() + _TIMEOUT_S
            while not self._reached(ends):
                if time.monotonic() > deadline:
                    return False
                for message in self._consumer.consume(2000, 0.1):
                    if message.error() is None:
                        self._take(message)
        except KafkaException:
            return False
        # Last: what the topics say happened must be in it by now.
        for entry in self._town.practice.control.ledger(len(self.entries)):
            self._copy(entry)
        return True

    def _reached(self, ends: Mapping[tuple[str, int], int]) -> bool:
        return all(
            tp.offset >= ends[tp.topic, tp.partition]
            for tp in self._consumer.position(self._parts)
            if ends[tp.topic, tp.partition]
        )

    def _take(self, message: Any) -> None:
        try:
            body = orjson.loads(message.value() or b"")
        except orjson.JSONDecodeError:
            body = None
        if not isinstance(body, dict):
            self.unreadable += 1
            return
        self._readers[message.topic()](message, body)

    def _event(self, message: Any, event: dict[str, Any]) -> None:
        if "delivery_id" in event and "type" in event:
            self.books.deliveries[event["delivery_id"]].events.append(event)
            self.books.by_message[event["message_id"]].add(event["delivery_id"])
        elif "type" not in event:
            self.unreadable += 1

    def _state(self, message: Any, record: dict[str, Any]) -> None:
        ident = record.get("delivery_id")
        if not isinstance(ident, str) or "kind" not in record:
            self.unreadable += 1
        elif not ident.startswith("@"):
            delivery = self.books.deliveries[ident]
            kept = delivery.intents if record["kind"] == "intent" else delivery.outcomes
            kept.append((record["hop"], message.offset(), record))

    def _dispatch(self, message: Any, record: dict[str, Any]) -> None:
        try:
            mail = DispatchReady.model_validate(record)
        except ValidationError:
            self.unreadable += 1
            return
        self._dispatched[message.topic(), message.partition()].append((message.offset(), mail.delivery_id, mail.hop))
        if mail.delivery_id not in self._digests:
            self._digests[mail.delivery_id] = hashlib.sha256(self._composer(mail).data).hexdigest()

    def _copy(self, entry: LedgerEntry) -> None:
        self.entries.append(entry)
        if not entry.accepted or entry.delivery is None:
            return
        if entry.delivery not in self.books.deliveries:
            self.books.foreign_copies.append(entry.delivery)
            return
        self.books.deliveries[entry.delivery].copies += 1
        self.books.deliveries[entry.delivery].digests.add(entry.sha256)

    # ---------------------------------------------------------------------------------------------------- questions

    def deliveries(self, messages: Iterable[str]) -> list[Delivery]:
        return [self.books.deliveries[d] for m in messages for d in self.books.by_message.get(m, ())]

    def unsettled(self, accepted: Mapping[str, Accepted]) -> list[str]:
        """The accepted messages that are nowhere, or have a delivery without an end."""
        found = self.books.by_message
        return [m for m in accepted if not found.get(m) or not all(self.books.deliveries[d].terminal for d in found[m])]

    def problems(self, accepted: Mapping[str, Accepted]) -> list[str]:
        """Every broken promise of these, by delivery id, and every copy that nobody asked for."""
        found = [f"{m}: lost: accepted and nowhere in the books" for m in accepted if not self.books.by_message.get(m)]
        # A copy may be read before its events; only one that stays foreign is a problem.
        late, self.books.foreign_copies = self.books.foreign_copies, []
        for ident in late:
            if ident in self.books.deliveries:
                self.books.deliveries[ident].copies += 1
            else:
                self.books.foreign_copies.append(ident)
        for ident in self.books.foreign_copies:
            if split_delivery_id(ident)[0] in accepted:  # one that is not: its events are on their way
                found.append(f"{ident}: a copy that nobody requested")
        for message in accepted:
            for ident in self.books.by_message.get(message, ()):
                delivery = self.books.deliveries[ident]
                found += [f"{ident}: {problem}" for problem in _problems(delivery)]
                wanted = self._digests.get(ident)
                if delivery.digests and wanted is not None and delivery.digests != {wanted}:
                    found.append(f"{ident}: the witness has other bytes than were asked for")
        return found

    def passed(self) -> list[str]:
        """Positions that passed an unsettled delivery: read the positions first, then the log up to its end."""
        committed: dict[tuple[str, int], int] = {}
        try:
            for lane in LANES:
                group = self._town.names.sender_group(lane)
                asked = self._admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])
                for tp in asked[group].result(_TIMEOUT_S).topic_partitions:
                    committed[tp.topic, tp.partition] = tp.offset
        except KafkaException:
            return []
        if not self.catch_up():
            return []
        found = []
        for where, low in committed.items():
            records = self._dispatched[where]
            at = self._checked[where]
            while at < len(records) and records[at][0] < low:
                offset, ident, hop = records[at]
                if not any(h >= hop for h, _, _ in self.books.deliveries[ident].outcomes):
                    found.append(
                        f"{ident}#{hop}: {where[0]}[{where[1]}] is committed to {low}, past {offset}, unsettled"
                    )
                at += 1
            self._checked[where] = at
        return found

    def ledger_differs(self, accepted: Mapping[str, Accepted]) -> list[str]:
        """Deliveries of these whose state in the ledger's database is not the one that the log ends in."""
        uri = f"file:{self._town.database}?mode=ro"
        with sqlite3.connect(uri, uri=True, timeout=10) as database:
            rows = dict(database.execute("SELECT delivery_id, state FROM deliveries"))
        database.close()
        found = []
        for message in accepted:
            for ident in self.books.by_message.get(message, ()):
                terminal = self.books.deliveries[ident].terminal
                if terminal and rows.get(ident) != terminal[-1]:
                    found.append(f"{ident}: the log says {terminal[-1]}, the ledger {rows.get(ident)}")
        return found
