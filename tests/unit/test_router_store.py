"""One contract for the router's memory, in dictionaries and in RocksDB; what only a disk can suffer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from postlane_router.store import Applied, Entry, MemoryStore, RocksStore, SeenStore, StoreBroken, StoreTaken

MB = 1024 * 1024


def rocks(path: Path) -> RocksStore:
    return RocksStore(path / "seen", 8 * MB, 8 * MB)


@pytest.fixture(params=["memory", "rocksdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SeenStore]:
    made: SeenStore = MemoryStore() if request.param == "memory" else rocks(tmp_path)
    yield made
    made.close()


def entries(day: int, *keys: bytes) -> list[Entry]:
    return [Entry(key, b"d" + key, day) for key in keys]


def test_finds_what_was_added_in_order(store: SeenStore) -> None:
    assert list(store.find([])) == []
    assert list(store.find([b"a", b"b"])) == [None, None]
    store.add(3, entries(100, b"a", b"c"), Applied(7, 2))
    store.add(3, entries(101, b"b"), Applied(9, 3))
    assert list(store.find([b"c", b"x", b"b", b"a"])) == [b"dc", None, b"db", b"da"]
    assert store.applied(3) == Applied(9, 3)
    assert store.applied(4) is None


def test_forgets_by_day(store: SeenStore) -> None:
    for day in (100, 101, 102):
        store.add(0, entries(day, b"%d" % day), Applied(day, 1))
    store.forget(102)
    assert list(store.find([b"100", b"101", b"102"])) == [None, None, b"d102"]
    assert store.applied(0) == Applied(102, 1)


def test_reset(store: SeenStore) -> None:
    store.add(0, entries(100, b"a"), Applied(1, 1))
    store.reset()
    assert list(store.find([b"a"])) == [None]
    assert store.applied(0) is None
    store.add(0, entries(100, b"a"), Applied(1, 1))
    assert list(store.find([b"a"])) == [b"da"]


def test_survives_closing(tmp_path: Path) -> None:
    first = rocks(tmp_path)
    first.add(1, entries(100, b"a"), Applied(5, 1))
    first.add(1, entries(101, b"b"), Applied(6, 2))
    first.close()
    again = rocks(tmp_path)
    assert list(again.find([b"a", b"b"])) == [b"da", b"db"]
    assert again.applied(1) == Applied(6, 2)
    again.forget(101)
    again.close()
    third = rocks(tmp_path)
    assert list(third.find([b"a", b"b"])) == [None, b"db"]
    third.close()


def test_taken_by_another_is_not_thrown_away(tmp_path: Path) -> None:
    first = rocks(tmp_path)
    first.add(1, entries(100, b"a"), Applied(5, 1))
    with pytest.raises(StoreTaken):
        rocks(tmp_path)
    assert list(first.find([b"a"])) == [b"da"]
    first.close()


@pytest.mark.parametrize("victim", ["CURRENT", "MANIFEST"])
def test_a_damaged_store_is_thrown_away(tmp_path: Path, victim: str) -> None:
    first = rocks(tmp_path)
    first.add(1, entries(100, b"a"), Applied(5, 1))
    first.close()
    for path in (tmp_path / "seen").glob(f"{victim}*"):
        path.write_bytes(b"\x00garbage")
    again = rocks(tmp_path)
    assert again.applied(1) is None
    again.add(1, entries(100, b"b"), Applied(6, 1))
    assert list(again.find([b"b"])) == [b"db"]
    again.close()


def test_a_flipped_bit_is_told_not_believed(tmp_path: Path) -> None:
    first = rocks(tmp_path)
    keys = [b"%032d" % n for n in range(20_000)]
    first.add(1, entries(100, *keys), Applied(5, len(keys)))
    first._db.flush()
    first._days[100].flush()
    first.close()
    tables = sorted((tmp_path / "seen").glob("*.sst"), key=lambda path: path.stat().st_size)
    data = bytearray(tables[-1].read_bytes())
    for place in range(1000, len(data) // 2, 997):
        data[place] ^= 0x10
    tables[-1].write_bytes(data)
    again = rocks(tmp_path)
    try:
        found = again.find(keys)
    except StoreBroken:
        again.reset()
        found = again.find(keys)
        assert set(found) == {None}
    else:
        assert again.applied(1) is None or list(found) == [b"d" + key for key in keys]
    again.close()


def test_it_knows_whose_positions_it_keeps(store: SeenStore) -> None:
    assert store.origin() is None
    store.adopt("topic-1")
    assert store.origin() == "topic-1"
    store.reset()
    assert store.origin() is None


def test_the_origin_survives_closing(tmp_path: Path) -> None:
    store = rocks(tmp_path)
    store.adopt("topic-1")
    store.close()
    again = rocks(tmp_path)
    assert again.origin() == "topic-1"
    again.close()
