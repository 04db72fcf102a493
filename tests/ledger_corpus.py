"""Events for the tests of the ledger: seeded lives of mails, among them illegal moves and records nobody can read."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, select

from postlane.core import events as ev
from postlane.core.identity import delivery_id, message_id_from_key
from postlane.core.project import project
from postlane.eventlog import codec
from postlane.eventlog.ports import Received
from postlane.ops.books_schema import MAILS, Books, books

TOPIC = "mail.events"
START = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
POISON = (None, b"", b"\xff\xfe", b"{", b"[]", b'{"type":"Nothing"}', b'{"type":"Delivered"}', b"[" * 100_000)


def record(partition: int, offset: int, event: ev.Fact) -> Received:
    """An event as the ledger reads it."""
    headers = codec.headers(type(event), "test", f"{partition}-{offset}", START)
    return Received(TOPIC, partition, offset, 1_700_000_000_000, b"k", codec.encode(event), headers)


class Life:
    """One mail and its deliveries, event by event."""

    def __init__(self, dice: random.Random, number: int, start: datetime = START) -> None:
        self._dice = dice
        self._at = start + timedelta(milliseconds=number)
        self.message_id = message_id_from_key("default", f"key-{number}-{dice.random()}")
        self.recipients = [f"user{number}.{i}@Example{i % 3}.org" for i in range(dice.choice((1, 1, 1, 2, 3)))]
        self.campaign = dice.choice((None, "spring", "nul\x00campaign"))

    def _now(self) -> datetime:
        self._at += timedelta(milliseconds=self._dice.randrange(1, 5_000))
        return self._at

    def events(self) -> list[ev.Fact]:
        """The whole life in order; about a tenth of the events are no legal move."""
        lane = self._dice.choice(("transactional", "bulk"))
        told: list[ev.Fact] = [
            ev.Requested(
                message_id=self.message_id, at=self._now(), tenant="default", lane=lane, campaign=self.campaign,
                sender="shop@example.org", subject="Ünïcode \x00 子", recipients=len(self.recipients),
                requested_at=self._at, key=self._dice.choice((None, "k")),
            )
        ]  # fmt: skip
        lives = [self._delivery(recipient, lane) for recipient in self.recipients]
        while lives:
            life = self._dice.choice(lives)
            told.append(life.pop(0))
            lives = [rest for rest in lives if rest]
        if self._dice.random() < 0.1:
            told.append(ev.Conflicted(message_id=self.message_id, at=self._now()))
        return told

    def _delivery(self, recipient: str, lane: str) -> list[ev.Fact]:
        dice, hop, attempt = self._dice, 0, 1
        told: list[ev.Fact] = []

        def say(kind: type[ev.DeliveryEvent], **more: Any) -> None:
            told.append(
                kind(
                    message_id=self.message_id, delivery_id=delivery_id(self.message_id, recipient),
                    recipient=recipient, at=self._now(), hop=hop, attempt=attempt, **more,
                )
            )  # fmt: skip

        reply = ev.ReplyInfo(code=451, enhanced="4.7.1", text="slow \x00 down")
        if dice.random() < 0.1:
            say(ev.Suppressed, reason="manual")
            return told
        if dice.random() < 0.2:
            say(ev.Scheduled, lane=lane, next_at=self._at + timedelta(hours=1))
        say(ev.Routed, lane=lane)
        for _ in range(dice.randrange(4)):
            move = dice.randrange(5)
            if move == 0:
                say(ev.Held, reason="limit", next_at=self._at + timedelta(seconds=5))
            elif move == 1:
                say(ev.Delivered, provider="primary")  # not legal here unless it is being sent
            else:
                say(ev.Attempted, provider="primary")
                if move == 2:
                    say(ev.Deferred, provider="primary", reply=reply, reason="greylisted", next_at=self._at)
                    attempt += 1
                elif move == 3:
                    say(ev.Released, reason="no_connection", next_at=self._at)
                else:
                    say(ev.Uncertain, provider="primary", reason="lost", policy="resend", next_at=self._at)
                    attempt += 1
            hop += 1
        if dice.random() < 0.8:
            say(ev.Attempted, provider=dice.choice(("primary", "backup")))
            match dice.randrange(4):
                case 0:
                    say(ev.Bounced, provider="primary", reply=reply, reason="recipient_unknown")
                case 1:
                    say(ev.Uncertain, provider="backup", reason="lost", policy="park")
                    if dice.random() < 0.5:
                        say(ev.Resolved, state="delivered")
                case 2:
                    say(ev.DeadLettered, reason="given_up")
                    say(dice.choice((ev.Discarded, ev.Replayed)), **_replay(told))
                case _:
                    say(ev.Delivered, provider="backup", reply=ev.ReplyInfo(code=250, text="ok"))
        return told


def _replay(told: list[ev.Fact]) -> dict[str, Any]:
    return {"replay_generation": 1, "reason": "again"} if len(told) % 2 else {"reason": "x", "replay_generation": 1}


def corpus(seed: int, mails: int, partitions: int = 3, poison: bool = True) -> list[Received]:
    """Records of all partitions as a reader gets them: each in order, with gaps (control records) between offsets."""
    dice = random.Random(seed)
    logs: list[list[Received]] = [[] for _ in range(partitions)]
    lives = [(Life(dice, number), number) for number in range(mails)]
    queues = [(number % partitions, life.events()) for life, number in lives]
    offsets = [dice.randrange(5) for _ in range(partitions)]
    while queues:
        slot = dice.randrange(min(len(queues), 20))
        partition, left = queues[slot]
        logs[partition].append(record(partition, offsets[partition], left.pop(0)))
        offsets[partition] += dice.choice((1, 1, 1, 2))
        if poison and dice.random() < 0.03:
            value = dice.choice(POISON)
            logs[partition].append(Received(TOPIC, partition, offsets[partition], 5, b"\x00k", value, ()))
            offsets[partition] += 1
        if not left:
            queues.pop(slot)
    merged: list[Received] = []
    places = [0] * partitions
    while any(place < len(log) for place, log in zip(places, logs, strict=True)):
        partition = dice.choice([p for p in range(partitions) if places[p] < len(logs[p])])
        run = dice.randrange(1, 30)
        merged += logs[partition][places[partition] : places[partition] + run]
        places[partition] += run
    return merged


def readable(records: Iterable[Received]) -> list[Any]:
    """The events among the records."""
    found = []
    for item in records:
        try:
            found.append(codec.decode_event(item.value))
        except codec.Unreadable:
            continue
    return found


def dump(engine: Engine, made: Books | None = None) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table but the clock's column, in key order."""
    made = made or books()
    found = {}
    with engine.connect() as connection:
        for table in made.tables:
            columns = [c for c in table.columns if not (c.name == "updated_at_ms" and table is made.offsets)]
            rows = connection.execute(select(*columns).order_by(*table.primary_key)).all()
            name = table.name.removeprefix("rebuild_")
            found[name] = [tuple(bytes(v) if isinstance(v, memoryview) else v for v in row) for row in rows]
    found["tallies"] = [row for row in found["tallies"] if row[-1]]
    return found


