"""Pages of the docs that are made from the code: `python -m postlane.ops.diagrams` writes docs/lifecycle.md."""

from __future__ import annotations

import sys
from pathlib import Path

from postlane.core.lifecycle import OPEN, REPLAYABLE, TRANSITIONS, State

LIFECYCLE = Path("docs/lifecycle.md")
_HEAD = """# The life of a delivery

Made from the table in `postlane.core.lifecycle` by `python -m postlane.ops.diagrams`; a test holds the two together.
An event that is no legal move in a state changes nothing.
"""


def lifecycle_page() -> str:
    """The whole page: diagram, then the table behind it."""
    return "\n".join([_HEAD, *_diagram(), "", *_table(), ""])


def _diagram() -> list[str]:
    labels: dict[tuple[str, str], list[str]] = {}
    for kind, moves in TRANSITIONS.items():
        for before, after in moves.items():
            labels.setdefault(("[*]" if before is None else before.value, after.value), []).append(kind)
    lines = [f"    {before} --> {after}: {', '.join(kinds)}" for (before, after), kinds in sorted(labels.items())]
    lines += [
        "    sending --> scheduled: Uncertain (sent again)",
        "    uncertain --> bounced: Resolved (bounced)",
        "    discarded --> bounced: Resolved (bounced)",
    ]
    ends = [f"    {state.value} --> [*]" for state in State if state not in OPEN]
    return ["```mermaid", "stateDiagram-v2", *lines, *ends, "```"]


def _table() -> list[str]:
    rows = ["| state | ends | may be replayed |", "| --- | --- | --- |"]
    for state in State:
        rows.append(f"| {state.value} | {'no' if state in OPEN else 'yes'} | {_yes(state in REPLAYABLE)} |")
    return rows


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


if __name__ == "__main__":
    LIFECYCLE.write_text(lifecycle_page(), encoding="utf-8")
    print(f"{LIFECYCLE} written", file=sys.stderr)
