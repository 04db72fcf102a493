"""Every link within the project leads somewhere, anchors too; every page can be reached; the index is true."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from release import site

from tests.docs.pages import ROOT, Page, pages, read

PAGES = pages()
BY_PATH = {page.path: page for page in PAGES}
ELSEWHERE = ("http://", "https://", "mailto:")


def broken(page: Page, link: str) -> str | None:
    """What is wrong with a link."""
    if link.startswith(ELSEWHERE):
        return None
    target, _, anchor = unquote(link).partition("#")
    path = (page.path.parent / target).resolve() if target else page.path
    if not path.exists():
        return f"{target} does not exist"
    if not path.is_relative_to(ROOT):
        return f"{target} is outside of the project"
    if anchor:
        known = BY_PATH.get(path)
        if known is None:
            return f"{target} has no anchors that could be checked"
        if anchor not in known.anchors():
            return f"{target or page.path.name} has no heading for #{anchor}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Page) -> None:
    wrong = [f"line {line}: {link}: {why}" for line, link in page.links if (why := broken(page, link))]
    assert wrong == []


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    file = ROOT / "docs" / "ARCHITECTURE.md"
    page = read(file)
    assert broken(page, "no-such-page.md") == "no-such-page.md does not exist"
    assert broken(page, "#topics") is None
    assert broken(page, "#no-such-heading") is not None
    assert broken(page, "lifecycle.md#no-such-heading") is not None
    written = tmp_path / "x.md"
    written.write_text("# A `b` c!\n\n```console\n$ [x](y)\n```\n[a](b.md) `[c](d)` ![e](f.png)\n## A b c\n")
    made = read(written)
    assert [link for _, link in made.links] == ["b.md", "f.png"]
    assert made.anchors() == {"a-b-c", "a-b-c-1"}


def test_every_page_of_the_docs_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        if path in seen or path not in BY_PATH:
            continue
        seen.add(path)
        for _, link in BY_PATH[path].links:
            if not link.startswith(ELSEWHERE):
                target = (path.parent / unquote(link).partition("#")[0]).resolve()
                waiting += sorted(target.glob("*.md")) if target.is_dir() else [target]
    lost = sorted(page.name for page in PAGES if page.name.startswith("docs/") and page.path not in seen)
    assert lost == [], "link them from docs/index.md"


def test_the_navigation_of_the_site_names_pages_that_are_there() -> None:
    """Those that it does not name follow by themselves (release/site.py)."""

    def files(part: object) -> set[str]:
        if isinstance(part, str):
            return {part}
        values = part.values() if isinstance(part, dict) else part
        assert isinstance(values, Iterable)
        return set().union(*(files(value) for value in values))

    told = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    gone = [name for name in sorted(files(told["nav"])) if not (ROOT / "docs" / name).is_file()]
    assert gone == []


def test_the_site_completes_its_navigation_and_hides_what_is_not_on_it() -> None:
    nav: list[Any] = [{"Overview": "index.md"}, {"Decisions": ["adr/0000-record-decisions.md"]}]
    site.on_config({"docs_dir": str(ROOT / "docs"), "nav": nav})
    shown = [name for entry in nav for part in entry.values() for name in ([part] if isinstance(part, str) else part)]
    there = [page.path.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.name.startswith("docs/")]
    assert sorted(shown) == sorted(there)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="runbooks/x.md"))
    text = "[a](README.md) [b](../../README.md) [c](../adr) [d](../replay.md#guards)\n<!-- run exit=1 -->\n```sh\n"
    made = site.on_page_markdown(text, page, {"docs_dir": str(ROOT / "docs")})
    assert made == "[a](README.md) b c [d](../replay.md#guards)\n```sh\n"


def test_every_alert_has_its_page_which_names_it() -> None:
    rules = yaml.safe_load((ROOT / "observability" / "prometheus" / "rules.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    assert alerts
    index = (ROOT / "docs" / "runbooks" / "README.md").read_text()
    for rule in alerts:
        path = ROOT / rule["annotations"]["runbook"]
        assert path.is_file(), rule["alert"]
        assert f"Alert: `{rule['alert']}` (" in path.read_text(), path
        assert f"| `{rule['alert']}` |" in index, "add it to docs/runbooks/README.md"


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "runbooks").glob("[a-z]*.md")), ids=lambda path: path.stem)
def test_a_runbook_has_its_four_parts(path: Path) -> None:
    headings = ["What it looks like", "What to run", "How to know that it worked", "How to rehearse"]
    assert read(path).headings[1:5] == headings
    assert "@@" not in path.read_text()


def test_every_page_that_a_message_names_exists() -> None:
    """What the code tells an operator to read at night is there."""
    sources = [path for part in ("libs", "services") for path in (ROOT / part).rglob("*.py")]
    named = {(found, path.name) for path in sources for found in re.findall(r"docs/[\w/.-]+\.md", path.read_text())}
    assert named
    assert [(page, by) for page, by in sorted(named) if not (ROOT / page).is_file()] == []
