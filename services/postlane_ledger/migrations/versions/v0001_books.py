"""The books: messages, deliveries, timeline, counts, unreadable records, offsets."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

IDENT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
OPENED = sa.text("state IN ('pending', 'scheduled', 'held', 'sending')")
TROUBLED = sa.text("state IN ('bounced', 'rejected', 'expired', 'dead_lettered', 'uncertain', 'discarded')")


def upgrade() -> None:
    """Create everything."""
    _table(
        "messages",
        sa.Column("message_id", IDENT, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("lane", sa.Text, nullable=False),
        sa.Column("campaign", sa.Text),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("sender", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("recipients", sa.Integer, nullable=False),
        sa.Column("requested_at_ms", sa.BigInteger, nullable=False),
        sa.Column("generations", sa.Integer, nullable=False),
        sa.Column("conflicts", sa.Integer, nullable=False),
    )
    _table(
        "deliveries",
        sa.Column("delivery_id", IDENT, primary_key=True),
        sa.Column("message_id", IDENT, nullable=False),
        sa.Column("recipient", sa.Text, nullable=False),
        sa.Column("recipient_domain", sa.Text, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("lane", sa.Text, nullable=False),
        sa.Column("campaign", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("hop", sa.Integer, nullable=False),
        sa.Column("doubts", sa.Integer, nullable=False),
        sa.Column("possibly_delivered", sa.Boolean, nullable=False),
        sa.Column("provider", sa.Text),
        sa.Column("reply_code", sa.Integer),
        sa.Column("reply_enhanced", sa.Text),
        sa.Column("reply_text", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("next_at_ms", sa.BigInteger),
        sa.Column("requested_at_ms", sa.BigInteger),
        sa.Column("first_at_ms", sa.BigInteger, nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
        sa.Column("settled_at_ms", sa.BigInteger),
        sa.Column("replayed_as", sa.Integer),
    )
    _table(
        "events",
        *_place(),
        sa.Column("message_id", IDENT),
        sa.Column("delivery_id", IDENT),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    _table(
        "tallies",
        sa.Column("partition_number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("lane", IDENT, primary_key=True),
        sa.Column("tenant", IDENT, primary_key=True),
        sa.Column("campaign", IDENT, primary_key=True),
        sa.Column("provider", IDENT, primary_key=True),
        sa.Column("state", IDENT, primary_key=True),
        sa.Column("n", sa.BigInteger, nullable=False),
    )
    _table(
        "unreadable",
        *_place(),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("record_key", sa.LargeBinary),
        sa.Column("record_value", sa.LargeBinary),
    )
    _table(
        "offsets",
        sa.Column("topic", IDENT, primary_key=True),
        sa.Column("partition_number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_events_message", "events", ["message_id"])
    _partial("ix_deliveries_open", ["lane", "requested_at_ms"], OPENED)
    _partial("ix_deliveries_troubled", ["state", "updated_at_ms"], TROUBLED)


def downgrade() -> None:
    """The tables can be folded again from the log; going back drops them."""
    for name in ("offsets", "unreadable", "tallies", "events", "deliveries", "messages"):
        op.drop_table(name)


def _table(name: str, *columns: sa.Column) -> None:  # type: ignore[type-arg]
    op.create_table(name, *columns, sqlite_with_rowid=False)


def _place() -> tuple[sa.Column[int], sa.Column[int]]:
    return (
        sa.Column("partition_number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("log_offset", sa.BigInteger, primary_key=True, autoincrement=False),
    )


def _partial(name: str, columns: list[str], where: sa.TextClause) -> None:
    op.create_index(name, "deliveries", columns, sqlite_where=where, postgresql_where=where)