def assert_is_fold_of(engine: Engine, records: Sequence[Received]) -> None:
    """The database holds exactly the fold of these records, id by id."""
    made = books()
    messages, deliveries = project(readable(records))
    with engine.connect() as connection:
        stored = {row["message_id"]: dict(row) for row in connection.execute(select(made.messages)).mappings()}
        assert stored == messages
        rows = {row["delivery_id"]: dict(row) for row in connection.execute(select(made.deliveries)).mappings()}
        assert rows == deliveries
        e = made.events.c
        places = {(p, o) for p, o in connection.execute(select(e.partition_number, e.log_offset))}
        u = made.unreadable.c
        passed = {(p, o) for p, o in connection.execute(select(u.partition_number, u.log_offset))}
        t = made.tallies.c
        counted: dict[tuple[str, ...], int] = {}
        for row in connection.execute(select(t.lane, t.tenant, t.campaign, t.provider, t.state, t.n)):
            counted[tuple(row[:5])] = counted.get(tuple(row[:5]), 0) + row[5]
    assert places | passed == {(item.partition, item.offset) for item in records}
    assert not places & passed
    expected: dict[tuple[str, ...], int] = {}
    for delivery in deliveries.values():
        key = (
            delivery["lane"],
            delivery["tenant"],
            delivery["campaign"] or "",
            delivery["provider"] or "",
            delivery["state"],
        )
        expected[key] = expected.get(key, 0) + 1
    for mail in messages.values():
        key = (mail["lane"], mail["tenant"], mail["campaign"] or "", "", MAILS)
        expected[key] = expected.get(key, 0) + 1
    assert {key: n for key, n in counted.items() if n} == expected
