"""Rows of a CSV or NDJSON file as they come: with line numbers and byte offsets, and never more than one row in memory.

A row that cannot be read is a `Row` with a `problem`, never an exception, and reading goes on with the next line: an
unclosed quote costs the line that it stands in. Accepted is RFC 4180 with any of , ; tab as the delimiter, and JSON
Lines; in UTF-8, with or without a byte order mark, or in an encoding whose line ends are those of ASCII.
"""

from __future__ import annotations

import codecs
import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import orjson

ROW_MAX_BYTES = 1_000_000  # a request may have 900,000
FIELDS_MAX = 200  # columns
DELIMITERS = ",;\t"
_ASCII = bytes(range(128))
_NOT_FOR_FILES = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape"})
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class ImportRefused(Exception):
    """The file as a whole cannot be imported, or not with these options; the message says what to do."""

    exit_code = 2


class _TooLong(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `values` is a dict of a CSV row's columns or the NDJSON object; None when there is a `problem`.

    `line` counts from 1; `offset` and `end` are byte offsets in the file; `end_line` is the number of lines before
    `end`. `raw` is the head of its bytes.
    """

    line: int
    offset: int
    end: int
    end_line: int
    raw: bytes
    values: dict[str, Any] | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """Where reading goes on: byte offset, and how many lines lie before it."""

    offset: int = 0
    line: int = 0


@dataclass(slots=True)
class _Line:
    number: int
    offset: int
    length: int
    raw: bytes  # without what exceeds the bound
    whole: bool

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(slots=True)
class _Lines:
    """Physical lines, bounded; those of a failed record can be handed back."""

    file: BinaryIO
    at: Position
    returned: deque[_Line] = field(default_factory=deque)

    def next(self) -> _Line | None:
        if self.returned:
            return self.returned.popleft()
        raw = self.file.readline(ROW_MAX_BYTES + 1)
        if not raw:
            return None
        length, whole = len(raw), len(raw) <= ROW_MAX_BYTES or raw.endswith(b"\n")
        while not whole:
            more = self.file.readline(ROW_MAX_BYTES)
            length += len(more)
            if not more or more.endswith(b"\n"):
                break
        line = _Line(self.at.line + 1, self.at.offset, length, raw[:ROW_MAX_BYTES], whole)
        self.at = Position(line.end, line.number)
        if line.offset == 0:
            line.raw = line.raw.removeprefix(codecs.BOM_UTF8)
        return line

    def hand_back(self, lines: list[_Line]) -> None:
        self.returned.extendleft(reversed(lines))


def check_encoding(name: str) -> str:
    """The codec's name. Raises ImportRefused unless it is known and every octet below 128 means what ASCII says."""
    try:
        codec = codecs.lookup(name)
        plain = codec._is_text_encoding and codec.name not in _NOT_FOR_FILES and _ASCII.decode(name) == _ASCII.decode()
    except (LookupError, ValueError):
        plain = False
    if not plain:
        raise ImportRefused(
            f"the encoding {name[:40]!a} is not known or cannot be read line by line; "
            "name utf-8, latin-1, cp1252, …, or convert the file to UTF-8"
        )
    return codec.name


def json_rows(file: BinaryIO, start: Position, encoding: str = "utf-8") -> Iterator[Row]:
    """The objects of an NDJSON file from `start` on; blank lines are passed over."""
    lines = _Lines(file, start)
    while (line := lines.next()) is not None:
        _refuse_utf16(line)
        if line.whole and not line.raw.strip():
            continue
        values, problem = _object(line, encoding)
        yield Row(line.number, line.offset, line.end, line.number, line.raw, values, problem)


def _object(line: _Line, encoding: str) -> tuple[dict[str, Any] | None, str | None]:
    if not line.whole:
        return None, f"longer than {ROW_MAX_BYTES} bytes"
    try:
        text: bytes | str = line.raw if encoding == "utf-8" else line.raw.decode(encoding)
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return None, f"not a JSON document: {str(error)[:160]}"
    except UnicodeDecodeError as error:
        return None, f"not {encoding} text at byte {error.start}"
    if not isinstance(value, dict):
        return None, f"a JSON object is expected, not {type(value).__name__}"
    return value, None


class CsvRows:
    """The rows of a CSV file. The header is read at once, wherever reading then starts. Raises ImportRefused."""

    def __init__(
        self, file: BinaryIO, encoding: str = "utf-8", delimiter: str | None = None, start: Position | None = None
    ) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), ROW_MAX_BYTES))  # the module's, for the whole process
        self._encoding = encoding
        self._lines = _Lines(file, Position())
        first = self._lines.next()
        if first is None:
            raise ImportRefused("the file is empty; its first line must name the columns")
        _refuse_utf16(first)
        self._lines.hand_back([first])
        self.delimiter = delimiter or _delimiter(first.raw)
        self.columns = self._header()
        if start is not None and start.offset > self._lines.at.offset:
            file.seek(start.offset)
            self._lines = _Lines(file, start)

    def _header(self) -> tuple[str, ...]:
        header = next(self._records(), None)
        if header is None or header[1] is None:
            raise ImportRefused(f"the first line does not name the columns: {header[2] if header else 'it is blank'}")
        names = tuple(name.strip() for name in header[1])
        if len(names) > FIELDS_MAX:
            raise ImportRefused(f"{len(names)} columns; at most {FIELDS_MAX}")
        if not all(names):
            raise ImportRefused(f"column {names.index('') + 1} has no name in the first line")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ImportRefused(f"the column {twice[0][:80]!a} stands in the first line more than once")
        return names

    def __iter__(self) -> Iterator[Row]:
        for lines, cells, problem in self._records():
            first, last = lines[0], lines[-1]
            raw = b"".join(line.raw for line in lines)
            values = None
            if cells is not None and problem is None:
                if len(cells) == len(self.columns):
                    values = dict(zip(self.columns, cells, strict=True))
                else:
                    problem = f"{len(cells)} fields where the first line names {len(self.columns)} columns"
            yield Row(first.number, first.offset, last.end, last.number, raw, values, problem)

    def _records(self) -> Iterator[tuple[list[_Line], list[str] | None, str | None]]:
        """(lines of the record, its cells, what is wrong with it)."""
        pending: list[_Line] = []
        while True:
            reader = csv.reader(self._feed(pending), delimiter=self.delimiter, strict=True)
            try:
                for cells in reader:
                    lines = pending.copy()
                    pending.clear()
                    if cells:
                        yield lines, cells, self._bad_characters(cells)
                return
            except (csv.Error, _TooLong) as error:
                first, rest = pending[0], pending[1:]
                pending.clear()
                self._lines.hand_back(rest)
                yield [first], None, _why(error, bool(rest))

    def _feed(self, pending: list[_Line]) -> Iterator[str]:
        size = 0
        while (line := self._lines.next()) is not None:
            size = len(line.raw) if not pending else size + len(line.raw)
            pending.append(line)
            if not line.whole or size > ROW_MAX_BYTES:
                raise _TooLong
            # Octets that are no text stay recognisable, so that quotes are followed through them.
            yield line.raw.decode(self._encoding, "surrogateescape")

    def _bad_characters(self, cells: list[str]) -> str | None:
        text = "".join(cells)
        if "\x00" in text:
            return "holds NUL"
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"is not {self._encoding} text; name another --encoding, e.g. cp1252"
        return None


def _why(error: Exception, several: bool) -> str:
    if isinstance(error, _TooLong):
        cause = "; a quote in it is not closed" if several else ""
        return f"longer than {ROW_MAX_BYTES} bytes{cause}"
    text = str(error)
    if "unexpected end" in text:
        return "a quote is not closed"
    if "new-line character" in text:
        return "a bare carriage return outside quotes; end lines with LF or CRLF"
    return f"not CSV (RFC 4180): {text[:120]}"


def _delimiter(raw: bytes) -> str:
    counts = {mark: raw.count(mark.encode()) for mark in DELIMITERS}
    return max(DELIMITERS, key=lambda mark: counts[mark])


def _refuse_utf16(line: _Line) -> None:
    if line.offset == 0 and (line.raw.startswith(_UTF16) or b"\x00" in line.raw[:8]):
        raise ImportRefused("this is UTF-16 or not text at all; convert it: iconv -f UTF-16 -t UTF-8")
