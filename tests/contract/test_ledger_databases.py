"""What the ledger promises on every database: the tables are the fold of the log, exactly once, whatever happens."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, event, text

from postlane.config import ConfigurationError
from postlane.core import events as ev
from postlane.core.identity import delivery_id
from postlane.eventlog.ports import Received
from postlane.ops import books as queries
from postlane.ops.books_database import DatabaseRefused, DatabaseUnavailable, open_database
from postlane.ops.books_schema import books
from postlane_ledger import fold as fold_module
from postlane_ledger.batch import prepare
from postlane_ledger.fold import Fold, Overtaken
from postlane_ledger.migrate import VERSION_TABLE, upgrade
from tests.ledger_corpus import TOPIC, assert_is_fold_of, corpus, dump, record
from tests.throwaway_postgresql import NoPostgreSQL, ThrowawayPostgreSQL

PARTITIONS = 3


@pytest.fixture(scope="session")
def postgresql() -> Iterator[ThrowawayPostgreSQL]:
    try:
        cluster = ThrowawayPostgreSQL()
        cluster.start()
    except NoPostgreSQL as reason:
        pytest.skip(f"no PostgreSQL: {reason}")
    yield cluster
    cluster.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    cluster: ThrowawayPostgreSQL = request.getfixturevalue("postgresql")
    return cluster.new_database()


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    made = open_database(url)
    upgrade(made)
    yield made
    made.dispose()


class Reader:
    """Folds a log as the ledger does: from the stored offsets, in batches of the sizes that `sizes` gives."""

    def __init__(self, engine: Engine, records: Sequence[Received]) -> None:
        self.records = records
        self.fold = Fold(engine, books(), TOPIC, lambda: 0)
        self.fold.begin(dict.fromkeys(range(PARTITIONS), 0))

    def left(self, stored: dict[int, int]) -> list[Received]:
        return [item for item in self.records if item.offset >= stored[item.partition]]

    def step(self, size: int) -> bool:
        """One batch; whether there was one. Raises what `Fold.apply` raises."""
        stored = self.fold.offsets()
        left = self.left(stored)[:size]
        if left:
            self.fold.apply(prepare(left), stored)
        return bool(left)

    def run(self, sizes: Callable[[], int]) -> None:
        while self.step(sizes()):
            pass


def test_the_schema_is_what_the_declaration_says(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, books().metadata) == []


@pytest.mark.parametrize("seed", range(4))
def test_any_split_into_batches_gives_the_fold_of_the_log(engine: Engine, seed: int) -> None:
    records, dice = corpus(seed, mails=40), random.Random(seed)
    Reader(engine, records).run(lambda: dice.choice((1, 2, 7, 40, 200)))
    assert_is_fold_of(engine, records)


@pytest.mark.parametrize(("most", "left"), [(500, 3_000), (10**9, None)], ids=["collected", "control"])
def test_small_batches_leave_no_garbage_behind(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, most: int, left: int | None
) -> None:
    """The database library leaves cycles for each batch; the process's thresholds let 120 MB of them come together."""
    monkeypatch.setattr("postlane_ledger.fold.GARBAGE_MAX", most)
    reader = Reader(engine, corpus(3, mails=200))
    thresholds = gc.get_threshold()
    gc.collect()
    gc.set_threshold(10**8, 20, 100)
    try:
        reader.run(lambda: 2)
        made = gc.get_count()[0]
    finally:
        gc.set_threshold(*thresholds)
    assert made < left if left is not None else made > 3_000


class Boom(Exception):
    """The process dies here."""


def statements_of(engine: Engine, action: Callable[[], Any], fail_at: int | None) -> int:
    """Run `action`; the statement number `fail_at` (from 0; COMMIT is the last) raises. Returns how many there were."""
    seen = 0

    def count(*_: Any) -> None:
        nonlocal seen
        if seen == fail_at:
            raise Boom
        seen += 1

    event.listen(engine, "before_cursor_execute", count)
    event.listen(engine, "commit", count)
    try:
        action()
    except Boom:
        pass
    finally:
        event.remove(engine, "before_cursor_execute", count)
        event.remove(engine, "commit", count)
    return seen


def test_dying_at_any_statement_changes_nothing_or_everything(engine: Engine) -> None:
    records = corpus(7, mails=12)
    reader = Reader(engine, records)
    reader.step(40)
    stored, before = reader.fold.offsets(), dump(engine)
    batch = prepare(reader.left(stored))
    fail_at = 0
    while True:
        statements_of(engine, lambda: reader.fold.apply(batch, stored), fail_at)
        if reader.fold.offsets() != stored:
            break
        assert dump(engine) == before
        fail_at += 1
    assert fail_at >= 7  # offsets of three partitions, two reads, writes, commit
    assert_is_fold_of(engine, records)


def test_a_batch_folded_twice_counts_once(engine: Engine) -> None:
    records = corpus(3, mails=10)
    reader = Reader(engine, records)
    stored = reader.fold.offsets()
    reader.fold.apply(prepare(records), stored)
    with pytest.raises(Overtaken):
        reader.fold.apply(prepare(records), stored)
    assert_is_fold_of(engine, records)


