"""Markdown pages as the tests need them: headings, links, code blocks with their marks, command lines.

A block that a test runs is marked by a comment on the line before its fence, which readers of the page do not see:

    <!-- run -->                       every line that begins with `$ ` is run and must end with 0
    <!-- run exit=1 -->                ... must end with 1 (every one of them)
    <!-- run says="delivered" -->      ... and the last one's output must contain this
    <!-- run until="delivered" -->     ... the last one is repeated until its output contains this, for 60 s at most

Lines that do not begin with `$ ` are what a person sees, and are not compared. Blocks of one page share a shell.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SKIPPED = (".venv", "node_modules", "site", ".git", "dist")
_FENCE = re.compile(r"^( *)(`{3,}|~{3,})\s*([\w+-]*)[^`]*$")
_HERE = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?\s*$")
_MARK = re.compile(r"^\s*<!--\s*run(.*?)-->\s*$")
_OPTION = re.compile(r'(\w+)=(?:"([^"]*)"|(\S+))')
_HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*\s*$")
_LINK = re.compile(r"(?<!!)\[(?:[^][]|\[[^]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|!\[[^]]*\]\(([^)\s]+)\)")
# Where a command may stand: first, behind an operator, a keyword, or variables that are set for it.
_COMMAND = re.compile(
    r"(?:^|[|;&(!]\s*|\b(?:do|while|if|until|then|nice|time)\s+)(?:[A-Z_]+=\S*\s+)*(?:\.venv/bin/)?(postlane\s[^|;&)]*)",
    re.MULTILINE,
)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced (or indented) code block; `mark` None: not run."""

    line: int
    language: str
    lines: tuple[str, ...]
    mark: dict[str, str] | None = None

    def commands(self) -> list[str]:
        """What stands behind `$ `, with what belongs to it: continuation lines, here-documents."""
        found: list[str] = []
        until: str | None = None  # the end of a here-document
        going_on = False
        for line in self.lines:
            text = line.strip()
            if until is not None:
                found[-1] += "\n" + line
                until = None if text == until else until
                continue
            if going_on:
                found[-1] += "\n" + line
            elif text.startswith("$ "):
                found.append(text[2:])
            else:
                continue
            here = _HERE.search(line)
            until = here[1] if here else None
            going_on = line.rstrip().endswith("\\")
        return found


@dataclass(slots=True)
class Page:
    """One file."""

    path: Path
    headings: list[str] = field(default_factory=list)
    links: list[tuple[int, str]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    spans: list[tuple[int, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    def anchors(self) -> set[str]:
        """As GitHub and mkdocs make them; a heading that comes again gets a number (GitHub: -1, mkdocs: _1)."""
        seen: dict[str, int] = {}
        found: set[str] = set()
        for heading in self.headings:
            plain = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
            slug = re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain))
            count = seen.get(slug, 0)
            seen[slug] = count + 1
            found.add(slug if not count else f"{slug}-{count}")
        return found

    def runnable(self) -> list[Block]:
        return [block for block in self.blocks if block.mark is not None]


def pages() -> list[Page]:
    """Every Markdown file of the project."""
    found = []
    for path in sorted(ROOT.rglob("*.md")):
        parts = path.relative_to(ROOT).parts
        if not any(part.startswith((".", "site")) or part in SKIPPED for part in parts[:-1]):
            found.append(read(path))
    return found


def read(path: Path) -> Page:
    """Parse one file."""
    page = Page(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    mark: dict[str, str] | None = None
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        fence = _FENCE.match(line)
        if fence:
            body = []
            while number < len(lines) and lines[number].strip() != fence[2]:
                body.append(lines[number].removeprefix(fence[1]))
                number += 1
            number += 1
            page.blocks.append(Block(number - len(body) - 1, fence[3], tuple(body), mark))
            mark = None
            continue
        told = _MARK.match(line)
        if told:
            mark = {name: quoted or plain for name, quoted, plain in _OPTION.findall(told[1])}
            continue
        if line.startswith("    ") and not line.strip().startswith(("-", "*")):
            page.blocks.append(Block(number, "", (line.strip(),)))
            continue
        heading = _HEADING.match(line)
        if heading:
            page.headings.append(heading[2])
        page.links += [(number, found[1] or found[2]) for found in _LINK.finditer(_SPAN.sub("", line))]
        page.spans += [(number, found[1].replace("\\|", "|")) for found in _SPAN.finditer(line)]
    return page


def command_lines(page: Page) -> Iterator[tuple[int, str, bool]]:
    """(line, text, whole): every `postlane …` of a page. `whole`: it stands alone in a block, so nothing is left out;
    in running text placeholders, alternatives and `…` are allowed."""
    for block in page.blocks:
        told = block.commands()
        if not told and block.language in ("sh", "bash", "shell", "console", ""):
            told = [
                line.strip() for line in block.lines if line.strip().startswith(("postlane ", ".venv/bin/postlane "))
            ]
        for text in told:
            for part in split(text):
                yield block.line, part, True
    for number, text in page.spans:
        if text.startswith(("postlane ", ".venv/bin/postlane ")):
            yield number, text, False


def split(text: str) -> list[str]:
    """The postlane commands within a line of shell: in pipes, lists, substitutions and loops."""
    joined = re.sub(r"(<<-?\s*'?(\w+)'?)\n.*?^\s*\2$", r"\1", text, flags=re.DOTALL | re.MULTILINE)
    joined = joined.replace("\\\n", " ")
    return [joined[m.start(1) : m.end(1)].strip() for m in _COMMAND.finditer(_unquoted(joined))]


def _unquoted(text: str) -> str:
    """The same length with what is quoted, and comments, made harmless."""
    text = re.sub(r"'[^']*'|\"(?:[^\"\\$]|\\.|\$(?!\())*\"", lambda m: "q" * len(m[0]), text)
    return re.sub(r"(\s)#.*$", lambda m: " " * len(m[0]), text)


def words(command: str) -> list[str]:
    """As a shell would split it; comments and redirections left out."""
    plain = re.sub(r"\s\d?(?:>>?|<)\s*(?:&\d|\S+)", " ", command)
    return shlex.split(plain, comments=True)
