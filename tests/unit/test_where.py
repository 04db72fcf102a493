"""The language of --where: what it means, what it refuses and where, and that nothing else comes of any input."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postlane.core.where import (
    DEPTH_MAX,
    EXPRESSION_MAX_CHARS,
    TERMS_MAX,
    InvalidExpression,
    Kind,
    parse,
)

FIELDS: dict[str, Kind] = {"reason": "text", "domain": "text", "attempts": "number", "code": "number", "own": "flag"}
ROW: dict[str, Any] = {"reason": "policy", "domain": "example.com", "attempts": 3, "own": True}


@pytest.mark.parametrize(
    ("source", "holds"),
    [
        ("reason = 'policy'", True),
        ('reason == "policy"', True),
        ("reason != 'policy'", False),
        ("attempts > 2 and attempts <= 3", True),
        ("attempts > 3 or domain = 'example.com'", True),
        ("attempts > 3 or domain = 'x' and own", False),
        ("own or own and attempts > 9", True),  # and binds tighter
        ("(own or own) and attempts > 9", False),
        ("not own", False),
        ("not not own", True),
        ("not reason = 'x'", True),
        ("domain in ['example.org', 'example.com']", True),
        ("domain not in ['example.org']", True),
        ("attempts in [1, 2.5, 3]", True),
        ("domain in []", False),
        ("domain contains 'ample'", True),
        ("'ample' in domain", True),
        ("code = 550", False),
        ("code != 550", False),  # nothing is said of what is absent,
        ("code = none", True),  # save that it is absent
        ("reason != none", True),
        ("code < 600 or code >= 600", False),
        ("attempts = 3.0", True),
        ("attempts > -1", True),
        ("own = true", True),
        ("TRUE and NOT false", True),
        (r"reason = 'it\'s'", False),
        ("reason", True),
        ("code", False),
    ],
)
def test_what_it_means(source: str, holds: bool) -> None:
    assert parse(source, FIELDS).holds(ROW) is holds


@pytest.mark.parametrize(
    ("source", "position", "said"),
    [
        ("", 1, "ends where"),
        ("reason = ", 10, "ends where"),
        ("reson = 'x'", 1, "did you mean reason"),
        ("reason = policy", 10, "texts need quotes"),
        ("reason = 'policy", 10, "no closing quote"),
        ("attempts > '3'", 10, "a number is never > a text"),
        ("own = 1", 5, "a flag is never = a number"),
        ("reason = 'a' reason = 'b'", 14, "not expected"),
        ("(reason = 'a'", 14, "')' is expected"),
        ("reason in reason2", 11, "no field"),
        ("reason in attempts", 8, "wants a list"),
        ("domain in [reason]", 12, "a list holds"),
        ("domain in ['a' 'b']", 16, "',' is expected"),
        ("attempts contains 'x'", 10, "only a text contains"),
        ("['a'] = 'a'", 7, "a list cannot be compared"),
        ("['a']", 1, "no condition"),
        ("reason < none", 8, "nothing is < none"),
        ("and", 1, "before 'and'"),
        ("attempts = 1.2.3", 12, "is not understood"),
        ("__import__('os')", 1, "no field"),
        ("reason; drop", 7, "is not understood"),
        ("not " * (DEPTH_MAX + 2) + "own", 4 * (DEPTH_MAX + 1) + 1, "nested"),
        ("own or " * TERMS_MAX + "own", 7 * TERMS_MAX + 1, "terms"),
        ("x" * (EXPRESSION_MAX_CHARS + 1), EXPRESSION_MAX_CHARS + 1, "longer"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(source: str, position: int, said: str) -> None:
    with pytest.raises(InvalidExpression) as caught:
        parse(source, FIELDS)
    assert said in str(caught.value)
    assert caught.value.position == position
    assert caught.value.exit_code == 2


_PIECES = "reason domain attempts own code and or not in contains = != < <= > >= ( ) [ ] , 'a' \"b\" 1 -2.5 true none"
_words = st.sampled_from(tuple(_PIECES.split(" ")))
_values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3))


@given(st.lists(_words, max_size=25), st.dictionaries(st.sampled_from(sorted(FIELDS)), _values))
def test_it_parses_or_says_why_and_never_raises_on_a_row(words: list[str], row: dict[str, Any]) -> None:
    source = " ".join(words)
    try:
        expression = parse(source, FIELDS)
    except InvalidExpression as error:
        found = error.position
    else:
        found = 1
        assert expression.holds(row) in (True, False)
        assert expression.names <= set(FIELDS)
    assert 1 <= found <= len(source) + 1


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused(source: str) -> None:
    try:
        parse(source, FIELDS)
    except InvalidExpression:
        pass


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=30))
def test_any_text_can_be_written_as_a_value(text: str) -> None:
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    assert parse(f"reason = '{quoted}'", FIELDS).holds({"reason": text})
