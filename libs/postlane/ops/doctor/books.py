"""Checks of the books: the ledger's database, how far it is behind, what waits for a person."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from postlane.config import ConfigurationError
from postlane.core.events import Control
from postlane.core.policy import Config
from postlane.eventlog.ports import Log, Partition
from postlane.ops.doctor.check import Check, fail, ok, skip, warn

HOUR_S = 3600
DAY_S = 86_400
UNSETTLED_WARN_S = HOUR_S  # and failing when it is older than a mail may get
UNATTENDED_WARN_S = DAY_S
PAUSE_WARN_S = DAY_S
BEHIND_WARN_EVENTS = 10_000
BEHIND_WARN_S = 60
BEHIND_FAIL_S = 15 * 60
SENDERS_RECENT_MAX = 20


@dataclass(frozen=True, slots=True)
class Told:
    """What the ledger's database told; `problem` is the check that says why it told nothing."""

    problem: Check | None = None
    schema: str | None = None
    offsets: Mapping[int, int] = field(default_factory=dict)
    oldest: Sequence[Mapping[str, Any]] = ()
    troubled: Mapping[str, tuple[int, datetime | None]] = field(default_factory=dict)  # state -> how many, the oldest
    unreadable: int = 0
    domains: tuple[str, ...] = ()


def ask_ledger(url: str, topic: str) -> Told:
    """Ask the database everything at once. Blocking; raises nothing that a database can do."""
    name = "ledger-database"
    try:
        from postlane.ops import books, books_health
        from postlane.ops.books_database import DatabaseRefused, DatabaseUnavailable, database_url
    except ModuleNotFoundError as error:
        do = "pip install 'postlane[ledger]' to read the ledger here"
        return Told(skip(name, f"{error.name} is not installed", do))
    try:
        database_url(url)
    except ConfigurationError as error:
        return Told(fail(name, str(error), "correct POSTLANE_DATABASE_URL"))
    try:
        troubled = {state: books_health.waiting(url, state) for state in ("dead_lettered", "uncertain")}
        return Told(
            None,
            books_health.schema(url),
            books.offsets(url, topic),
            books.oldest_open(url),
            troubled,
            books_health.unreadable_count(url),
            books_health.sender_domains(url, SENDERS_RECENT_MAX),
        )
    except ConfigurationError as error:
        return Told(warn(name, str(error), "start postlane_ledger with the same POSTLANE_DATABASE_URL"))
    except (DatabaseUnavailable, DatabaseRefused) as error:
        return Told(fail(name, str(error), "start the database, or correct POSTLANE_DATABASE_URL"))


def ledger_checks(told: Told, config: Config, now: datetime) -> Iterator[Check]:
    """What the database itself says."""
    if told.problem is not None:
        yield told.problem
        return
    folded = sum(told.offsets.values())
    yield ok("ledger-database", f"answers; folded up to {folded} in {len(told.offsets)} partitions")
    yield schema_check(told.schema)
    if told.unreadable:
        do = "SELECT * FROM unreadable tells which and why; `python -m postlane_ledger rebuild` after an upgrade"
        yield warn("ledger-unreadable", f"{told.unreadable} records were passed over", do)
    yield from unsettled_checks(told.oldest, config, now)
    yield from unattended_checks(told.troubled, now)


def schema_check(schema: str | None) -> Check:
    """The revision of the tables against the one that this version knows."""
    from postlane.ops.books_schema import SCHEMA_REVISION

    name = "ledger-schema"
    if schema is None or schema < SCHEMA_REVISION:
        found = f"{schema or 'none'}; this version has {SCHEMA_REVISION}"
        return warn(name, found, "restart postlane_ledger of this version: it migrates at its start")
    if schema > SCHEMA_REVISION:
        found = f"{schema}; this version knows up to {SCHEMA_REVISION}"
        return fail(name, found, "upgrade postlane_ledger, or restore the database from before (docs/upgrading.md)")
    return ok(name, schema)


