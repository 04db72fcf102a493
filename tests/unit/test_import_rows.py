"""Rows of hostile files: nothing is lost, nothing is invented, memory is bounded, positions are exact."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postlane.ops.rows import ROW_MAX_BYTES, CsvRows, ImportRefused, Position, Row, check_encoding, json_rows

HEADER = b"email,name\n"


def read(data: bytes, encoding: str = "utf-8", delimiter: str | None = None) -> list[Row]:
    return list(CsvRows(io.BytesIO(data), encoding, delimiter))


def values(rows: list[Row]) -> list[object]:
    return [row.values for row in rows]


def test_rows_with_their_places() -> None:
    rows = read(HEADER + b'a@b.de,"x\r\ny"\n\nc@d.de,"say ""hi"""\r\nlast@d.de,z')
    assert values(rows) == [
        {"email": "a@b.de", "name": "x\r\ny"},
        {"email": "c@d.de", "name": 'say "hi"'},
        {"email": "last@d.de", "name": "z"},
    ]
    assert [(r.line, r.end_line) for r in rows] == [(2, 3), (5, 5), (6, 6)]
    assert [r.problem for r in rows] == [None] * 3
    assert rows[0].offset == len(HEADER)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_seen_in_the_first_line(delimiter: str) -> None:
    rows = CsvRows(io.BytesIO(f"email{delimiter}name\na@b.de{delimiter}x\n".encode()))
    assert rows.delimiter == delimiter
    assert values(list(rows)) == [{"email": "a@b.de", "name": "x"}]


def test_a_byte_order_mark_is_no_part_of_the_first_column() -> None:
    assert CsvRows(io.BytesIO(b"\xef\xbb\xbf" + HEADER)).columns == ("email", "name")
    assert values(list(json_rows(io.BytesIO(b'\xef\xbb\xbf{"to":"a"}\n'), Position()))) == [{"to": "a"}]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"a@b.de\n", "1 fields where"),
        (b"a@b.de,x,y\n", "3 fields where"),
        (b"a@b.de,a\x00b\n", "NUL"),
        (b"a@b.de,\xff\xfe\n", "utf-8"),
        (b'a@b.de,"x"y\n', "not CSV"),
        (b'"a@b.de,x\n', "not CSV"),
        (b"a@b.de,x\ry\n", "carriage return"),
        (b"a@b.de," + b"x" * (ROW_MAX_BYTES + 1) + b"\n", "longer than"),
        (b"a@b.de," + b"x" * (3 * ROW_MAX_BYTES) + b"\n", "longer than"),
    ],
)
def test_a_bad_row_costs_itself_and_no_other(bad: bytes, why: str) -> None:
    rows = read(HEADER + b"first@b.de,1\n" + bad + b'last@b.de,"2"\n')
    assert [row.values for row in rows if row.problem is None] == [
        {"email": "first@b.de", "name": "1"},
        {"email": "last@b.de", "name": "2"},
    ]
    (refused,) = [row for row in rows if row.problem is not None]
    assert why in (refused.problem or "")
    assert (refused.line, refused.offset, refused.end) == (3, len(HEADER) + 13, len(HEADER) + 13 + len(bad))
    assert len(refused.raw) <= ROW_MAX_BYTES


