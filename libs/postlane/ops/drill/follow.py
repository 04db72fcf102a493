"""Keeps an account up to date: topics through a plain client, the witness through its own interface.

Order matters. Positions are read before the log, so that what they passed must be in it. Copies are read from the
witness before the topics (a copy whose intent, or whose doubt, is missing then is a broken promise), and once more
after them at the end (a delivery without a copy is one then).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

import orjson

from postlane.eventlog.audit import TopicAuditor
from postlane.eventlog.errors import LogError
from postlane.eventlog.ports import Partition, Received
from postlane.eventlog.topics import TopicNames
from postlane.local.practice.client import ControlError, LedgerEntry
from postlane.ops.drill.account import Account, Copy, Hop, Request


class Witness(Protocol):
    """An SMTP server that keeps its own ledger (PracticeControl)."""

    def ledger(self, since: int = 0) -> list[LedgerEntry]:
        """Every record from number `since` on."""


class Follower:
    """An account of one installation. Threads must not share one.

    `from_now`: leave out what was before (for an installation that has a history). `options` are librdkafka's.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        names: TopicNames,
        lanes: Sequence[str],
        witness: Witness,
        options: Mapping[str, str] | None = None,
        *,
        from_now: bool = False,
    ) -> None:
        self.account = Account()
        self._names, self._lanes, self._witness = names, tuple(lanes), witness
        self._take: dict[str, Callable[[Received, dict[str, Any]], None]] = {
            names.events: self._event,
            names.requests: self._request,
        }
        self._lane_of = {names.state(lane): lane for lane in lanes} | {names.dispatch(lane): lane for lane in lanes}
        self._take |= {names.state(lane): self._state for lane in lanes}
        self._take |= {names.dispatch(lane): self._dispatch for lane in lanes}
        topics = [*self._take, names.dead_letters]
        self._auditor = TopicAuditor(bootstrap_servers, topics, options, from_now=from_now)
        self._seen = len(witness.ledger()) if from_now else 0
        if from_now:
            self.catch_up()

    def catch_up(self, timeout_s: float = 10.0) -> bool:
        """Read everything that is new; False when brokers or the witness do not answer, or not to the end."""
        try:
            committed = self._auditor.committed([self._names.sender_group(lane) for lane in self._lanes])
            copies = self._copies()
            for record in self._auditor.catch_up(timeout_s):
                self._record(record)
        except (LogError, ControlError, OSError):
            return False
        for entry in copies:
            self._copy(entry)
        self._seen += len(copies)
        for partition, offset in committed.items():
            self._position(partition, offset)
        return True

    def close(self) -> None:
        """Let go of the connections."""
        self._auditor.close()

    def _copies(self) -> list[LedgerEntry]:
        return self._witness.ledger(self._seen)

    # ------------------------------------------------------------------------------------------------- one record

    def _record(self, record: Received) -> None:
        if record.topic == self._names.dead_letters:
            self.account.dead_letters.append({k: v.decode(errors="replace") for k, v in record.headers if v})
            return
        try:
            body = orjson.loads(record.value or b"")
        except orjson.JSONDecodeError:
            body = None
        if isinstance(body, dict):
            self._take[record.topic](record, body)
        else:
            self.account.unreadable += 1
            if record.topic in self._lane_of:
                self._dispatch(record, {})

    def _event(self, record: Received, event: dict[str, Any]) -> None:
        ident, kind = event.get("delivery_id"), event.get("type")
        if isinstance(ident, str) and isinstance(kind, str):
            self.account.delivery(ident).events.append(event)
            self.account.by_message[event["message_id"]].add(ident)
        elif kind == "Conflicted":
            self.account.conflicts[event["message_id"]] += 1
        elif not isinstance(kind, str):
            self.account.unreadable += 1

    def _request(self, record: Received, request: dict[str, Any]) -> None:
        generation = request.get("generation", 0)
        if isinstance(generation, int) and generation > 0 and isinstance(request.get("message_id"), str):
            recipient = request.get("replay_recipient") or next(iter(request.get("to") or ()), "")
            forced = bool(request.get("replay_forced", False))
            self.account.replays.append(Request(request["message_id"], str(recipient), generation, forced))

    def _state(self, record: Received, body: dict[str, Any]) -> None:
        ident, kind = body.get("delivery_id"), body.get("kind")
        if not isinstance(ident, str) or kind not in ("intent", "outcome"):
            self.account.unreadable += 1
            return
        where = self._lane_of[record.topic], record.partition
        if kind == "outcome":
            self.account.settled[where].add(int(body["offset"]))
        if ident.startswith("@"):  # a dispatch record that could not be read, known by its place
            return
        delivery = self.account.delivery(ident)
        kept = delivery.intents if kind == "intent" else delivery.outcomes
        kept.append((int(body["hop"]), record.offset, body))

    def _dispatch(self, record: Received, body: dict[str, Any]) -> None:
        if record.topic not in {self._names.dispatch(lane) for lane in self._lanes}:
            return
        ident = body.get("delivery_id")
        where = self._lane_of[record.topic], record.partition
        hop = Hop(record.offset, ident if isinstance(ident, str) else None, int(body.get("hop", 0)))
        self.account.hops[where].append(hop)

    def _copy(self, entry: LedgerEntry) -> None:
        if not entry.accepted:
            return
        if entry.delivery is None:
            self.account.nameless += 1
        else:
            self.account.delivery(entry.delivery).copies.append(Copy(entry.at, entry.server, entry.sha256))

    def _position(self, partition: Partition, offset: int) -> None:
        lane = self._lane_of.get(partition.topic)
        if lane is not None:
            self.account.committed[lane, partition.number] = offset


def ledger_rows(database_url: str, idents: Iterable[str]) -> dict[str, dict[str, object]]:
    """`state` and `doubts` of the ledger's rows, by delivery id; with sqlite3 alone where it is SQLite.

    Raises OSError or the database's own error when it cannot be read.
    """
    wanted = set(idents)
    return {ident: row for ident, row in _rows(database_url) if ident in wanted}


def _rows(database_url: str) -> Iterator[tuple[str, dict[str, object]]]:
    query = "SELECT delivery_id, state, doubts FROM deliveries"
    if database_url.startswith("sqlite:///"):
        path = database_url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
            found = database.execute(query).fetchall()
    else:
        from sqlalchemy import create_engine, text

        engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://", 1))
        try:
            with engine.connect() as connection:
                found = [tuple(row) for row in connection.execute(text(query))]
        finally:
            engine.dispose()
    for ident, state, doubts in found:
        yield str(ident), {"state": state, "doubts": doubts}
