"""Hooks of mkdocs: pages that nav does not name go where they belong; links out of docs/ become plain text.

The same Markdown is read in the repository, where `../README.md` and `../schemas` exist, and on the site, where they
do not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

FOLDERS = {"runbooks": "Runbooks", "adr": "Decisions", "tutorials": "Tutorials"}
_LINK = re.compile(r"\[((?:[^][]|\[[^]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_RUN = re.compile(r"^\s*<!--\s*run.*?-->\n", re.MULTILINE)


def on_config(config: Any) -> Any:
    """Complete nav."""
    docs = Path(config["docs_dir"])
    named = set(_files(config["nav"]))
    for path in sorted(docs.rglob("*.md")):
        name = path.relative_to(docs).as_posix()
        if name not in named:
            section = FOLDERS.get(name.split("/")[0], "More")
            _section(config["nav"], section).append(name)
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Take out the marks of the tests, and links to what is not on the site."""
    docs = Path(config["docs_dir"]).resolve()
    here = (docs / page.file.src_uri).parent

    def shown(match: re.Match[str]) -> str:
        target = match[2]
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (here / target).resolve()
        if path.is_dir() and path.is_relative_to(docs):
            index = next((name for name in ("README.md", "index.md") if (path / name).is_file()), None)
            return f"[{match[1]}]({target.rstrip('/')}/{index})" if index else match[1]
        return match[0] if path.is_relative_to(docs) else match[1]

    return _LINK.sub(shown, _RUN.sub("", markdown))


def _files(part: Any) -> list[str]:
    if isinstance(part, str):
        return [part]
    items = part.values() if isinstance(part, dict) else part
    return [name for item in items for name in _files(item)]


def _section(nav: list[Any], title: str) -> list[Any]:
    for entry in nav:
        if isinstance(entry, dict) and isinstance(entry.get(title), list):
            found: list[Any] = entry[title]
            return found
    made: list[Any] = []
    nav.append({title: made})
    return made
