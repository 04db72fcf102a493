"""A drill as JSON for machines, Markdown for reviews and one HTML file for people."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from postlane.local.processes import write_whole
from postlane.ops.drill.page import page
from postlane.ops.drill.result import Result

HEAD = (
    "scenario",
    "verdict",
    "RTO s",
    "first delivery s",
    "silence s",
    "accepted",
    "delivered",
    "lost",
    "repeated",
    "uncertain",
    "who would have known",
)


def document(results: Sequence[Result], site: str, began: datetime, pace: dict[str, Any]) -> dict[str, Any]:
    """Everything, as the JSON report holds it."""
    return {
        "site": site,
        "began": began.astimezone(UTC).isoformat(timespec="seconds"),
        "took_s": round((datetime.now(UTC) - began).total_seconds(), 1),
        "machine": machine(),
        "pace": pace,
        "passed": bool(results) and all(result.verdict == "passed" for result in results),
        "results": [result.as_json() for result in results],
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return {"cpus": os.cpu_count(), "load_average": round(load, 1), "python": platform.python_version()}


def row(result: Result) -> tuple[str, ...]:
    """A line of the table, as text."""
    if result.verdict == "not played":
        return (result.scenario, f"not played: {result.why}", *[""] * (len(HEAD) - 2))
    return (
        result.scenario,
        result.verdict,
        seconds(result.rto_s),
        seconds(result.first_delivery_s),
        seconds(result.silence_s),
        str(result.accepted),
        str(result.delivered),
        str(result.lost),
        str(result.repeated),
        str(result.uncertain),
        alert(result),
    )


def alert(result: Result) -> str:
    """Which alert would have told a person, and when."""
    first = result.first_alert
    if first is None:
        return "nobody" if result.alerts_by.startswith("Prometheus") else "not evaluated"
    after = f"{first.alert} ({first.severity}) after {first.fires_s:.0f} s"
    if first.fired:
        return f"{after}: it fired"
    return f"{after}: condition at {first.condition_s:.0f} s, for {first.for_s:.0f} s"


def seconds(value: float | None) -> str:
    """One decimal, or a dash."""
    return "-" if value is None else f"{value:.1f}"


def table(results: Sequence[Result]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "| --- | --- |" + " ---: |" * (len(HEAD) - 3) + " --- |"]
    return "\n".join([*lines, *("| " + " | ".join(row(result)) + " |" for result in results)])


def markdown(report: dict[str, Any], results: Sequence[Result]) -> str:
    """The report for a review."""
    on = report["machine"]
    parts = [
        f"# Drill on {report['site']}, {report['began']}",
        f"{'Passed' if report['passed'] else 'NOT passed'} in {report['took_s']:.0f} s; {on['cpus']} CPUs, load "
        f"average {on['load_average']}, {report['pace']['per_s']:g} mails a second.",
        table(results),
    ]
    for result in results:
        parts.append(f"## {result.scenario}\n\n{result.what}")
        if result.why:
            parts.append(f"{result.verdict}: {result.why}")
        if result.verdict == "not played":
            continue
        parts.append("\n".join(f"- {at:7.1f} s  {said}" for at, said in result.marks))
        parts.append(_details(result))
    return "\n\n".join(part for part in parts if part) + "\n"


def _details(result: Result) -> str:
    lines = [
        f"- the fault lasted {result.held_s:.1f} s; the slowest mail took {result.slowest_s:.1f} s",
        f"- doubts {result.doubts}, sent again within the rule {result.resent}, mails of others touched "
        f"{result.others_affected}",
        f"- alerts by {result.alerts_by}" if result.alerts_by else "",
        *(
            f"- {told.alert} ({told.severity}): condition after {told.condition_s:.1f} s, for {told.for_s:.0f} s"
            + (", fired" if told.fired else "")
            for told in result.alerts
        ),
        *(f"- {name}: {value}" for name, value in result.figures.items()),
        *(f"- BROKEN {line}" for line in result.broken),
        *(f"- UNMET {line}" for line in result.unmet),
    ]
    return "\n".join(line for line in lines if line)


def write(folder: Path, report: dict[str, Any], results: Sequence[Result]) -> dict[str, Path]:
    """drill.json, drill.md, drill.html. Raises OSError."""
    files = {kind: folder / f"drill.{kind}" for kind in ("json", "md", "html")}
    write_whole(files["json"], orjson.dumps(report, option=orjson.OPT_INDENT_2).decode() + "\n")
    write_whole(files["md"], markdown(report, results))
    write_whole(files["html"], page(report, results, [row(result) for result in results], HEAD))
    return files
