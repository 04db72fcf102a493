"""The report as one HTML file: no script, nothing fetched; each plot has its figures in a table beside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from postlane.ops.drill.plot import timeline_svg
from postlane.ops.drill.result import Result

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border: 1px solid #8886; padding: .3rem .6rem; text-align: right; }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
.passed { font-weight: 600; } .passed::before { content: "\\2713  "; }
.failed, .abandoned { font-weight: 700; text-decoration: underline; }
.failed::before, .abandoned::before { content: "\\2717  "; }
svg { width: 100%; height: auto; }
svg text { fill: currentColor; font: 12px system-ui, sans-serif; }
.axis { stroke: currentColor; stroke-width: 1; }
.published { fill: none; stroke: #6b7280; stroke-width: 1.5; stroke-dasharray: 5 3; }
.delivered { fill: none; stroke: #2563eb; stroke-width: 2.5; }
.fault { fill: #dc2626; fill-opacity: .13; }
.mark { stroke: currentColor; stroke-width: 1; stroke-dasharray: 2 3; }
details { margin: .5rem 0; }
"""


def page(report: dict[str, Any], results: Sequence[Result], rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """The document."""
    on = report["machine"]
    verdict = "Passed" if report["passed"] else "Not passed"
    title = f"Drill on {escape(report['site'])}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}: {verdict}</title>'
        f"<style>{_STYLE}</style></head><body><main>"
        f"<h1>{title}</h1><p><strong>{verdict}.</strong> Begun {escape(report['began'])}, took "
        f"{report['took_s']:.0f} s. {on['cpus']} CPUs, load average {on['load_average']}, "
        f"{report['pace']['per_s']:g} mails a second.</p>"
        + _table("All scenarios", head, rows)
        + "".join(_section(result, number) for number, result in enumerate(results))
        + "</main></body></html>\n"
    )


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>" for cells in rows)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _section(result: Result, number: int) -> str:
    parts = [
        f"<section><h2>{escape(result.scenario)}</h2><p>{escape(result.what)}</p>",
        f'<p class="{result.verdict.replace(" ", "-")}">{escape(result.verdict)}'
        + (f": {escape(result.why)}" if result.why else "")
        + "</p>",
    ]
    if result.verdict != "not played":
        parts.append(timeline_svg(result, f"plot-{number}"))
        parts.append(_list("What happened", [f"{at:.1f} s: {said}" for at, said in result.marks]))
        parts.append(_alerts(result))
        parts.append(_list("Broken promises", result.broken) + _list("Expectations that were not met", result.unmet))
        parts.append(_list("Figures", [f"{name}: {value}" for name, value in result.figures.items()]))
        figures = [(f"{s.at_s:.0f}", str(s.published), str(s.delivered)) for s in result.seconds]
        figures_table = _table("Mails a second", ("second", "published", "delivered"), figures)
        parts.append(f"<details><summary>The figures of the plot</summary>{figures_table}</details>")
    return "".join(parts) + "</section>"


def _alerts(result: Result) -> str:
    if not result.alerts:
        return f"<p>Alerts: none became pending ({escape(result.alerts_by)}).</p>"
    rows = [
        (
            told.alert,
            told.severity,
            f"{told.condition_s:.1f}",
            f"{told.for_s:.0f}",
            f"{told.fires_s:.1f}",
            "fired" if told.fired else "would have fired",
        )
        for told in result.alerts
    ]
    head = ("alert", "severity", "condition after s", "for s", "tells a person after s", "within the drill")
    return _table(f"Alerts, by {result.alerts_by}", head, rows)


def _list(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return f"<h3>{escape(title)}</h3><ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