def test_two_ledgers_on_one_database_fold_each_event_once(url: str, engine: Engine) -> None:
    """Both read everything, as a zombie and its successor would; each event is folded by one of them."""
    records = corpus(11, mails=60)
    other = open_database(url)
    overtaken = []

    def ledger(which: Engine, seed: int) -> None:
        dice, reader = random.Random(seed), Reader(which, records)
        while True:
            try:
                if not reader.step(dice.choice((5, 20))):
                    return
            except Overtaken:
                overtaken.append(seed)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(ledger, engine, 1), pool.submit(ledger, other, 2)]:
            done.result(timeout=120)
    other.dispose()
    assert_is_fold_of(engine, records)


def test_a_server_that_crashes_amid_the_fold_is_only_away(postgresql: ThrowawayPostgreSQL) -> None:
    """Commits are asynchronous, so a crash may take the last ones: their offsets go with their rows."""
    engine = open_database(postgresql.new_database())
    upgrade(engine)
    records = corpus(13, mails=60)
    reader = Reader(engine, records)
    assert reader.step(100)
    postgresql.stop()
    with pytest.raises(DatabaseUnavailable):
        reader.step(100)
    postgresql.start()
    reader.run(lambda: 50)
    assert_is_fold_of(engine, records)
    engine.dispose()


def hostile() -> list[Received]:
    """Well-formed events whose values fit no column."""
    base = {"message_id": "m", "delivery_id": "m.1.0", "recipient": "a@b", "at": "2026-01-01T00:00:00Z"}
    odd = [
        {"message_id": "m" * 100_000, "delivery_id": "m" * 100_000 + ".1.0"},
        {"message_id": ""},
        {"message_id": "m\x00", "delivery_id": "m\x00.1.0"},
        {"delivery_id": "of another.1.0"},
        {"attempt": 2**63},
        {"hop": -1},
        {"generation": 2**40},
        {"reply": {"code": 2**70, "text": ""}, "type": "Delivered"},
    ]
    huge = b'{"type":"Undecodable","topic":"t","partition":0,"reason":"r","at":"2026-01-01T00:00:00Z","offset":%s}'
    records = [Received(TOPIC, 0, 100, 1, b"k", huge % (b"9" * 30), ())]
    for offset, change in enumerate(odd):
        try:
            value = orjson.dumps({**base, "type": "Routed", "lane": "bulk", **change})
        except TypeError:  # beyond 64 bits
            value = orjson.dumps({**base, "type": "Routed", "lane": "bulk"})[:-1] + b',"attempt":' + b"9" * 60 + b"}"
        records.append(Received(TOPIC, 0, offset, 1, b"k", value, ()))
    return sorted(records, key=lambda item: item.offset)


def test_values_that_fit_no_column_are_kept_as_unreadable(engine: Engine, url: str) -> None:
    records = hostile()
    Reader(engine, records).run(lambda: 100)
    assert {row["log_offset"] for row in queries.unreadable(url)} == {item.offset for item in records}
    assert dump(engine)["events"] == []


def test_texts_of_every_sort_and_length_are_folded(engine: Engine, url: str) -> None:
    message, to = "0192", "x" * 5_000 + "@Example.ORG"
    ids = {
        "message_id": message,
        "delivery_id": delivery_id(message, to),
        "recipient": to,
        "at": "2026-01-01T00:00:00Z",
    }
    wild = "\x00\ud7ff\U0010ffff'\";--\n\t\\N\\." * 400
    told = [
        ev.Requested.model_validate(
            {**ids, "tenant": wild, "lane": wild, "campaign": wild, "key": wild, "sender": wild, "subject": wild,
             "recipients": 1, "requested_at": "9999-12-31T23:59:59.999999Z"}
        ),
        ev.Routed.model_validate({**ids, "lane": wild}),
        ev.Attempted.model_validate({**ids, "provider": wild, "attempt": 1}),
        ev.Bounced.model_validate(
            {**ids, "at": "0001-01-01T00:00:00+14:00", "provider": wild, "reason": wild,
             "reply": {"code": 550, "enhanced": wild, "text": wild}}
        ),
    ]  # fmt: skip
    records = [record(0, offset, event) for offset, event in enumerate(told)]
    Reader(engine, records).run(lambda: 3)
    assert_is_fold_of(engine, records)
    found = queries.story(url, message)
    assert found is not None
    assert [row["type"] for row in found["timeline"]] == ["Requested", "Routed", "Attempted", "Bounced"]
    assert found["deliveries"][0]["state"] == "bounced"


def test_a_newer_version_of_an_event_is_unreadable_here(engine: Engine, url: str) -> None:
    message = "0193"
    known = record(0, 0, ev.Conflicted(message_id=message, at="2026-01-01T00:00:00Z"))  # type: ignore[arg-type]
    newer = Received(TOPIC, 0, 1, 1, b"k", known.value, [("ce_type", b"postlane.Conflicted.v2")])
    Reader(engine, [known, newer]).run(lambda: 10)
    (row,) = queries.unreadable(url)
    assert (row["log_offset"], "version 2" in row["reason"]) == (1, True)


