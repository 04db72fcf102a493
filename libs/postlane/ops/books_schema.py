"""The tables of the ledger's database: one declaration for the ledger that writes them and the queries that read them.

Every time is an integer, milliseconds since 1970-01-01 UTC (`_ms`). SQLite tables are clustered by their primary key
(WITHOUT ROWID); PostgreSQL compares identifiers byte by byte (collation "C"), which both makes the index of
`delivery_id` answer "all deliveries of this message" (they start with the message id and a dot) and saves time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

IDENT = Text().with_variant(Text(collation="C"), "postgresql")
OPEN_STATES = ("pending", "scheduled", "held", "sending")
TROUBLED_STATES = ("bounced", "rejected", "expired", "dead_lettered", "uncertain", "discarded")
SCHEMA_TABLE = "ledger_schema"  # one row: the revision of these tables (postlane_ledger.migrate)
SCHEMA_REVISION = "0001"  # the newest that this version knows; a test holds it to the migrations
MAILS = "requested"  # the state under which `tallies` counts mails rather than deliveries


@dataclass(frozen=True, slots=True)
class Books:
    """The tables, under their own names or with the prefix of a rebuild in the making."""

    metadata: MetaData
    messages: Table
    deliveries: Table
    events: Table
    tallies: Table
    unreadable: Table
    offsets: Table

    @property
    def tables(self) -> tuple[Table, ...]:
        return tuple(getattr(self, field.name) for field in fields(self) if field.name != "metadata")


def books(prefix: str = "") -> Books:
    """The tables named with `prefix`; secondary indexes only where there is none, as a rebuild is copied in the end."""
    metadata = MetaData()
    made = Books(
        metadata,
        _messages(metadata, prefix),
        _deliveries(metadata, prefix),
        _events(metadata, prefix),
        _tallies(metadata, prefix),
        _unreadable(metadata, prefix),
        _offsets(metadata, prefix),
    )
    if not prefix:
        _indexes(made)
    return made


def _table(name: str, metadata: MetaData, *columns: Column[object]) -> Table:
    return Table(name, metadata, *columns, sqlite_with_rowid=False)


def _messages(metadata: MetaData, prefix: str) -> Table:
    return _table(
        f"{prefix}messages",
        metadata,
        Column("message_id", IDENT, primary_key=True),
        Column("tenant", Text, nullable=False),
        Column("lane", Text, nullable=False),
        Column("campaign", Text),
        Column("idempotency_key", Text),
        Column("sender", Text, nullable=False),
        Column("subject", Text, nullable=False),
        Column("recipients", Integer, nullable=False),
        Column("requested_at_ms", BigInteger, nullable=False),
        Column("generations", Integer, nullable=False),
        Column("conflicts", Integer, nullable=False),
    )


def _deliveries(metadata: MetaData, prefix: str) -> Table:
    return _table(
        f"{prefix}deliveries",
        metadata,
        Column("delivery_id", IDENT, primary_key=True),
        Column("message_id", IDENT, nullable=False),
        Column("recipient", Text, nullable=False),
        Column("recipient_domain", Text, nullable=False),
        Column("generation", Integer, nullable=False),
        Column("tenant", Text, nullable=False),
        Column("lane", Text, nullable=False),
        Column("campaign", Text),
        Column("state", Text, nullable=False),
        Column("attempt", Integer, nullable=False),
        Column("hop", Integer, nullable=False),
        Column("doubts", Integer, nullable=False),
        Column("possibly_delivered", Boolean, nullable=False),
        Column("provider", Text),
        Column("reply_code", Integer),
        Column("reply_enhanced", Text),
        Column("reply_text", Text),
        Column("reason", Text),
        Column("next_at_ms", BigInteger),
        Column("requested_at_ms", BigInteger),
        Column("first_at_ms", BigInteger, nullable=False),
        Column("updated_at_ms", BigInteger, nullable=False),
        Column("settled_at_ms", BigInteger),
        Column("replayed_as", Integer),
    )


def _events(metadata: MetaData, prefix: str) -> Table:
    """The timeline; `body` is the JSON of what an event says beyond the other columns."""
    return _table(
        f"{prefix}events",
        metadata,
        Column("partition_number", Integer, primary_key=True, autoincrement=False),
        Column("log_offset", BigInteger, primary_key=True, autoincrement=False),
        Column("message_id", IDENT),
        Column("delivery_id", IDENT),
        Column("type", Text, nullable=False),
        Column("at_ms", BigInteger, nullable=False),
        Column("body", Text, nullable=False),
    )


def _tallies(metadata: MetaData, prefix: str) -> Table:
    """How many deliveries stand in each state: kept by difference with the rows, so that nobody has to count.

    Per partition of the log, so that two ledgers never wait for each other's counts; "" is none.
    """
    return _table(
        f"{prefix}tallies",
        metadata,
        Column("partition_number", Integer, primary_key=True, autoincrement=False),
        Column("lane", IDENT, primary_key=True),
        Column("tenant", IDENT, primary_key=True),
        Column("campaign", IDENT, primary_key=True),
        Column("provider", IDENT, primary_key=True),
        Column("state", IDENT, primary_key=True),
        Column("n", BigInteger, nullable=False),
    )


def _unreadable(metadata: MetaData, prefix: str) -> Table:
    """Records that are no event that this version knows; passed over, and kept here (the head of their bytes)."""
    return _table(
        f"{prefix}unreadable",
        metadata,
        Column("partition_number", Integer, primary_key=True, autoincrement=False),
        Column("log_offset", BigInteger, primary_key=True, autoincrement=False),
        Column("at_ms", BigInteger, nullable=False),
        Column("reason", Text, nullable=False),
        Column("record_key", LargeBinary),
        Column("record_value", LargeBinary),
    )


def _offsets(metadata: MetaData, prefix: str) -> Table:
    """The next offset to fold, in the transaction of the rows: what makes the fold exactly-once."""
    return _table(
        f"{prefix}offsets",
        metadata,
        Column("topic", IDENT, primary_key=True),
        Column("partition_number", Integer, primary_key=True, autoincrement=False),
        Column("next_offset", BigInteger, nullable=False),
        Column("updated_at_ms", BigInteger, nullable=False),
    )


def _indexes(made: Books) -> None:
    """Few, and partial where they can be: each one is paid for by every event."""
    d = made.deliveries.c
    opened = text(f"state IN ({', '.join(repr(state) for state in OPEN_STATES)})")
    troubled = text(f"state IN ({', '.join(repr(state) for state in TROUBLED_STATES)})")
    Index("ix_events_message", made.events.c.message_id)
    Index("ix_deliveries_open", d.lane, d.requested_at_ms, sqlite_where=opened, postgresql_where=opened)
    Index("ix_deliveries_troubled", d.state, d.updated_at_ms, sqlite_where=troubled, postgresql_where=troubled)
