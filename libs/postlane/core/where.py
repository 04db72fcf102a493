"""`--where`: a small language of conditions over named fields; parsed whole, bounded, without eval.

    reason = 'policy' and (domain in ['example.com', 'example.org'] or attempts > 3) and not reply contains 'quota'

Grammar: `or` of `and` of `not` of conditions; a condition is `a OP b` or a field alone (true unless empty, 0 or
absent); OP is = == != < <= > >= in, not in, contains. Values: 'text' or "text" (backslash escapes a quote or
itself), numbers, true, false, none, [lists of values]. Comparing with what is absent is false, save for = none and
!= none. What can never hold (a number compared with a text) is a mistake and said so, with its position.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

EXPRESSION_MAX_CHARS = 2000
DEPTH_MAX = 30
TERMS_MAX = 200

Kind = Literal["text", "number", "flag"]
Test = Callable[[Mapping[str, Any]], bool]
_Read = Callable[[Mapping[str, Any]], Any]

_TOKEN = re.compile(
    r"\s*(?:(?P<number>-?\d{1,18}(?:\.\d{1,18})?(?![\w.]))|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<text>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")|(?P<sign>==|!=|<=|>=|[=<>(),\[\]]))"
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: bool(a == b),
    "!=": lambda a, b: bool(a != b),
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}
_CONSTANTS = {"true": True, "false": False, "none": None, "null": None}
_WORDS = frozenset({"and", "or", "not", "in", "contains", *_CONSTANTS})


class InvalidExpression(ValueError):
    """What is wrong with an expression; `position` counts characters from 1."""

    exit_code = 2

    def __init__(self, problem: str, position: int) -> None:
        super().__init__(f"--where: {problem}, at character {position}")
        self.problem = problem
        self.position = position


class _Token(NamedTuple):
    kind: str  # number, name, text, sign, end
    text: str
    position: int


class _Operand(NamedTuple):
    kind: str  # text, number, flag, none, list
    read: _Read
    position: int


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed condition: call `holds` with the fields of one record (a missing one is none)."""

    source: str
    names: frozenset[str]
    _test: Test

    def holds(self, fields: Mapping[str, Any]) -> bool:
        """Never raises, whatever the fields hold."""
        return self._test(fields)


def parse(source: str, fields: Mapping[str, Kind]) -> Expression:
    """The condition of `source` over `fields` (name -> kind of its value). Raises InvalidExpression."""
    if len(source) > EXPRESSION_MAX_CHARS:
        raise InvalidExpression(f"longer than {EXPRESSION_MAX_CHARS} characters", EXPRESSION_MAX_CHARS + 1)
    parser = _Parser(_tokens(source), fields)
    test = parser.any_of(0)
    parser.end()
    return Expression(source, frozenset(parser.names), test)


def _tokens(source: str) -> list[_Token]:
    found: list[_Token] = []
    at = 0
    while True:
        match = _TOKEN.match(source, at)
        if match is None:
            rest = source[at:].lstrip()
            position = len(source) - len(rest) + 1
            if not rest:
                return [*found, _Token("end", "", position)]
            if rest[0] in "'\"":
                raise InvalidExpression("this text has no closing quote", position)
            raise InvalidExpression(f"{rest[0]!a} is not understood here", position)
        kind = match.lastgroup or ""
        found.append(_Token(kind, match[kind], match.start(kind) + 1))
        at = match.end()


