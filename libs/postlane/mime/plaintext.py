"""The text alternative of an HTML mail: what a reader without HTML should see, and what spam filters compare.

A small reading of the HTML: paragraphs, headings, lists, quotes, tables by row, links with their target, images by
their alt text, entities; scripts, styles and hidden preheaders left out. Every step is linear in the length of the
HTML; `html.parser` of Python 3.11 is not (`"<a " * 60_000` keeps it busy for minutes), and the HTML of a mail is
whatever a publisher sent. What is no well-formed tag, one with `<` in an attribute for example, reads as text.
"""

from __future__ import annotations

import re
from html import unescape

TEXT_MAX_CHARS = 1_000_000
DEPTH_MAX = 10  # of nested lists and quotes

_BLOCKS = frozenset(
    (  # noqa: SIM905
        "address article aside blockquote center dd details div dl dt fieldset figcaption figure footer form "
        "h1 h2 h3 h4 h5 h6 header hr li main nav ol p pre section summary table tbody tfoot thead tr ul"
    ).split()
)
_SPACED = frozenset("blockquote dl figure h1 h2 h3 h4 h5 h6 ol p pre table ul".split())  # noqa: SIM905
_SILENT = frozenset("head script style template title noscript svg".split())  # noqa: SIM905
_VOID = frozenset("area base br col embed hr img input link meta source track wbr".split())  # noqa: SIM905
_SPACE = re.compile(r"[ \t\r\n\f]+")
_HIDDEN = re.compile(r"(?:display\s*:\s*none|visibility\s*:\s*hidden|mso-hide\s*:\s*all)", re.IGNORECASE)
# A tag ends before the next "<", so that no "<" is looked at more than once.
_PIECE = re.compile(
    r"""<(?P<slash>/?)(?P<tag>[A-Za-z][^\s<>/"']*+)(?P<attrs>(?:[^<>"']++|"[^"<]*+"|'[^'<]*+')*+)>"""
    r"""|(?P<other><[!?][^<>]*+>)|(?P<text>[^<]++|<)"""
)
_ATTR = re.compile(r"""([^\s"'<>/=]++)(?:\s*+=\s*+("[^"]*+"|'[^']*+'|[^\s"'<>=]++))?""")
_GAPS = re.compile(r"\n{3,}")
# Private characters stand for the tags of a template while its HTML is read.
_EXPRESSION, _STATEMENT = 0xF0000, 0xF8000
_STATEMENT_OFFSET = _STATEMENT - _EXPRESSION
_TAGS_MAX = _STATEMENT_OFFSET - 2
_TAGS = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_STAND_INS = re.compile("[\U000f0000-\U000ffffd]")
_STATEMENT_LINES = re.compile("^(?:[ \t]*[\U000f8000-\U000ffffd])+[ \t]*\n", re.MULTILINE)
_LEADING_LINES = re.compile("\\A([\U000f8000-\U000ffffd]+)\n+")
_STATEMENTS = re.compile("[\U000f8000-\U000ffffd]")
_TARGETS = ("http://", "https://", "mailto:", "tel:")


def text_from_html(html: str) -> str:
    """Readable plain text for `html`, with LF line ends; "" when there is nothing to read. Any HTML will do."""
    reader = _Reader()
    reader.read(_without_comments(html))
    return reader.text()


def _without_comments(html: str) -> str:
    """Comments go first: what they hold may look like anything. One without an end reaches to the end."""
    if "<!--" not in html:
        return html
    kept: list[str] = []
    at = 0
    while (start := html.find("<!--", at)) >= 0:
        kept.append(html[at:start])
        end = html.find("-->", start + 4)
        if end < 0:
            return "".join(kept)
        at = end + 3
    kept.append(html[at:])
    return "".join(kept)


def text_template_from_html(html: str) -> str | None:
    """A text template for an HTML template: its tags stay where they are, around them the HTML becomes text.

    None when the two cannot be told apart. Statements survive even where markup is left out, so that an {% if %} in
    a style sheet keeps its {% endif %}.
    """
    if _STAND_INS.search(html):
        return None
    tags: list[str] = []

    def stand_in(tag: re.Match[str]) -> str:
        if tag[0].startswith("{#"):
            return ""
        tags.append(tag[0])
        return chr((_STATEMENT if tag[0].startswith("{%") else _EXPRESSION) + len(tags))

    masked = _TAGS.sub(stand_in, html)
    if len(tags) > _TAGS_MAX:
        return None
    text = text_from_html(masked)
    if "{{" in text or "{%" in text or "{#" in text:
        return None  # made of entities; it would become code here
    text = _LEADING_LINES.sub(r"\1", text)
    text = _STATEMENT_LINES.sub(lambda line: re.sub(r"\s", "", line[0]), text)
    return _STAND_INS.sub(lambda char: tags[(ord(char[0]) - _EXPRESSION) % _STATEMENT_OFFSET - 1], text)


