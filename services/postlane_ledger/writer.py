"""Many rows at once, the way each database takes them fastest; the statements are compiled once.

SQLite: executemany of tuples. PostgreSQL: COPY, straight into a table where rows are new, else into a temporary table
and from there in one INSERT … ON CONFLICT.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Protocol

from sqlalchemy import Column, Connection, Engine, Table, bindparam, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Text

from postlane.ops.books_schema import Books
from postlane_ledger.batch import Changes

READ_MAX_IDS = 5_000  # of one query; SQLite takes at most 32,766 parameters


class Writer(Protocol):
    """Reads the rows that a batch touches and writes what became of them, inside the caller's transaction."""

    def read(self, connection: Connection, table: Table, key: Column[Any], ids: Collection[str]) -> dict[str, Any]:
        """The rows whose `key` is among `ids`, by key."""

    def write(self, connection: Connection, changes: Changes) -> None: ...


def writer(engine: Engine, books: Books) -> Writer:
    """The writer for the engine's database."""
    return _PostgreSQL(books) if engine.dialect.name == "postgresql" else _SQLite(books)


def _rows(table: Table, rows: Sequence[Mapping[str, Any]]) -> Iterable[tuple[Any, ...]]:
    return map(itemgetter(*(column.name for column in table.columns)), rows)


def _tallies(changes: Changes) -> list[tuple[Any, ...]]:
    """In key order, so that two writers meet rows in the same order."""
    return [(*tally, n) for tally, n in sorted(changes.tallies.items())]


class _SQLite:
    def __init__(self, books: Books) -> None:
        self._books = books
        self._upserts = {table.name: _sqlite_upsert(table) for table in books.tables}
        self._tally = _sqlite_upsert(books.tallies, adding="n")

    def read(self, connection: Connection, table: Table, key: Column[Any], ids: Collection[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        wanted = sorted(ids)
        for start in range(0, len(wanted), READ_MAX_IDS):
            rows = connection.execute(select(table).where(key.in_(wanted[start : start + READ_MAX_IDS])))
            found.update({row[key.name]: dict(row) for row in rows.mappings()})
        return found

    def write(self, connection: Connection, changes: Changes) -> None:
        b = self._books
        self._many(connection, self._upserts[b.events.name], changes.events)
        self._many(connection, self._upserts[b.messages.name], _rows(b.messages, changes.messages))
        self._many(connection, self._upserts[b.deliveries.name], _rows(b.deliveries, changes.deliveries))
        self._many(connection, self._upserts[b.unreadable.name], changes.unreadable)
        self._many(connection, self._tally, _tallies(changes))

    def _many(self, connection: Connection, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        taken = rows if isinstance(rows, list) else list(rows)
        if taken:
            connection.exec_driver_sql(sql, taken)


class _PostgreSQL:
    def __init__(self, books: Books) -> None:
        self._books = books
        self._upserts = {table.name: _postgresql_upsert(table) for table in (books.messages, books.deliveries)}
        self._tally = _postgresql_upsert(books.tallies, adding="n")

    def read(self, connection: Connection, table: Table, key: Column[Any], ids: Collection[str]) -> dict[str, Any]:
        array = bindparam("ids", sorted(ids), type_=ARRAY(Text))
        rows = connection.execute(select(table).where(key == array.any_()))
        return {row[key.name]: dict(row) for row in rows.mappings()}

    def write(self, connection: Connection, changes: Changes) -> None:
        b = self._books
        _copy(connection, b.events, b.events.name, changes.events)
        _copy(connection, b.unreadable, b.unreadable.name, changes.unreadable)
        self._merge(connection, b.messages, self._upserts[b.messages.name], _rows(b.messages, changes.messages))
        self._merge(connection, b.deliveries, self._upserts[b.deliveries.name], _rows(b.deliveries, changes.deliveries))
        self._merge(connection, b.tallies, self._tally, _tallies(changes))

    def _merge(self, connection: Connection, table: Table, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        taken = rows if isinstance(rows, list) else list(rows)
        if not taken:
            return
        stage = f"stage_{table.name}"
        connection.exec_driver_sql(
            f"CREATE TEMPORARY TABLE IF NOT EXISTS {stage} (LIKE {table.name}) ON COMMIT DELETE ROWS"
        )
        _copy(connection, table, stage, taken)
        connection.exec_driver_sql(sql)


def _copy(connection: Connection, table: Table, name: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if not rows:
        return
    columns = ", ".join(column.name for column in table.columns)
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(f"COPY {name} ({columns}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def _sqlite_upsert(table: Table, adding: str | None = None) -> str:
    insert = sqlite.insert(table).values({c.name: bindparam(c.name) for c in table.columns})
    keys = [c.name for c in table.primary_key]
    changed: dict[str, Any] = {c.name: insert.excluded[c.name] for c in table.columns if c.name not in keys}
    if adding is not None:
        changed = {adding: table.c[adding] + insert.excluded[adding]}
    statement = insert.on_conflict_do_update(index_elements=keys, set_=changed)
    compiled = statement.compile(dialect=sqlite.dialect(paramstyle="qmark"))
    if [str(name) for name in compiled.positiontup or ()] != [c.name for c in table.columns]:
        raise RuntimeError(f"{table.name}: parameters are not in the order of the columns")
    return str(compiled)


def _postgresql_upsert(table: Table, adding: str | None = None) -> str:
    names = [c.name for c in table.columns]
    keys = ", ".join(c.name for c in table.primary_key)
    changed = [name for name in names if not table.c[name].primary_key]
    settings = ", ".join(f"{name} = excluded.{name}" for name in changed)
    if adding is not None:
        settings = f"{adding} = {table.name}.{adding} + excluded.{adding}"
    columns = ", ".join(names)
    return (
        f"INSERT INTO {table.name} ({columns}) SELECT {columns} FROM stage_{table.name} "  # noqa: S608 - own names
        f"ORDER BY {keys} ON CONFLICT ({keys}) DO UPDATE SET {settings}"
    )