class _Parser:
    """Recursive descent; one method per rule of the grammar, each returns what it tests or reads."""

    def __init__(self, tokens: list[_Token], fields: Mapping[str, Kind]) -> None:
        self._tokens = tokens
        self._at = 0
        self._fields = fields
        self._terms = 0
        self.names: set[str] = set()

    def any_of(self, depth: int) -> Test:
        tests = [self._all_of(depth)]
        while self._take("or"):
            tests.append(self._all_of(depth))
        return tests[0] if len(tests) == 1 else lambda fields: any(test(fields) for test in tests)

    def _all_of(self, depth: int) -> Test:
        tests = [self._negated(depth)]
        while self._take("and"):
            tests.append(self._negated(depth))
        return tests[0] if len(tests) == 1 else lambda fields: all(test(fields) for test in tests)

    def _negated(self, depth: int) -> Test:
        if depth > DEPTH_MAX:
            raise InvalidExpression(f"nested more than {DEPTH_MAX} deep", self._now.position)
        if self._take("not"):
            test = self._negated(depth + 1)
            return lambda fields: not test(fields)
        if self._take("("):
            test = self.any_of(depth + 1)
            self._expect(")")
            return test
        return self._condition()

    def _condition(self) -> Test:
        left = self._operand()
        token = self._now
        if self._take("contains"):
            return _contains(left, self._operand(), token.position)
        if self._take("in"):
            return _is_in(left, self._operand(), token.position)
        if self._take("not"):
            self._expect("in")
            inside = _is_in(left, self._operand(), token.position)
            return lambda fields: not inside(fields)
        sign = "=" if token.text == "==" else token.text
        if token.kind == "sign" and sign in _COMPARE:
            self._at += 1
            return _compared(left, sign, self._operand(), token.position)
        if left.kind == "list":
            raise InvalidExpression("a list alone is no condition", left.position)
        return lambda fields: bool(left.read(fields))

    def _operand(self) -> _Operand:
        token = self._now
        self._terms += 1
        if self._terms > TERMS_MAX:
            raise InvalidExpression(f"more than {TERMS_MAX} terms", token.position)
        self._at += 1
        if token.kind == "number":
            return _constant("number", float(token.text) if "." in token.text else int(token.text), token.position)
        if token.kind == "text":
            return _constant("text", _ESCAPE.sub(r"\1", token.text[1:-1]), token.position)
        if token.kind == "name":
            return self._named(token)
        if token.text == "[":
            return self._list(token)
        self._at -= 1
        raise InvalidExpression(
            "it ends where a field or a value is expected" if token.kind == "end" else f"not expected: {token.text!a}",
            token.position,
        )

    def _named(self, token: _Token) -> _Operand:
        word = token.text.lower()
        if word in _CONSTANTS:
            value = _CONSTANTS[word]
            return _constant("none" if value is None else "flag", value, token.position)
        if word in _WORDS:
            raise InvalidExpression(f"a field or a value is expected before {token.text!a}", token.position)
        kind = self._fields.get(token.text)
        if kind is None:
            near = get_close_matches(token.text, list(self._fields), n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(self._fields))}"
            raise InvalidExpression(
                f"there is no field {token.text[:40]!a} ({hint}; texts need quotes)", token.position
            )
        name = token.text
        self.names.add(name)
        return _Operand(kind, lambda fields: fields.get(name), token.position)

    def _list(self, token: _Token) -> _Operand:
        values: list[Any] = []
        while not self._take("]"):
            if values:
                self._expect(",")
            element = self._operand_of_list()
            values.append(element)
        return _constant("list", tuple(values), token.position)

    def _operand_of_list(self) -> Any:
        token = self._now
        if (token.kind == "name" and token.text.lower() not in _CONSTANTS) or token.text == "[":
            raise InvalidExpression("a list holds texts, numbers, true, false or none", token.position)
        return self._operand().read({})

    @property
    def _now(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, word: str) -> bool:
        token = self._now
        if token.kind in ("name", "sign") and token.text.lower() == word:
            self._at += 1
            return True
        return False

    def _expect(self, word: str) -> None:
        if not self._take(word):
            raise InvalidExpression(f"{word!a} is expected", self._now.position)

    def end(self) -> None:
        if self._now.kind != "end":
            raise InvalidExpression(f"not expected: {self._now.text[:40]!a}", self._now.position)


def _constant(kind: str, value: Any, position: int) -> _Operand:
    return _Operand(kind, lambda _: value, position)


def _compared(left: _Operand, sign: str, right: _Operand, position: int) -> Test:
    kinds = {left.kind, right.kind} - {"none"}
    if "list" in kinds:
        raise InvalidExpression(f"a list cannot be compared by {sign}; use in", position)
    if len(kinds) > 1:
        raise InvalidExpression(f"a {left.kind} is never {sign} a {right.kind}", position)
    compare, absent = _COMPARE[sign], "none" in (left.kind, right.kind)
    if absent and sign not in ("=", "!="):
        raise InvalidExpression(f"nothing is {sign} none", position)

    def test(fields: Mapping[str, Any]) -> bool:
        a, b = left.read(fields), right.read(fields)
        if not absent and (a is None or b is None):
            return False
        try:
            return compare(a, b)
        except TypeError:
            return False

    return test


def _is_in(left: _Operand, right: _Operand, position: int) -> Test:
    if right.kind == "text":
        return _contains(right, left, position)
    if right.kind != "list":
        raise InvalidExpression("in wants a list or a text on its right", position)
    return lambda fields: left.read(fields) in right.read(fields)


def _contains(whole: _Operand, part: _Operand, position: int) -> Test:
    if whole.kind == "list":
        return _is_in(part, whole, position)
    if whole.kind != "text" or part.kind != "text":
        raise InvalidExpression("only a text contains something, and only a text", position)

    def test(fields: Mapping[str, Any]) -> bool:
        a, b = whole.read(fields), part.read(fields)
        return isinstance(a, str) and isinstance(b, str) and b in a

    return test
