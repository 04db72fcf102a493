"""What a template's source may say: a check of its tokens before the engine sees it.

minijinja is a sandbox and its fuel bounds most of what a template can do, but not all (tried with 3.1): an expression
of some ten thousand operators overflows the stack of its compiler and takes the process along; `[1] * 10**8` is
repeated without fuel; a list that holds itself or is doubled (`[x, x]`, `namespace`, `chain`, `zip`) prints for ever.
So a tag has a bounded number of tokens, includes and the like are refused, literals of lists hold constants only, and
`+` and `*` must have sure numbers beside them, so that they cannot join or repeat lists. What a mail needs is left;
arithmetic belongs into the data.
"""

from __future__ import annotations

import re

SOURCE_MAX_CHARS = 500_000
TAG_TOKENS_MAX = 200
ELIFS_MAX = 64

STATEMENTS = frozenset(
    "if elif else endif for endfor set endset with endwith filter endfilter macro endmacro".split()  # noqa: SIM905
)
FILTERS = frozenset(
    (  # noqa: SIM905
        "abs batch bool capitalize d default dictsort e escape filesizeformat first float format groupby indent int "
        "items join last length list lower map max min pluralize reject rejectattr replace reverse round select "
        "selectattr slice sort split string striptags sum title tojson trim truncate unique upper urlencode wordwrap"
    ).split()
)
_NUMBER_FILTERS = frozenset("abs float int length round".split())  # noqa: SIM905
_WORDS = frozenset("if else elif for in not and or is set with filter macro recursive".split())  # noqa: SIM905
_CONSTANTS = frozenset(["true", "false", "none", "True", "False", "None", ",", "-"])

