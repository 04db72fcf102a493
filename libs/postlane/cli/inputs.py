"""What people give on the command line: times, texts from files, JSON."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import orjson

from postlane.core.events import REQUEST_MAX_BYTES

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPAN = re.compile(r"(?:\d{1,9}[smhdw])+")
_PART = re.compile(r"(\d+)([smhdw])")
_EXPECTED = "give an ISO 8601 time with its zone (2030-01-31T09:00:00Z) or a span (+90s, +10m, +1h30m, +2d)"


def span(text: str) -> timedelta:
    """`90s`, `10m`, `1h30m`, `2d`, `1w`. Raises ValueError."""
    if not _SPAN.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not a span of time, e.g. 90s, 10m, 1h30m, 2d")
    try:
        return timedelta(seconds=sum(int(count) * _UNITS[unit] for count, unit in _PART.findall(text)))
    except OverflowError:
        raise ValueError(f"{text[:40]!r} is too long a span of time") from None


def moment(text: str, now: datetime) -> datetime:
    """An ISO time with its zone, or `+10m` (from `now` on) or `-1h` (before it). Raises ValueError."""
    if text[:1] in ("+", "-") and text[1:2].isdigit():
        try:
            return now + span(text[1:]) if text[0] == "+" else now - span(text[1:])
        except OverflowError:
            raise ValueError(f"{text[:40]!r} is no time that a calendar has") from None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is not a time; {_EXPECTED}") from None
    if time.tzinfo is None:
        raise ValueError(f"{text[:40]!r} has no time zone; add Z or an offset like +02:00")
    return time.astimezone(UTC)


class Moment(click.ParamType):
    """A time option; `absolute`: no spans, so that running the command again asks for the same."""

    name = "time"

    def __init__(self, *, absolute: bool = False) -> None:
        self.absolute = absolute

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        text = str(value).strip()
        if self.absolute and text.startswith(("+", "-")):
            self.fail("give the time itself, not a span: a second run has to ask for the same", param, ctx)
        try:
            return moment(text, datetime.now(UTC))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class TextOrFile(click.ParamType):
    """The text itself, `@file`, or `-` for the standard input; a text that begins with @ is written @@."""

    name = "text|@file|-"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text.startswith("@@"):
            return text[1:]
        if text != "-" and not text.startswith("@"):
            return text
        try:
            body = sys.stdin.buffer.read(REQUEST_MAX_BYTES + 1) if text == "-" else read_bounded(Path(text[1:]))
            return body.decode("utf-8-sig")
        except OSError as error:
            self.fail(f"{text[1:]}: {error.strerror}", param, ctx)
        except UnicodeDecodeError:
            self.fail(f"{text}: is not UTF-8 text", param, ctx)


class JsonObject(TextOrFile):
    """A JSON object, given as TextOrFile."""

    name = "json|@file|-"

    def convert(  # type: ignore[override]
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        text = super().convert(value, param, ctx)
        try:
            body = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            self.fail(f"is not JSON: {error}", param, ctx)
        if not isinstance(body, dict):
            self.fail(f"a JSON object is expected, not {type(body).__name__}", param, ctx)
        return body


def read_bounded(path: Path, max_bytes: int = REQUEST_MAX_BYTES) -> bytes:
    """A file's bytes, one more than `max_bytes` at most, so that a mistaken name cannot fill the memory."""
    with path.open("rb") as file:
        return file.read(max_bytes + 1)
