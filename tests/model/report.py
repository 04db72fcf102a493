"""The tables of docs/model.md, written from a run between two marks, so that the page says what was really explored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .cases import Case
from .explorer import Result

Row = tuple[Case, Result]
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"


def tables(rows: Sequence[Row]) -> str:
    """Three tables: what holds as designed, what is caught, what another rule backs up."""
    holds = [row for row in rows if row[0].expected == "holds" and not row[0].because]
    caught = [row for row in rows if row[0].expected == "breaks"]
    backed = [row for row in rows if row[0].because]
    lines = ["### As designed: exhausted, nothing broken", ""]
    lines += [
        "| configuration | world and faults | states | transitions | verdict |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    lines += [
        f"| {case.name} | {case.about} | {result.states:,} | {result.transitions:,} | {result.verdict} |"
        for case, result in holds
    ]
    lines += ["", "### A rule switched off: the shortest counterexample", ""]
    lines += ["| rule | instead | broken property | steps | states |", "| --- | --- | --- | ---: | ---: |"]
    lines += [
        f"| {case.name} | {case.about} | {result.verdict} | {len(result.trace)} | {result.states:,} |"
        for case, result in caught
    ]
    lines += ["", "### A rule switched off that another one backs up: exhausted, nothing broken", ""]
    lines += ["| rule | instead | backed up by | states |", "| --- | --- | --- | ---: |"]
    lines += [f"| {case.name} | {case.about} | {case.because} | {result.states:,} |" for case, result in backed]
    return "\n".join(lines)


def write(page: Path, rows: Sequence[Row]) -> None:
    """Replace what stands between the marks of `page`. Raises ValueError when it has none."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no marks {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{tables(rows)}\n{END}{after}", encoding="utf-8")
