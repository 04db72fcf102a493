"""The witness's ledger: what was promised is in it, after any end of the process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from postlane.local.practice.ledger import Ledger, LedgerInUse


def record(delivery: str | None, outcome: str = "accepted", server: str = "primary") -> dict[str, Any]:
    return {"outcome": outcome, "server": server, "delivery": delivery, "rcpts": ["ada@example.com"]}


def seqs(lines: bytes) -> list[int]:
    return [json.loads(line)["seq"] for line in lines.splitlines()]


def test_a_torn_last_line_is_removed_and_its_number_given_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.ndjson"
    ledger = Ledger(path)
    ledger.append(record("a"))
    ledger.append(record("b"))
    ledger.close()
    with path.open("ab") as file:
        file.write(b'{"seq":2,"delivery":"torn"')
    again = Ledger(path)
    assert again.records == 2
    assert again.append(record("c")) == 2
    assert [json.loads(line)["delivery"] for line in path.read_bytes().splitlines()] == ["a", "b", "c"]
    again.close()


def test_a_file_that_is_only_a_torn_line_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "ledger.ndjson"
    path.write_bytes(b'{"seq":0')
    ledger = Ledger(path)
    assert ledger.records == 0
    assert path.read_bytes() == b""
    ledger.close()


@pytest.mark.parametrize("reopened", [False, True])
def test_pages_are_exact_at_the_edges_of_the_index(tmp_path: Path, reopened: bool) -> None:
    path = tmp_path / "ledger.ndjson"
    ledger = Ledger(path)
    for i in range(2500):
        ledger.append(record(str(i)))
    if reopened:
        ledger.close()
        ledger = Ledger(path)
    for since, limit in [(0, 10), (1023, 3), (1024, 1), (1020, 1200), (2047, 2), (2499, 10), (2500, 5), (9999, 5)]:
        assert seqs(ledger.read(since, limit)) == list(range(since, min(since + limit, 2500)))
    assert ledger.read(0, 0) == b""
    ledger.close()


def test_a_write_that_the_disk_cuts_short_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.ndjson"
    ledger = Ledger(path)
    ledger.append(record("kept"))
    before = path.read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    with pytest.raises(OSError):
        ledger.append(record("cut"))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert ledger.append(record("next")) == 1
    ledger.close()


def test_the_summary_counts_copies_of_accepted_mails_only(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.ndjson")
    for delivery, outcome in [
        ("once", "accepted"),
        ("twice", "accepted"),
        ("twice", "accepted_dropped"),
        ("thrice", "accepted"),
        ("thrice", "accepted"),
        ("thrice", "accepted"),
        ("never", "rejected"),
        ("never", "dropped"),
        (None, "accepted"),
    ]:
        ledger.append(record(delivery, outcome))
    first = ledger.summary()
    assert first["outcomes"] == {"accepted": 6, "accepted_dropped": 1, "rejected": 1, "dropped": 1}
    assert first["accepted"] == 7
    assert first["deliveries"] == 3
    assert first["repeated"] == ["thrice", "twice"]
    assert (first["deliveries_repeated"], first["copies_extra"], first["copies_max"]) == (2, 3, 3)
    assert first["without_delivery"] == 1
    ledger.append(record("once"))
    assert ledger.summary()["repeated"] == ["once", "thrice", "twice"]
    ledger.close()


def test_two_servers_cannot_keep_one_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.ndjson")
    with pytest.raises(LedgerInUse):
        Ledger(tmp_path / "ledger.ndjson")
    ledger.close()
    Ledger(tmp_path / "ledger.ndjson").close()