class _Reader:
    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line: list[str] = []
        self._chars = 0
        self._silent = ""  # the element that is not shown, and how many of its name are open
        self._silent_depth = 0
        self._lists: list[int | None] = []  # None: bullets; a number: the next item's
        self._quotes = 0
        self._pre = 0
        self._bullet = ""
        self._links: list[tuple[str, int]] = []  # target, pieces of the line before its words

    def read(self, html: str) -> None:
        for piece in _PIECE.finditer(html):
            if piece["text"] is not None:
                self._data(piece["text"])
            elif piece["tag"] is not None:
                tag = piece["tag"].lower()
                if self._silent:
                    self._pass_over(tag, closing=bool(piece["slash"]))
                elif piece["slash"]:
                    self._end(tag)
                else:
                    self._start(tag, piece["attrs"])

    def _pass_over(self, tag: str, *, closing: bool) -> None:
        if tag == self._silent:
            self._silent_depth += -1 if closing else 1
            if self._silent_depth == 0:
                self._silent = ""

    def _start(self, tag: str, attrs: str) -> None:
        lower = attrs.lower()
        if tag in _SILENT or "hidden" in lower or "none" in lower:
            values = _attributes(attrs)
            if tag in _SILENT or "hidden" in values or _HIDDEN.search(values.get("style", "")):
                if tag not in _VOID:
                    self._silent, self._silent_depth = tag, 1
                return
        if tag in _BLOCKS:
            self._end_block(tag, len(self._lists))
        if tag in ("ul", "ol"):
            self._lists.append(None if tag == "ul" else 1)
        elif tag == "li":
            self._bullet = self._next_bullet()
        elif tag == "blockquote":
            self._quotes += 1
        elif tag == "pre":
            self._pre += 1
        else:
            self._inline(tag, attrs)

    def _inline(self, tag: str, attrs: str) -> None:
        if tag == "br":
            self._break()
        elif tag == "hr":
            self._say("-" * 40)
            self._break()
        elif tag in ("td", "th") and self._line:
            self._say("  ")
        elif tag == "img":
            self._say(_SPACE.sub(" ", _attributes(attrs).get("alt", "")))
        elif tag == "a" and len(self._links) < DEPTH_MAX:
            self._links.append((_attributes(attrs).get("href", "").strip(), len(self._line)))

    def _end(self, tag: str) -> None:
        if tag == "a" and self._links:
            self._end_link(*self._links.pop())
        if tag in _BLOCKS:
            self._end_block(tag, len(self._lists) - (tag in ("ul", "ol")))
        if tag in ("ul", "ol") and self._lists:
            self._lists.pop()
        elif tag == "blockquote":
            self._quotes = max(0, self._quotes - 1)
        elif tag == "pre":
            self._pre = max(0, self._pre - 1)

    def _data(self, data: str) -> None:
        if self._silent:
            self._say("".join(_STATEMENTS.findall(data)))
            return
        if "&" in data:
            data = unescape(data)
        if self._pre:
            first, *rest = data.split("\n")
            self._say(first)
            for line in rest:
                self._break()
                self._say(line)
            return
        words = _SPACE.sub(" ", data)
        if words.startswith(" ") and (not self._line or self._line[-1].endswith(" ")):
            words = words[1:]
        self._say(words)

    def text(self) -> str:
        if self._line:
            self._break()
        return _GAPS.sub("\n\n", "\n".join(self._lines)).strip("\n").replace("\x00", "\ufffd")

    def _say(self, words: str) -> None:
        if words and self._chars < TEXT_MAX_CHARS:
            self._line.append(words)
            self._chars += len(words)

    def _end_block(self, tag: str, depth: int) -> None:
        if self._line:
            self._break()
        if tag in _SPACED and depth <= 0 and self._lines and self._lines[-1]:
            self._lines.append("")

    def _break(self) -> None:
        line = "".join(self._line)
        line = line.rstrip(" ") if self._pre else line.strip(" ")
        self._line.clear()
        self._links = [(target, 0) for target, _ in self._links]
        indent = "> " * min(self._quotes, DEPTH_MAX) + "  " * min(max(0, len(self._lists) - 1), DEPTH_MAX)
        if self._bullet and line:
            indent, self._bullet = indent + self._bullet, ""
        elif self._lists and line:
            indent += "  "
        self._chars += len(indent) + 1
        self._lines.append((indent + line).rstrip(" "))

    def _next_bullet(self) -> str:
        if not self._lists or self._lists[-1] is None:
            return "- "
        number = self._lists[-1]
        self._lists[-1] = number + 1
        return f"{number}. "

    def _end_link(self, target: str, start: int) -> None:
        words = "".join(self._line[start:]).strip()
        if not target.lower().startswith(_TARGETS) and not _STAND_INS.match(target):
            return
        bare = target.removeprefix("mailto:").removeprefix("tel:")
        if not words:
            self._say(bare)
        elif bare.rstrip("/") not in (words, "http://" + words, "https://" + words):
            self._say(f" ({bare})")


def _attributes(attrs: str) -> dict[str, str]:
    return {name.lower(): unescape(value.strip("\"'")) for name, value in _ATTR.findall(attrs)}
