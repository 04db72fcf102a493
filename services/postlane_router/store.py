"""The memory of what was accepted: key -> digest, a cache of `mail.seen` that knows how much of it it has applied.

The log is the truth; a store may be behind it (it catches up) and may be thrown away (it is rebuilt).
"""

from __future__ import annotations

import logging
import shutil
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rocksdict import BlockBasedOptions, Cache, Options, Rdict, WriteBatch

log = logging.getLogger("postlane.router.store")

DAY_S = 86_400
_DAY = "day-"
_POSITION = struct.Struct(">qq")
_BLOOM_BITS = 10
_ORIGIN = b"origin"


class StoreBroken(Exception):
    """The store cannot be read or written any more; it is a cache: `reset` it and restore from the log."""


class StoreTaken(Exception):
    """Another process has the store open."""


class Applied(NamedTuple):
    """How much of one partition of `mail.seen` a store has applied: up to `position`, `entries` of them real."""

    position: int
    entries: int


class Entry(NamedTuple):
    """One accepted key; `day` counts from 1970 and says when it is forgotten."""

    key: bytes
    digest: bytes
    day: int


class SeenStore(Protocol):
    """What the router asks of its memory; an implementation raises StoreBroken where it cannot answer."""

    def find(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """The digest of each key, None where it is not known."""

    def add(self, partition: int, entries: Iterable[Entry], applied: Applied) -> None:
        """Entries of one partition and how much of it is applied with them, all or nothing."""

    def applied(self, partition: int) -> Applied | None:
        """None where nothing was ever applied."""

    def origin(self) -> str | None:
        """Which topic the positions belong to; None before the first `adopt`."""

    def adopt(self, origin: str) -> None:
        """The positions belong to the topic of this id."""

    def forget(self, before_day: int) -> None:
        """Drop the entries of earlier days."""

    def keys(self) -> int:
        """How many keys are known (an estimate)."""

    def reset(self) -> None:
        """Throw everything away."""

    def close(self) -> None: ...


class MemoryStore:
    """A SeenStore in dictionaries, for simulation and tests; what it holds is lost with it."""

    def __init__(self) -> None:
        self._entries: dict[bytes, tuple[bytes, int]] = {}
        self._applied: dict[int, Applied] = {}
        self._origin: str | None = None

    def find(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        known = self._entries
        return [known[key][0] if key in known else None for key in keys]

    def add(self, partition: int, entries: Iterable[Entry], applied: Applied) -> None:
        for key, digest, day in entries:
            self._entries[key] = digest, day
        self._applied[partition] = applied

    def applied(self, partition: int) -> Applied | None:
        return self._applied.get(partition)

    def origin(self) -> str | None:
        return self._origin

    def adopt(self, origin: str) -> None:
        self._origin = origin

    def forget(self, before_day: int) -> None:
        self._entries = {key: entry for key, entry in self._entries.items() if entry[1] >= before_day}

    def keys(self) -> int:
        return len(self._entries)

    def reset(self) -> None:
        self._entries.clear()
        self._applied.clear()
        self._origin = None

    def close(self) -> None:
        """Nothing to let go."""


class RocksStore:
    """A SeenStore in RocksDB: one column family per day, so that forgetting is dropping a family.

    Writes are not synced: a process that dies loses nothing, a machine that dies loses the newest entries together
    with the position, and the store catches up.
    """

    def __init__(self, path: Path, cache_bytes: int, write_buffer_bytes: int) -> None:
        """Opens or makes the store in `path`; a damaged one is thrown away. Raises StoreTaken."""
        self._path = path
        self._cache = Cache(cache_bytes)
        self._write_buffer_bytes = write_buffer_bytes
        self._db: Any = None
        self._days: dict[int, Any] = {}
        try:
            self._open()
        except StoreTaken:
            raise
        except Exception as error:
            log.warning("the store is damaged and will be rebuilt", extra={"path": str(path), "error": str(error)})
            self.reset()

    def find(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        found: list[bytes | None] = [None] * len(keys)
        if not keys:
            return found
        wanted = list(keys)
        try:
            for family in self._days.values():
                for index, digest in enumerate(family.get(wanted)):
                    if digest is not None:
                        found[index] = digest
        except Exception as error:
            raise StoreBroken(str(error)) from error
        return found

    def add(self, partition: int, entries: Iterable[Entry], applied: Applied) -> None:
        try:
            batch = WriteBatch(raw_mode=True)
            handles: dict[int, Any] = {}
            for key, digest, day in entries:
                handle = handles.get(day)
                if handle is None:
                    handle = handles[day] = self._family(day)
                batch.put(key, digest, handle)
            batch.put(_applied_key(partition), _POSITION.pack(*applied))
            self._db.write(batch)
        except Exception as error:
            raise StoreBroken(str(error)) from error

    def applied(self, partition: int) -> Applied | None:
        try:
            value = self._db.get(_applied_key(partition))
        except Exception as error:
            raise StoreBroken(str(error)) from error
        return None if value is None else Applied(*_POSITION.unpack(value))

    def origin(self) -> str | None:
        try:
            value = self._db.get(_ORIGIN)
        except Exception as error:
            raise StoreBroken(str(error)) from error
        return None if value is None else bytes(value).decode()

    def adopt(self, origin: str) -> None:
        try:
            self._db.put(_ORIGIN, origin.encode())
        except Exception as error:
            raise StoreBroken(str(error)) from error

    def forget(self, before_day: int) -> None:
        try:
            for day in [day for day in self._days if day < before_day]:
                self._days.pop(day).close()
                self._db.drop_column_family(f"{_DAY}{day}")
                log.info("forgot the keys of a day", extra={"day": day})
        except Exception as error:
            raise StoreBroken(str(error)) from error

    def keys(self) -> int:
        try:
            counts = [family.property_int_value("rocksdb.estimate-num-keys") for family in self._days.values()]
        except Exception as error:
            raise StoreBroken(str(error)) from error
        return sum(count or 0 for count in counts)

    def reset(self) -> None:
        self.close()
        shutil.rmtree(self._path, ignore_errors=True)
        self._open()

    def close(self) -> None:
        # Each handle is closed: one that a traceback still holds would keep the database, and its lock, open.
        handles, self._days, self._db = [*self._days.values(), self._db], {}, None
        for handle in handles:
            if handle is not None:
                handle.close()

    def _family(self, day: int) -> Any:
        name = f"{_DAY}{day}"
        if day not in self._days:
            self._days[day] = self._db.create_column_family(name, self._family_options())
        return self._db.get_column_family_handle(name)

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        names = Rdict.list_cf(str(self._path)) if (self._path / "CURRENT").exists() else ["default"]
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.create_missing_column_families(True)
        options.set_db_write_buffer_size(self._write_buffer_bytes)
        options.set_keep_log_file_num(4)
        options.set_max_open_files(512)
        families = {name: self._family_options() for name in names}
        try:
            self._db = Rdict(str(self._path), options, column_families=families)
        except Exception as error:
            if "lock" in str(error).lower():
                raise StoreTaken(f"{self._path}: another process has it open ({error})") from None
            raise
        days = [int(name.removeprefix(_DAY)) for name in names if name.startswith(_DAY)]
        self._days = {day: self._db.get_column_family(f"{_DAY}{day}") for day in sorted(days, reverse=True)}

    def _family_options(self) -> Any:
        table = BlockBasedOptions()
        table.set_bloom_filter(_BLOOM_BITS, False)
        table.set_block_cache(self._cache)
        table.set_cache_index_and_filter_blocks(True)
        options = Options(raw_mode=True)
        options.set_block_based_table_factory(table)
        return options


def _applied_key(partition: int) -> bytes:
    return b"applied:%d" % partition
