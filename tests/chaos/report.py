"""A run as a table for people and as JSON for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.chaos.nemesis import Row
from tests.chaos.registry import NOT_INJECTED

_HEAD = (
    "fault",
    "accepted",
    "delivered",
    "lost",
    "repeated outside the rule",
    "other",
    "uncertain",
    "doubts",
    "silence s",
    "first delivery s",
    "normal s",
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown of rows as JSON; a row that was not injected says why."""
    lines = ["| " + " | ".join(_HEAD) + " |", "| --- |" + " ---: |" * (len(_HEAD) - 1)]
    for row in rows:
        if row["not_injected"]:
            lines.append(f"| {row['fault']}: not injected: {row['not_injected']} |" + " |" * (len(_HEAD) - 1))
            continue
        numbers: list[Any] = [
            *(row["accepted"], row["delivered"], len(row["lost"]), len(row["repeated"]), len(row["other"])),
            *(row["uncertain"], row["doubts"], row["silence_s"], _seconds(row["recover_s"]), _seconds(row["normal_s"])),
        ]
        name = f"{row['fault']}: {' '.join(row['what'].split())}" + (f" (**{row['failed']}**)" if row["failed"] else "")
        lines.append(f"| {name} | " + " | ".join(str(number) for number in numbers) + " |")
    return "\n".join(lines)


def document(rows: Sequence[dict[str, Any]], seconds: float, rate: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds),
        "mails_per_s": rate,
        "good": all(row["good"] for row in rows),
        "rows": list(rows),
        "not_injected": NOT_INJECTED,
    }


def broken(rows: Sequence[Row]) -> list[str]:
    """Every broken promise and failure, one a line."""
    return [
        f"{row.fault}: {line}"
        for row in rows
        for line in (*row.lost, *row.repeated, *row.other, *((row.failed,) if row.failed else ()))
    ]


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f}"
