"""What the documentation tells people to rehearse is there, and what is there is documented."""

from __future__ import annotations

import re
from pathlib import Path

from postlane.ops.drill.stage import scenarios

DOCS = Path(__file__).parents[2] / "docs"
NAMED = re.compile(r"postlane drill ([a-z][a-z-]+)")


def test_every_drill_that_a_page_names_is_a_scenario() -> None:
    named = {(page.name, name) for page in DOCS.rglob("*.md") for name in NAMED.findall(page.read_text("utf-8"))}
    assert named
    assert [(page, name) for page, name in sorted(named) if name not in scenarios()] == []


def test_every_scenario_is_in_the_table_of_drills() -> None:
    text = (DOCS / "drills.md").read_text("utf-8")
    assert [name for name in scenarios() if f"| `{name}` |" not in text] == []