_OPENING = re.compile(r"\{\{|\{%|\{#")
_RAW = re.compile(r"\{%[-+]?\s*raw\s*[-+]?%\}")
_END_RAW = re.compile(r"\{%[-+]?\s*endraw\s*[-+]?%\}")
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<end>[-+]?%\}|-?\}\})
    | (?P<string>"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+')
    | (?P<number>0[xXbBoO][0-9A-Fa-f_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?)
    | (?P<name>[^\W\d]\w*)
    | (?P<sign>\*\*|//|==|!=|<=|>=|[-+*/%~|.,:()\[\]{}<>=])
    )""",
    re.VERBOSE | re.DOTALL,
)

Token = tuple[str, str]


class SourceRefused(ValueError):
    """This source may not become a template; `line` counts from 1."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.line = line


def check_source(source: str) -> None:
    """Raise SourceRefused where `source` says something that a mail template may not say."""
    if len(source) > SOURCE_MAX_CHARS:
        raise SourceRefused(f"longer than {SOURCE_MAX_CHARS} characters", 1)
    at, elifs = 0, 0
    while (opening := _OPENING.search(source, at)) is not None:
        start = opening.start()
        try:
            if opening[0] == "{#":
                at = _after(source, "#}", start)
            elif (raw := _RAW.match(source, start)) is not None:
                end_raw = _END_RAW.search(source, raw.end())
                if end_raw is None:
                    raise _Problem("raw without endraw")
                at = end_raw.end()
            else:
                tokens, at = _tokens(source, opening.end(), "%}" if opening[0] == "{%" else "}}")
                _check_tag(tokens, statement=opening[0] == "{%")
                elifs += tokens[:1] == [("name", "elif")]
                if elifs > ELIFS_MAX:
                    raise _Problem(f"more than {ELIFS_MAX} elif")
        except _Problem as problem:
            raise SourceRefused(str(problem), source.count("\n", 0, start) + 1) from None


class _Problem(Exception):
    pass


def _after(source: str, sign: str, start: int) -> int:
    found = source.find(sign, start + 2)
    if found < 0:
        raise _Problem(f"no {sign} after this")
    return found + 2


def _tokens(source: str, at: int, closing: str) -> tuple[list[Token], int]:
    """The tokens of one tag and where it ends."""
    if source[at : at + 1] in ("-", "+"):  # white space control
        at += 1
    tokens: list[Token] = []
    while True:
        found = _TOKEN.match(source, at)
        if found is None:
            raise _Problem("a tag that is not closed, a string without end, or a sign that no expression has")
        at = found.end()
        kind = found.lastgroup or ""
        if kind == "end":
            if not found[kind].endswith(closing):
                raise _Problem(f"a tag that ends with {found[kind]} but should end with {closing}")
            return tokens, at
        tokens.append((kind, found[kind]))
        if len(tokens) > TAG_TOKENS_MAX:
            raise _Problem(f"a tag of more than {TAG_TOKENS_MAX} words and signs; compute it in the data")


def _check_tag(tokens: list[Token], *, statement: bool) -> None:
    if statement:
        keyword = tokens[0][1] if tokens else ""
        if keyword not in STATEMENTS:
            raise _Problem(f"{{% {keyword} %}} may not be used in a mail template")
        if keyword == "filter":
            _check_filter(tokens[1:2])
        if ("name", "recursive") in tokens:
            raise _Problem("recursive loops may not be used in a mail template")
    _check_brackets(tokens)
    for index, (kind, value) in enumerate(tokens):
        if kind != "sign":
            continue
        if value == "|":
            _check_filter(tokens[index + 1 : index + 2])
        elif value in "+*":
            _check_arithmetic(tokens, index, value)


def _check_filter(name: list[Token]) -> None:
    if not name or name[0][1] not in FILTERS:
        raise _Problem(f"the filter {name[0][1] if name else ''!r} may not be used in a mail template")


def _check_arithmetic(tokens: list[Token], index: int, sign: str) -> None:
    """Refuse what could join or repeat lists: `+` needs a sure number on one side, `*` on both.

    (The engine repeats a list 2.0 times, too, and has no sum of a list and a number.)
    """
    left = _number_before(tokens[max(0, index - 2) : index])
    right = _number_after(tokens[index + 1 :])
    if sign == "+" and not (left or right):
        raise _Problem("beside + there must be a number or a value with a filter, x|float + y; join texts with ~")
    if sign == "*" and not (left and right):
        raise _Problem("on both sides of * there must be numbers or values with a filter, x|float * y|float")


def _number_before(tokens: list[Token]) -> bool:
    """Whether what ends here is a number: `2`, `x|float`."""
    if not tokens:
        return False
    kind, value = tokens[-1]
    previous = tokens[-2] if len(tokens) > 1 else ("", "")
    if kind == "number":
        return previous != ("sign", ".")
    return previous == ("sign", "|") and value in _NUMBER_FILTERS


def _number_after(tokens: list[Token]) -> bool:
    """Whether what begins here is a number: `2`, `x.y|float`, and nothing applied to it."""
    index = 0
    if not tokens:
        return False
    if tokens[0][0] == "name":
        while tokens[index + 1 : index + 2] == [("sign", ".")] and tokens[index + 2 : index + 3]:
            index += 2
        if tokens[index + 1 : index + 2] != [("sign", "|")] or not tokens[index + 2 : index + 3]:
            return False
        index += 2
        if tokens[index][1] not in _NUMBER_FILTERS:
            return False
    elif tokens[0][0] != "number":
        return False
    return not (tokens[index + 1 : index + 2] and tokens[index + 1][1] in ("|", ".", "[", "("))


def _check_brackets(tokens: list[Token]) -> None:
    """Brackets match; braces and bare commas are refused; lists and tuples hold constants only."""
    open_at: list[tuple[str, bool, int]] = []  # (closing sign, is a literal, index)
    keyword = tokens[0][1] if tokens else ""
    for index, (kind, value) in enumerate(tokens):
        if kind != "sign":
            continue
        if value in "{}":
            raise _Problem("braces: put the mapping into the data")
        if value in "([":
            open_at.append((")" if value == "(" else "]", not _applies(tokens, index), index))
        elif value in ")]":
            if not open_at or open_at[-1][0] != value:
                raise _Problem(f"{value} without its opening bracket")
            closing, literal, start = open_at.pop()
            inside = tokens[start + 1 : index]
            if literal and (closing == "]" or _bare_comma(inside)) and not all(_constant(t) for t in inside):
                raise _Problem("a list or tuple with variables in it: put the list into the data")
        elif value == "," and not open_at and not _comma_belongs(tokens, index, keyword):
            raise _Problem("a tuple without brackets")
    if open_at:
        raise _Problem("a bracket that is not closed")


def _applies(tokens: list[Token], index: int) -> bool:
    """Whether the bracket at `index` calls or subscripts what stands before it."""
    if index == 0:
        return False
    kind, value = tokens[index - 1]
    return kind == "string" or value in (")", "]") or (kind == "name" and value not in _WORDS)


def _bare_comma(inside: list[Token]) -> bool:
    depth = 0
    for kind, value in inside:
        if kind == "sign":
            depth += (value in "([") - (value in ")]")
            if value == "," and depth == 0:
                return True
    return False


def _constant(token: Token) -> bool:
    return token[0] in ("string", "number") or token[1] in _CONSTANTS


def _comma_belongs(tokens: list[Token], index: int, keyword: str) -> bool:
    if keyword == "for":
        return ("name", "in") not in tokens[:index]
    return keyword == "with" and tokens[index + 2 : index + 3] == [("sign", "=")]