def unsettled_checks(oldest: Sequence[Mapping[str, Any]], config: Config, now: datetime) -> Iterator[Check]:
    """The oldest delivery of each lane that is not settled."""
    name = "unsettled-age"
    for row in oldest:
        if row["requested_at"] is None:
            continue
        age_s = (now - datetime.fromisoformat(row["requested_at"])).total_seconds()
        found = f"{row['delivery_id']} is {row['state']}, {_age(age_s)} after it was requested"
        do = f"`postlane status {row['delivery_id'].split('.')[0]}` tells its story (docs/runbooks/backlog-growing.md)"
        if age_s > config.retry.expire_after_s:
            yield fail(name, f"{found}: longer than mails may live", do, row["lane"])
        elif age_s > UNSETTLED_WARN_S:
            yield warn(name, found, do, row["lane"])
        else:
            yield ok(name, f"{_age(age_s)} for the oldest", row["lane"])


def unattended_checks(troubled: Mapping[str, tuple[int, datetime | None]], now: datetime) -> Iterator[Check]:
    """What waits for a person."""
    what = {
        "dead_lettered": ("dead-letters-unattended", "postlane dead-letters list", "dead-letters-rising"),
        "uncertain": ("uncertain-unattended", "postlane dead-letters list --reason uncertain", "uncertain-rising"),
    }
    for state, (name, command, page) in what.items():
        count, oldest = troubled.get(state, (0, None))
        if not count or oldest is None:
            yield ok(name, "none")
            continue
        age_s = (now - oldest).total_seconds()
        if age_s <= UNATTENDED_WARN_S:
            yield ok(name, f"{count}, the oldest for {_age(age_s)}")
        else:
            yield warn(name, f"{count}, the oldest for {_age(age_s)}", f"`{command}` (docs/runbooks/{page}.md)")


def pause_checks(orders: Sequence[Control], now: datetime) -> Iterator[Check]:
    """Orders to pause that someone may have forgotten."""
    for order in orders:
        if order.action != "pause":
            continue
        age_s = (now - order.at).total_seconds()
        if age_s > PAUSE_WARN_S:
            because = f" ({order.reason})" if order.reason else ""
            do = f"`postlane resume --{order.scope} {order.name}` lets it go on"
            found = f"{order.scope} {order.name} is paused for {_age(age_s)}{because}"
            yield warn("pause-forgotten", found, do, order.name)


async def behind_checks(log: Log, topic: str, told: Told, now: datetime) -> Sequence[Check]:
    """How far the fold is behind the log: records, and the age of the first of them."""
    if told.problem is not None:
        return []
    partitions = [Partition(topic, number) for number in range(await log.partition_count(topic))]
    ends, begins = await log.high_watermarks(partitions), await log.low_watermarks(partitions)
    behind, oldest_ms = 0, None
    for p in partitions:
        start = max(begins[p], told.offsets.get(p.number, 0))
        behind += max(0, ends[p] - start)
        first = await _first_ms(log, p, start, ends[p])
        oldest_ms = first if oldest_ms is None or (first is not None and first < oldest_ms) else oldest_ms
    age_s = 0.0 if oldest_ms is None else max(0.0, now.timestamp() - oldest_ms / 1000)
    return [behind_check(0 if oldest_ms is None else behind, age_s)]


async def _first_ms(log: Log, partition: Partition, start: int, end: int) -> int | None:
    """When the first record that was not folded was written; None when only control records are left."""
    if start >= end:
        return None
    async for records in log.read(partition, start, min(end, start + 100), deadline_s=3.0):
        if records:
            return records[0].timestamp_ms
    return None


def behind_check(events: int, age_s: float) -> Check:
    name, do = "ledger-behind", "is postlane_ledger running? its log and /readyz say why it does not keep up"
    if not events:
        return ok(name, "it has everything")
    found = f"some {events} events, the oldest for {_age(age_s)}"
    if age_s > BEHIND_FAIL_S:
        return fail(name, found, do)
    if age_s > BEHIND_WARN_S or events > BEHIND_WARN_EVENTS:
        return warn(name, found, do)
    return ok(name, found)


def _age(seconds: float) -> str:
    for size, unit in ((DAY_S, "days"), (HOUR_S, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def domains_of(told: Told, named: Collection[str]) -> tuple[str, ...]:
    """The domains to look up: those named, else those that mails were sent from lately."""
    return tuple(dict.fromkeys(named)) or told.domains


def utc_now() -> datetime:
    return datetime.now(UTC)