def test_a_record_that_the_database_refuses_is_found_and_passed_over(
    engine: Engine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = list(corpus(5, mails=15, poison=False))
    bad = records[17]
    real = fold_module.fold

    def refusing(batch: Any, *rows: Any) -> Any:
        if any((entry.partition, entry.offset) == (bad.partition, bad.offset) for entry in batch.entries):
            raise DatabaseRefused("value out of range")
        return real(batch, *rows)

    monkeypatch.setattr(fold_module, "fold", refusing)
    Reader(engine, records).run(lambda: 1_000)
    (row,) = queries.unreadable(url)
    assert (row["partition_number"], row["log_offset"]) == (bad.partition, bad.offset)
    assert "value out of range" in row["reason"]
    assert len(dump(engine)["events"]) == len(records) - 1


def test_a_refusal_that_is_no_record_s_fault_is_raised(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: Any) -> Any:
        raise DatabaseRefused("permission denied for table events")

    monkeypatch.setattr(fold_module, "fold", refusing)
    reader = Reader(engine, corpus(5, mails=2))
    with pytest.raises(DatabaseRefused, match="permission denied"):
        reader.run(lambda: 1_000)
    assert set(reader.fold.offsets().values()) == {0}


def test_a_gap_is_skipped_once_and_written_down(engine: Engine, url: str) -> None:
    reader = Reader(engine, [])
    reader.fold.skip(1, 0, 500, "retention took offsets 0 to 499 before they were folded")
    with pytest.raises(Overtaken):
        reader.fold.skip(1, 0, 500, "again")
    assert reader.fold.offsets()[1] == 500
    (row,) = queries.unreadable(url)
    assert "0 to 499" in row["reason"]


def test_a_newer_schema_is_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="newer"):
        upgrade(engine)


def test_ledgers_that_start_together_take_turns_to_migrate(url: str) -> None:
    engines = [open_database(url) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(upgrade, engines, timeout=120))) == 1
    for made in engines:
        made.dispose()


def test_old_timeline_rows_go_a_bounded_number_at_a_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_module, "PRUNE_MAX_ROWS", 10)
    records = corpus(9, mails=40, poison=False)
    reader = Reader(engine, records)
    reader.run(lambda: 1_000)
    before = dump(engine)
    cutoff = sorted(row[5] for row in before["events"])[len(records) // 2]
    assert reader.fold.prune(range(PARTITIONS), cutoff) <= 10 * PARTITIONS
    while reader.fold.prune(range(PARTITIONS), cutoff):
        pass
    after = dump(engine)
    kept = {row[:2] for row in after["events"]}
    young = {row[:2] for row in before["events"] if row[5] >= cutoff}
    assert young <= kept
    assert len(kept) < len(records)
    assert {name: after[name] for name in ("messages", "deliveries", "tallies", "offsets")} == {
        name: before[name] for name in ("messages", "deliveries", "tallies", "offsets")
    }


def test_status_questions_are_answered_from_the_books(engine: Engine, url: str) -> None:
    records = corpus(21, mails=60)
    Reader(engine, records).run(lambda: 100)
    tables = dump(engine)
    by_state: dict[tuple[str, str], int] = {}
    for row in tables["deliveries"]:
        by_state[row[6], row[8]] = by_state.get((row[6], row[8]), 0) + 1
    assert {(row["lane"], row["state"]): row["n"] for row in queries.counts(url)} == by_state
    assert sum(row["n"] for row in queries.mails(url)) == len(tables["messages"])
    opened = [row for row in tables["deliveries"] if row[8] in ("pending", "scheduled", "held", "sending")]
    oldest = {row["lane"]: row["delivery_id"] for row in queries.oldest_open(url)}
    for lane, ident in oldest.items():
        first = min(row[19] for row in opened if row[6] == lane)
        assert first == next(row[19] for row in opened if row[0] == ident)
    assert set(oldest) == {row[6] for row in opened}
    gone = {row["delivery_id"] for row in queries.troubled(url, limit=1_000)}
    assert gone == {row[0] for row in tables["deliveries"] if row[8] in ("dead_lettered", "uncertain")}
    ends = {partition: offset + 5 for _, partition, offset in tables["offsets"]}
    assert queries.lag(url, TOPIC, ends) == dict.fromkeys(range(PARTITIONS), 5)
    assert queries.story(url, "nobody") is None


def test_asking_never_writes(engine: Engine, url: str) -> None:
    reading = open_database(url, read_only=True)
    with pytest.raises(Exception, match=r"(?i)read.?only"), reading.begin() as connection:
        connection.execute(text("DELETE FROM offsets"))
    reading.dispose()


def test_a_database_without_a_ledger_is_a_clear_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="POSTLANE_DATABASE_URL"):
        queries.counts(url)


@pytest.mark.parametrize("url", ["mysql://u:hunter2@h/x", "nonsense hunter2", ""])
def test_a_url_of_another_sort_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_database(url)
    assert "hunter2" not in str(refused.value)