def test_an_unclosed_quote_costs_its_line_however_long_what_follows() -> None:
    good = b"".join(b"u%d@b.de,%d\n" % (i, i) for i in range(5))
    for rest in (good, good + b"x@b.de," + b"y" * 1000 + b"\n"):
        rows = read(HEADER + b'bad@b.de,"open\n' + rest)
        assert rows[0].problem == "a quote is not closed"
        assert [row.values["email"] for row in rows[1:] if row.values][:5] == [f"u{i}@b.de" for i in range(5)]
    many = b"".join(b"u%d@b.de,%s\n" % (i, b"x" * 1000) for i in range(1500))
    rows = read(HEADER + b'bad@b.de,"open\n' + many)
    assert rows[0].problem == f"longer than {ROW_MAX_BYTES} bytes; a quote in it is not closed"
    assert [row.values["email"] for row in rows[1:] if row.values] == [f"u{i}@b.de" for i in range(1500)]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"\n\n", "does not name"),
        (b"email,email\n", "more than once"),
        (b"email,,x\n", "column 2 has no name"),
        (b"\xff\xfee\x00m\x00", "UTF-16"),
        (b"e\x00m\x00a\x00", "UTF-16"),
        (b",".join(b"c%d" % i for i in range(201)) + b"\n", "at most 200"),
        (b"x" * (2 * ROW_MAX_BYTES), "longer than"),
        (b'"open', "quote"),
    ],
)
def test_a_file_without_a_usable_first_line_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ImportRefused, match=why):
        CsvRows(io.BytesIO(data))


def test_another_encoding() -> None:
    data = "email;name\na@b.de;Jörg\n".encode("cp1252")
    assert "utf-8" in (read(data)[0].problem or "")
    assert values(read(data, "cp1252")) == [{"email": "a@b.de", "name": "Jörg"}]
    assert check_encoding("latin-1") == "iso8859-1"
    for bad in ("utf-16", "utf-7", "nonsense", "base64", "idna", "cp037"):
        with pytest.raises(ImportRefused):
            check_encoding(bad)


def test_json_lines() -> None:
    data = b'{"to":"a"}\n\n[1]\n{"to":\n\xff\n{"to":"b"}'
    rows = list(json_rows(io.BytesIO(data), Position()))
    assert [r.values for r in rows if r.values] == [{"to": "a"}, {"to": "b"}]
    assert [(r.line, bool(r.problem)) for r in rows] == [(1, False), (3, True), (4, True), (5, True), (6, False)]
    deep = b"[" * 100_000 + b"\n"
    assert list(json_rows(io.BytesIO(deep + b'{"to":"a"}\n'), Position()))[1].values == {"to": "a"}


cells = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)


@given(st.lists(st.tuples(cells, cells), max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_what_csv_wrote_is_read_and_every_position_resumes(rows: list[tuple[str, str]], ends: str) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator=ends, quoting=csv.QUOTE_ALL)
    writer.writerow(["email", "name"])
    writer.writerows(rows)
    data = out.getvalue().encode()
    found = read(data)
    assert values(found) == [{"email": a, "name": b} for a, b in rows]
    for index, row in enumerate(found):
        assert data[row.offset : row.end] == row.raw
        later = CsvRows(io.BytesIO(data), start=Position(row.end, row.end_line))
        assert list(later) == found[index + 1 :]


@given(st.binary(max_size=400))
def test_any_bytes_are_rows_or_refused_and_none_is_lost(data: bytes) -> None:
    whole = HEADER + data
    rows = read(whole)
    at = len(HEADER)
    for row in rows:
        between = whole[at : row.offset]
        assert not between.strip(b"\r\n")  # nothing but blank lines is passed over
        assert row.end > row.offset
        assert (row.values is None) != (row.problem is None)
        at = row.end
    assert not whole[at:].strip(b"\r\n")
    try:
        lines = list(json_rows(io.BytesIO(data), Position()))
    except ImportRefused:
        assert data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in data[:11]
        return
    assert all((row.values is None) != (row.problem is None) for row in lines)
    assert [row.raw.strip() for row in lines] == [part.strip() for part in _lines(data) if part.strip()]


def _lines(data: bytes) -> list[bytes]:
    return data.removeprefix(b"\xef\xbb\xbf").split(b"\n")


def test_the_file_is_never_held_whole(tmp_path: Path) -> None:
    import tracemalloc

    file = tmp_path / "big.ndjson"
    with file.open("wb") as out:
        for i in range(80):
            out.write(orjson.dumps({"to": f"u{i}@b.de", "text": "x" * 500_000}) + b"\n")
    tracemalloc.start()
    with file.open("rb") as stream:
        assert sum(1 for row in json_rows(stream, Position()) if row.values) == 80
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000  # of 40 MB
