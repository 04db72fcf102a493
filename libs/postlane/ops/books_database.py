"""The connection to the ledger's database, SQLite or PostgreSQL, and what its errors mean to us.

Writers of SQLite begin their transactions IMMEDIATE, so that a second writer waits instead of failing half-way.
Durability is relaxed on purpose (`synchronous=NORMAL`, `synchronous_commit=off`): the consumed offsets live in the
same transaction as the rows, so a tail that a power cut takes is folded again from the log, exactly once.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.pool import NullPool, QueuePool

from postlane.config import ConfigurationError

BUSY_TIMEOUT_S = 20.0
BUSY_WAIT_S = 0.02
CONNECT_TIMEOUT_S = 10
CACHE_KIB = 64 * 1024  # of SQLite, per writer
WAL_PAGES = 16_384  # 64 MiB: pages that batch after batch touches reach the file once, not each time
STATEMENT_TIMEOUT_MS = 300_000


class DatabaseUnavailable(Exception):
    """The database does not answer, is locked or full: passing, try again."""


class DatabaseRefused(Exception):
    """The database refuses these values; trying again changes nothing."""


def database_url(text: str) -> URL:
    """The URL of POSTLANE_DATABASE_URL with the driver that we have. Raises ConfigurationError (without the URL)."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigurationError("POSTLANE_DATABASE_URL: not a database URL; e.g. sqlite:///./postlane.db") from None
    kind = url.get_backend_name()
    if kind in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if kind == "sqlite":
        return url.set(drivername="sqlite+pysqlite")
    raise ConfigurationError(f"POSTLANE_DATABASE_URL: {kind!r} is not supported; use sqlite:/// or postgresql://")


def open_database(text: str, *, read_only: bool = False) -> Engine:
    """An engine for the URL; nothing is connected yet. Raises ConfigurationError."""
    url = database_url(text)
    try:
        if url.get_backend_name() == "sqlite":
            return _sqlite(url, read_only)
        return _postgresql(url, read_only)
    except (ImportError, NoSuchModuleError):
        raise ConfigurationError("POSTLANE_DATABASE_URL: the driver is missing; install postlane[ledger]") from None


def _sqlite(url: URL, read_only: bool) -> Engine:
    path = Path(url.database or "")
    if url.database and url.database != ":memory:" and not read_only:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"POSTLANE_DATABASE_URL: {path.parent}: {error.strerror}") from None
    engine = create_engine(url, poolclass=NullPool if read_only else QueuePool, connect_args=_SQLITE_ARGS)

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        if read_only:
            connection.execute("PRAGMA query_only=ON")
            return
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute(f"PRAGMA wal_autocheckpoint={WAL_PAGES}")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """The mode stays with the file. Its first switch ignores SQLite's busy timeout, so we wait for others ourselves."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(BUSY_WAIT_S)


_SQLITE_ARGS = {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}


def _postgresql(url: URL, read_only: bool) -> Engine:
    options = f"-c synchronous_commit=off -c statement_timeout={STATEMENT_TIMEOUT_MS}"
    if read_only:
        options += " -c default_transaction_read_only=on"
    arguments = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "options": options,
        "application_name": "postlane",
        "prepare_threshold": 2,
        "keepalives_idle": 30,
    }
    if read_only:
        return create_engine(url, poolclass=NullPool, connect_args=arguments)
    return create_engine(url, pool_size=2, pool_pre_ping=True, connect_args=arguments)


@contextmanager
def database_errors() -> Iterator[None]:
    """Translate the drivers' errors, once: DatabaseUnavailable (try again) or DatabaseRefused (never will)."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise DatabaseUnavailable(_said(error.orig)) from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise DatabaseUnavailable(_said(error.orig)) from error
        raise DatabaseRefused(_said(error.orig)) from error
    except SQLAlchemyError as error:
        raise DatabaseRefused(f"{type(error).__name__}: {str(error)[:200]}") from error
    except Exception as error:
        kinds = {base.__name__ for base in type(error).__mro__ if base.__module__.startswith("psycopg")}
        if not kinds:
            raise
        unavailable = "OperationalError" in kinds or "InterfaceError" in kinds
        raise (DatabaseUnavailable if unavailable else DatabaseRefused)(_said(error)) from error


def _said(error: BaseException | None) -> str:
    """The first line of what the driver said: later ones may quote values."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
