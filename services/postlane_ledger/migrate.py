"""The schema of the ledger's database: brought up to date at start, and never used when it is newer than we are."""

from __future__ import annotations

import logging
from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from postlane.config import ConfigurationError
from postlane.ops.books_database import DatabaseRefused, database_errors
from postlane.ops.books_schema import SCHEMA_TABLE

VERSION_TABLE = SCHEMA_TABLE
_ADVISORY_LOCK = 7_305_808_869_229_538_405  # one migration at a time; any number that nobody else uses


def upgrade(engine: Engine) -> str:
    """Create or migrate the tables in one transaction; returns the revision.

    Two ledgers that start together take turns. Raises ConfigurationError when the schema is newer than this version
    or the database forbids the change, DatabaseUnavailable.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of itself at every start
    config = Config()
    config.set_main_option("script_location", str(files("postlane_ledger") / "migrations"))
    script = ScriptDirectory.from_config(config)
    head = script.get_current_head() or ""
    try:
        with database_errors(), engine.begin() as connection:
            _one_at_a_time(connection)
            _refuse_newer(connection, {revision.revision for revision in script.walk_revisions()})
            config.attributes["connection"] = connection
            command.upgrade(config, head)
    except DatabaseRefused as refusal:
        raise ConfigurationError(f"POSTLANE_DATABASE_URL: the schema cannot be migrated: {refusal}") from None
    return head


def _one_at_a_time(connection: Connection) -> None:
    """SQLite: the transaction began IMMEDIATE, which is lock enough."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})


def _refuse_newer(connection: Connection, known: set[str]) -> None:
    current = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
    if current is not None and current not in known:
        raise ConfigurationError(
            f"the ledger's database has schema {current}, which this version does not know (up to {max(known)}): "
            "a newer Postlane was here; upgrade this service, or give it another POSTLANE_DATABASE_URL"
        )
