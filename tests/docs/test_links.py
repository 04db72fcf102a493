"""Every link within the project leads somewhere, anchors too; every page can be reached; the index is true."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

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
                waiting.append(target / "README.md" if target.is_dir() else target)
    lost = sorted(page.name for page in PAGES if page.name.startswith("docs/") and page.path not in seen)
    assert lost == [], "link them from docs/index.md"


def test_the_site_shows_every_page() -> None:
    """In mkdocs.yml, or in a folder that it takes as a whole."""

    class Loader(yaml.SafeLoader):
        """Tags of mkdocs (!!python/name:…) are not wanted here."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)

    def files(part: object) -> set[str]:
        if isinstance(part, str):
            return {part}
        if isinstance(part, dict):
            return set().union(*(files(value) for value in part.values()))
        assert isinstance(part, list)
        return set().union(*(files(value) for value in part))

    shown = files(site["nav"])
    there = {str(page.path.relative_to(ROOT / "docs")) for page in PAGES if page.path.is_relative_to(ROOT / "docs")}
    assert sorted(there - shown) == [], "add them to nav in mkdocs.yml"
    assert sorted(shown - there) == []
