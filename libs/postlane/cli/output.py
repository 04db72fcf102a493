"""What a command says: answers to stdout, as text or as JSON; everything else to stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import Any, TypeVar

import click
import orjson

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """`--json`, as the parameter `as_json`."""
    text = "Answer in JSON: one document, or one a line where the answer is a list."
    return click.option("--json", "as_json", is_flag=True, help=text)(command)


def document(value: object) -> str:
    """One JSON document on one line."""
    return orjson.dumps(value, default=_plain, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS).decode()


def answer(value: object, as_json: bool, text: str) -> None:
    """The one answer of a command."""
    click.echo(document(value) if as_json else text)


def answers(values: Iterable[object], as_json: bool, line: Callable[[Any], str], empty: str = "") -> int:
    """A list of answers, one a line as they come; `empty` is what a person reads when there are none. Their number."""
    count = 0
    for value in values:
        click.echo(document(value) if as_json else line(value))
        count += 1
    if not count and empty and not as_json:
        click.echo(empty, err=True)
    return count


def note(text: str) -> None:
    """Something to know that is not the answer."""
    click.echo(text, err=True)


def columns(rows: Iterable[Iterable[object]]) -> str:
    """Rows as text with aligned columns."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(max(map(len, cells)))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in cells
    )


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, set | frozenset | tuple | Mapping):
        return dict(value) if isinstance(value, Mapping) else list(value)
    return str(value)
