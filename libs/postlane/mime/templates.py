"""Templates: subject, text and HTML of a mail from its data, rendered by minijinja inside tight bounds.

What holds: no files, no includes, no Python; an undefined or null value is an error, never a gap in a mail; HTML is
always escaped (no `safe`), subject and text never; source, data, work (fuel) and output are bounded; the same
template and data give the same text in every process. Whatever goes wrong is a TemplateError with a reason that may
be shown and kept.

Where a template has HTML but no text, a text template is derived from the HTML once, when it is compiled, so that a
mail costs no HTML parsing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import Any, Protocol

import minijinja
import orjson

from postlane.mime.content import InvalidContent, Rendered
from postlane.mime.headers import SUBJECT_MAX_CHARS, refuse_controls
from postlane.mime.plaintext import text_template_from_html
from postlane.mime.template_data import DataRefused, frozen
from postlane.mime.template_source import SourceRefused, check_source

FUEL = 100_000  # units of the engine: instructions, and work by size
OUTPUT_MAX_CHARS = 1_000_000
COMPILED_MAX = 256
REASON_MAX_CHARS = 300

_GLOBALS = ("cycler", "debug", "dict", "joiner", "namespace")  # all but `range`
_ENGINE_FILTERS = ("attr", "chain", "lines", "pprint", "safe", "zip")
_PARTS = {"subject": "subject.txt", "text": "text.txt", "html": "body.html"}  # the ending decides on escaping
_PRINTABLE = frozenset([str, int, float, bool, minijinja.Markup])


class TemplateError(ValueError):
    """The template cannot be used or rendered; `reason` says where and why, in one printable line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TemplateLike(Protocol):
    """A template in one version, e.g. postlane.core.events.Template."""

    @property
    def id(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def subject(self) -> str: ...
    @property
    def text(self) -> str | None: ...
    @property
    def html(self) -> str | None: ...


class TemplateRenderer:
    """Renders templates, keeping the last `compiled_max` compiled (id, version). Safe to share between threads."""

    def __init__(
        self,
        *,
        compiled_max: int = COMPILED_MAX,
        fuel: int = FUEL,
        output_max_chars: int = OUTPUT_MAX_CHARS,
    ) -> None:
        self._compiled_max = compiled_max
        self._fuel = fuel
        self._output_max_chars = output_max_chars
        self._compiled: OrderedDict[tuple[str, int], _Compiled] = OrderedDict()
        self._lock = Lock()

    def render(self, template: TemplateLike, data: Mapping[str, Any]) -> Rendered:
        """Subject, text and HTML of `template` with `data` (JSON values); raises TemplateError.

        `text` of the result is None only when the template has HTML from which no text template could be derived;
        then `compose` derives the text from the rendered HTML.
        """
        compiled = self._get(template)
        try:
            values = frozen(data)
        except DataRefused as error:
            raise TemplateError(str(error)) from None
        subject = compiled.render("subject", values, self._output_max_chars).strip(" ")
        try:
            refuse_controls("subject", subject)
        except InvalidContent as error:
            raise TemplateError(f"the rendered {error}") from None
        if len(subject) > SUBJECT_MAX_CHARS:
            raise TemplateError(f"the rendered subject is longer than {SUBJECT_MAX_CHARS} characters")
        text = compiled.render("text", values, self._output_max_chars) if "text" in compiled.parts else None
        html = compiled.render("html", values, self._output_max_chars) if "html" in compiled.parts else None
        return Rendered(subject, text, html)

    def _get(self, template: TemplateLike) -> _Compiled:
        key = (template.id, template.version)
        source = (template.subject, template.text, template.html)
        with self._lock:
            known = self._compiled.get(key)
            if known is not None and known.source == source:
                self._compiled.move_to_end(key)
                return known
        compiled = _Compiled(source, self._fuel)
        with self._lock:
            self._compiled[key] = compiled
            self._compiled.move_to_end(key)
            while len(self._compiled) > self._compiled_max:
                self._compiled.popitem(last=False)
        return compiled


def compile_check(template: TemplateLike) -> frozenset[str]:
    """The names of the data that `template` asks for; raises TemplateError when no mail could be made of it."""
    if not template.text and not template.html:
        raise TemplateError("a template needs text or html")
    compiled = _Compiled((template.subject, template.text, template.html), FUEL)
    names: set[str] = set()
    for part in compiled.parts:
        names |= compiled.env.undeclared_variables_in_template(_PARTS[part])
    return frozenset(names - {"range"})


class _Compiled:
    """One version of one template in an engine of its own, so that nothing can be included from another."""

    def __init__(self, source: tuple[str, str | None, str | None], fuel: int) -> None:
        self.source = source
        self.env = _engine(fuel)
        self.parts: dict[str, str] = {}
        for part, text in zip(("subject", "text", "html"), source, strict=True):
            if part == "subject" or text is not None:
                self._add(part, text or "")
        if source[1] is None and source[2] is not None:
            self._derive_text(source[2])

    def render(self, part: str, values: dict[str, Any], output_max_chars: int) -> str:
        try:
            output = self.env.render_template(_PARTS[part], **values)
        except minijinja.TemplateError as error:
            raise _translated(part, self.parts[part], error) from None
        except Exception as error:
            raise TemplateError(_line(f"{part}: {error}")) from None
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # how pyo3 names a panic of the engine
                raise
            raise TemplateError(f"{part}: the engine gave up on this template") from None
        if len(output) > output_max_chars:
            raise TemplateError(f"{part}: the output is longer than {output_max_chars} characters")
        return output

    def _add(self, part: str, source: str) -> None:
        try:
            check_source(source)
            self.env.add_template(_PARTS[part], source)
        except SourceRefused as error:
            raise TemplateError(_line(f"{part}, line {error.line}: {error}")) from None
        except minijinja.TemplateError as error:
            raise _translated(part, source, error) from None
        except UnicodeEncodeError as error:
            raise TemplateError(f"{part}: remove the lone surrogate at character {error.start}") from None
        self.parts[part] = source

    def _derive_text(self, html: str) -> None:
        derived = text_template_from_html(html)
        if derived is not None:
            try:
                self._add("text", derived)
            except TemplateError:
                return  # an odd interplay of tags and markup; compose derives the text from the rendered HTML


def _engine(fuel: int) -> minijinja.Environment:
    env = minijinja.Environment(
        fuel=fuel, undefined_behavior="strict", debug=False, pycompat=False, finalizer=_printable
    )
    for name in _GLOBALS:
        env.remove_global(name)
    for name in _ENGINE_FILTERS:
        env.remove_filter(name)
    env.add_filter("tojson", _tojson)
    return env


def _printable(value: Any) -> Any:
    """What may be printed as it is; a null or a whole list in the middle of a sentence is a mistake."""
    if type(value) in _PRINTABLE:
        return value
    if value is None:
        raise ValueError("a null value would be printed; use |default('…', true) or {% if %}")
    raise ValueError("a list or object would be printed; print its items")


def _tojson(value: Any) -> Any:
    """JSON that may stand in HTML, in scripts too. The engine's own would indent without bound."""
    text = orjson.dumps(value).decode()
    for sign in "<>&'\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return minijinja.safe(text)


def _translated(part: str, source: str, error: minijinja.TemplateError) -> TemplateError:
    where = f"{part}, line {error.line}" if error.line else part
    what = error.detail or error.kind
    if error.kind == "UndefinedError":
        what = f"undefined: {_excerpt(source, error.range)}"
    elif error.kind == "OutOfFuel":
        what = "too much work for one mail (fuel exhausted); shorten loops"
    elif error.__cause__ is not None and not error.detail:
        what = str(error.__cause__)
    return TemplateError(_line(f"{where}: {what}"))


def _excerpt(source: str, span: tuple[int, int] | None) -> str:
    """The piece of source that an engine's error points at (octets of UTF-8), around its dots."""
    if span is None:
        return "a value"
    data = source.encode()
    start, end = span
    while (start > 0 and data[start - 1 : start].isalnum()) or data[start - 1 : start] in (b"_", b"."):
        start -= 1
    return data[start:end].decode(errors="replace").strip() or "a value"


def _line(reason: str) -> str:
    shown = "".join(char if char.isprintable() else " " for char in reason)
    return shown if len(shown) <= REASON_MAX_CHARS else shown[: REASON_MAX_CHARS - 1] + "…"
