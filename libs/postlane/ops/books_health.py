"""Questions of the doctor to the ledger's database, beside those of status (`books.py`); the same rules hold."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import func, inspect, select, text

from postlane.ops.books import reading
from postlane.ops.books_schema import SCHEMA_TABLE, books

SENDERS_LOOKED_AT_MAX = 2_000


def schema(url: str) -> str | None:
    """The revision of its tables."""
    with reading(url) as connection:
        if not inspect(connection).has_table(SCHEMA_TABLE):
            return None
        found = connection.execute(text(f"SELECT version_num FROM {SCHEMA_TABLE}")).scalar()  # noqa: S608 a constant
    return None if found is None else str(found)


def waiting(url: str, state: str) -> tuple[int, datetime | None]:
    """How many deliveries ended in `state`, and since when the one that has waited longest does."""
    d, t = books().deliveries, books().tallies
    with reading(url) as connection:
        count = int(connection.execute(select(func.sum(t.c.n)).where(t.c.state == state)).scalar() or 0)
        if not count:
            return 0, None
        since = connection.execute(select(func.min(d.c.updated_at_ms)).where(d.c.state == state)).scalar()
    return count, None if since is None else datetime.fromtimestamp(since / 1000, UTC)


def unreadable_count(url: str) -> int:
    """Records that were passed over."""
    with reading(url) as connection:
        return int(connection.execute(select(func.count()).select_from(books().unreadable)).scalar() or 0)


def sender_domains(url: str, limit: int) -> tuple[str, ...]:
    """The domains that some (of UUIDv7: the latest) mails were sent from, most used first; a look at one index."""
    m = books().messages
    latest = select(m.c.sender).order_by(m.c.message_id.desc()).limit(SENDERS_LOOKED_AT_MAX)
    counted: dict[str, int] = {}
    with reading(url) as connection:
        for sender in connection.execute(latest).scalars():
            domain = str(sender).rpartition("@")[2].strip("> ").lower()
            if domain:
                counted[domain] = counted.get(domain, 0) + 1
    return tuple(sorted(counted, key=lambda domain: (-counted[domain], domain))[:limit])
