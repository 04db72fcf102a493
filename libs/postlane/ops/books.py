"""Questions to the ledger's database: one mail's story, how many stand where, what is troubled, how far the fold is.

Read-only, and apart from the ledger process: a query never waits for it and never makes it wait. Every function
takes the URL of POSTLANE_DATABASE_URL and raises ConfigurationError (no such database, not a ledger's), or
DatabaseUnavailable. Times in answers are RFC 3339 in UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Connection, func, inspect, select

from postlane.config import ConfigurationError
from postlane.ops.books_database import database_errors, database_url, open_database
from postlane.ops.books_schema import MAILS, OPEN_STATES, TROUBLED_STATES, Books, books

TIMELINE_MAX_EVENTS = 1_000
LIST_MAX_ROWS = 1_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MS = -62_135_596_800_000  # the beginning of the year 1, in case a clock was far off
_LAST_MS = 253_402_300_799_999  # the end of the year 9999

Row = dict[str, Any]


def story(url: str, message_id: str) -> Row | None:
    """What is known of one mail: the request, its deliveries with their state, its timeline in the log's order.

    `{"message": {...} | None, "deliveries": [...], "timeline": [...], "timeline_cut": bool}`; None when the ledger
    knows nothing of it.
    """
    made = books()
    m, d, e = made.messages, made.deliveries, made.events
    with reading(url) as connection:
        mail = connection.execute(select(m).where(m.c.message_id == message_id)).mappings().first()
        # A delivery id starts with the message id and a dot; "/" is the character after the dot.
        mine = (d.c.delivery_id >= f"{message_id}.", d.c.delivery_id < f"{message_id}/")
        deliveries = connection.execute(select(d).where(*mine).order_by(d.c.delivery_id)).mappings().all()
        happened = connection.execute(
            select(e)
            .where(e.c.message_id == message_id)
            .order_by(e.c.partition_number, e.c.log_offset)
            .limit(TIMELINE_MAX_EVENTS + 1)
        ).mappings()
        timeline = [_event(row) for row in happened]
    if mail is None and not deliveries and not timeline:
        return None
    return {
        "message": None if mail is None else _row(mail),
        "deliveries": [_row(row) for row in deliveries],
        "timeline": timeline[:TIMELINE_MAX_EVENTS],
        "timeline_cut": len(timeline) > TIMELINE_MAX_EVENTS,
    }


def counts(url: str, by: Sequence[str] = ("lane", "state")) -> list[Row]:
    """Deliveries by any of lane, tenant, campaign, provider, state: `[{"lane": …, "state": …, "n": …}, …]`.

    Kept by the ledger as it folds, so it costs nothing to ask every second; "" is none. Raises ValueError for another
    column.
    """
    return _counted(url, by, lambda t: t.c.state != MAILS)


def mails(url: str, by: Sequence[str] = ("lane",)) -> list[Row]:
    """Mails requested, by any of lane, tenant, campaign."""
    return _counted(url, by, lambda t: t.c.state == MAILS)


def oldest_open(url: str) -> list[Row]:
    """Per lane, the oldest delivery that is not settled: `[{"lane", "requested_at", "delivery_id", "state"}, …]`."""
    d = books().deliveries
    open_ones = d.c.state.in_(OPEN_STATES)
    found: list[Row] = []
    with reading(url) as connection:
        for lane in connection.execute(_lanes()).scalars().all():
            oldest = (
                select(d.c.lane, d.c.requested_at_ms, d.c.delivery_id, d.c.state)
                .where(open_ones, d.c.lane == lane, d.c.requested_at_ms.is_not(None))
                .order_by(d.c.requested_at_ms)
                .limit(1)
            )
            found.extend(_row(row) for row in connection.execute(oldest).mappings())
    return found


def troubled(url: str, states: Sequence[str] = ("dead_lettered", "uncertain"), limit: int = 100) -> list[Row]:
    """Deliveries that ended in one of `states` (TROUBLED_STATES), the latest first, at most LIST_MAX_ROWS."""
    unknown = sorted(set(states) - set(TROUBLED_STATES))
    if unknown:
        raise ValueError(f"not a troubled state: {', '.join(unknown)}; known: {', '.join(TROUBLED_STATES)}")
    d = books().deliveries
    wanted = select(d).where(d.c.state.in_(states)).order_by(d.c.updated_at_ms.desc()).limit(min(limit, LIST_MAX_ROWS))
    with reading(url) as connection:
        return [_row(row) for row in connection.execute(wanted).mappings()]


def unreadable(url: str, limit: int = 100) -> list[Row]:
    """Records of `mail.events` that were passed over, and gaps that retention left: place and reason."""
    u = books().unreadable
    wanted = (
        select(u.c.partition_number, u.c.log_offset, u.c.at_ms, u.c.reason)
        .order_by(u.c.at_ms.desc(), u.c.partition_number, u.c.log_offset)
        .limit(min(limit, LIST_MAX_ROWS))
    )
    with reading(url) as connection:
        return [_row(row) for row in connection.execute(wanted).mappings()]


def offsets(url: str, topic: str) -> dict[int, int]:
    """The next offset to fold, by partition."""
    o = books().offsets
    with reading(url) as connection:
        found = connection.execute(select(o.c.partition_number, o.c.next_offset).where(o.c.topic == topic))
        return {row.partition_number: row.next_offset for row in found}


def lag(url: str, topic: str, ends: Mapping[int, int]) -> dict[int, int]:
    """Records not folded yet, by partition, for the high watermarks `ends`.

    A topic written in transactions never shows 0 at its very end: the last control record is no message.
    """
    folded = offsets(url, topic)
    return {number: max(0, end - folded.get(number, 0)) for number, end in sorted(ends.items())}


def _counted(url: str, by: Sequence[str], which: Callable[[Any], Any]) -> list[Row]:
    t = books().tallies
    known = ("lane", "tenant", "campaign", "provider", "state")
    if not by or set(by) - set(known):
        raise ValueError(f"count by any of {', '.join(known)}")
    columns = [t.c[name] for name in by]
    total = func.sum(t.c.n)
    wanted = select(*columns, total.label("n")).where(which(t)).group_by(*columns).having(total != 0).order_by(*columns)
    with reading(url) as connection:
        return [{**row, "n": int(row["n"])} for row in connection.execute(wanted).mappings()]


def _lanes() -> Any:
    t = books().tallies
    return select(t.c.lane).where(t.c.state.in_(OPEN_STATES)).group_by(t.c.lane).having(func.sum(t.c.n) > 0)


@contextmanager
def reading(url: str) -> Iterator[Connection]:
    """One read transaction: a consistent view, whatever the ledger writes meanwhile."""
    parsed = database_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        raise ConfigurationError(f"POSTLANE_DATABASE_URL: there is no ledger at {parsed.database} yet")
    engine = open_database(url, read_only=True)
    try:
        with database_errors(), engine.connect() as connection, connection.begin():
            if not _is_ledger(connection, books()):
                raise ConfigurationError("POSTLANE_DATABASE_URL: this database holds no ledger (yet)")
            yield connection
    finally:
        engine.dispose()


def _is_ledger(connection: Connection, made: Books) -> bool:
    return inspect(connection).has_table(made.offsets.name)


def _row(row: Any) -> Row:
    """`*_at_ms` becomes `*_at` in RFC 3339."""
    return {
        (name[: -len("_ms")] if name.endswith("_ms") else name): (_time(value) if name.endswith("_ms") else value)
        for name, value in row.items()
    }


def _event(row: Any) -> Row:
    told = _row(row)
    detail = orjson.loads(told.pop("body"))
    place = {"partition": told.pop("partition_number"), "offset": told.pop("log_offset")}
    return {"at": told.pop("at"), "type": told.pop("type"), **told, **detail, **place}


def _time(unix_ms: int | None) -> str | None:
    if unix_ms is None:
        return None
    at = _EPOCH + timedelta(milliseconds=max(_FIRST_MS, min(unix_ms, _LAST_MS)))
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
