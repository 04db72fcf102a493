"""Where results go: JSON beside the harness, and the tables of docs/proof.md between their marks."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PROOF = Path(__file__).resolve().parents[2] / "docs/proof.md"


def kept_rows(name: str, replaced: Collection[str]) -> list[dict[str, Any]]:
    """The rows of earlier runs in results/NAME.json, without those that are replaced."""
    try:
        rows = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    except (OSError, ValueError, KeyError):
        return []
    return [row for row in rows if row["fault"] not in replaced]


def write_results(name: str, document: dict[str, Any], table: str | None) -> None:
    """Write results/NAME.json; with a table, put it between the marks of that name in docs/proof.md too."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    if table is None:
        return
    begin, end = f"<!-- {name}: begin, written by make -->", f"<!-- {name}: end -->"
    text = PROOF.read_text()
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{PROOF} has no marks of {name}")
    PROOF.write_text(f"{head}{begin}\n{table}\n{end}{tail}")
