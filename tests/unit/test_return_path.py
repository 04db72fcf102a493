"""Signed return paths: they carry a delivery through any server's spelling, and nobody else can make one."""

from __future__ import annotations

import string
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from postlane.core.addresses import parse_address
from postlane.core.identity import delivery_id, message_id_from_key
from postlane.core.policy import Bounces, Config
from postlane.core.return_path import KEYS_MAX, TOKEN_CHARS, delivery_of, key_of, keys_of, return_path

ADDRESS = "bounces@mail.example.org"
KEY, OLD, FOREIGN = key_of(b"a key of today, 1"), key_of(b"a key of yesterday"), key_of(b"somebody else's")
DELIVERY = delivery_id("0190b5a0-7a3c-7c2e-9d54-0123456789ab", "ada@example.com")

deliveries = st.builds(
    lambda uuid, to, generation: delivery_id(str(uuid), to, generation),
    st.uuids(),
    st.text(max_size=20),
    st.integers(0, 999_999),
)


@given(deliveries)
def test_a_delivery_comes_back(delivery: str) -> None:
    path = return_path(delivery, ADDRESS, KEY)
    local, _, domain = path.rpartition("@")
    assert domain == "mail.example.org"
    assert len(local) == 64
    assert parse_address(path) == path
    for spelt in (path, path.upper(), local, local.title()):
        assert delivery_of(spelt, ADDRESS, (OLD, KEY)) == delivery


def test_one_is_known_by_heart() -> None:
    """Return paths are out for months: a change of the form would lose the bounces of all of them."""
    path = "bounces+agillid2hr6c5hkuaerukz4jvnttwn4xzjsrxzyaaaaowezqjjq2vwk7@mail.example.org"
    assert return_path(DELIVERY, ADDRESS, key_of(b"k" * 16)) == path
    assert delivery_of(path, ADDRESS, [key_of(b"k" * 16)]) == DELIVERY


@given(deliveries, st.integers(0, TOKEN_CHARS - 1), st.sampled_from(string.ascii_lowercase + "234567"))
def test_no_altered_token_is_accepted(delivery: str, place: int, letter: str) -> None:
    path = return_path(delivery, ADDRESS, KEY)
    at = len("bounces+") + place
    altered = path[:at] + letter + path[at + 1 :]
    assert (delivery_of(altered, ADDRESS, [KEY]) is None) == (altered != path)


@given(deliveries)
def test_no_other_key_address_or_domain_signs(delivery: str) -> None:
    forged = return_path(delivery, ADDRESS, FOREIGN)
    assert delivery_of(forged, ADDRESS, (KEY, OLD)) is None
    path = return_path(delivery, ADDRESS, KEY)
    assert delivery_of(path, "bounces@other.example", [KEY]) is None
    assert delivery_of(path.replace("mail.example.org", "other.example"), "bounces@other.example", [KEY]) is None
    assert delivery_of(path, "returns@mail.example.org", [KEY]) is None
    assert delivery_of(path, ADDRESS, []) is None


@given(st.text() | st.from_regex(r"bounces\+[a-z2-7]{50,60}(@mail\.example\.org)?", fullmatch=True))
def test_any_text_is_no_delivery_and_no_exception(text: str) -> None:
    assert delivery_of(text, ADDRESS, (KEY, OLD)) is None


@pytest.mark.parametrize("letter", ["\u0131", "\u017f", "\u212a", "\uff41", "1", "=", " ", "\x00"])
def test_letters_that_fold_to_others_are_none(letter: str) -> None:
    path = return_path(DELIVERY, ADDRESS, KEY)
    assert delivery_of(path.replace(path[20], letter), ADDRESS, [KEY]) is None


@pytest.mark.parametrize(
    "delivery",
    [
        "no delivery",
        f"{'0' * 36}.0123456789abcdef.0",
        f"{'-' * 36}.0123456789abcdef.0",
        "0190b5a07a3c7c2e9d540123456789ab----.0123456789abcdef.0",
        f"{UUID(int=1)}.0123456789abcdef.007",
    ],
)
def test_what_a_token_cannot_carry_is_refused(delivery: str) -> None:
    with pytest.raises(ValueError):
        return_path(delivery, ADDRESS, KEY)


def test_ids_of_both_kinds_are_carried() -> None:
    for ident in (message_id_from_key("default", "order-42"), str(UUID(int=0)), str(UUID(int=2**128 - 1))):
        delivery = delivery_id(ident, "ada@example.com", 3)
        assert delivery_of(return_path(delivery, ADDRESS, KEY), ADDRESS, [KEY]) == delivery


# ---------------------------------------------------------------------------------------------------------- the keys


def test_the_keys_of_a_file() -> None:
    assert keys_of(b"0123456789abcdef\r\n\n  another-key-of-16 \n") == (
        key_of(b"0123456789abcdef"),
        key_of(b"another-key-of-16"),
    )
    long = keys_of(b"x" * 300)[0]  # longer than a key of blake2b may be
    assert delivery_of(return_path(DELIVERY, ADDRESS, long), ADDRESS, [long]) == DELIVERY


@pytest.mark.parametrize("text", [b"", b"\n \n", b"0123456789abcde\n", b"0123456789abcdef\n" * (KEYS_MAX + 1)])
def test_files_without_good_keys_are_refused_without_showing_them(text: bytes) -> None:
    with pytest.raises(ValueError) as refused:
        keys_of(text)
    assert "0123" not in str(refused.value)


# ------------------------------------------------------------------------------------------------------ configuration


def test_the_bounce_address_is_in_normal_form() -> None:
    made = Config.model_validate({"bounces": {"address": "bounces@MAIL.Example.ORG", "key_file": "/run/secrets/key"}})
    assert made.bounces is not None
    assert (made.bounces.address, made.bounces.suppress) == (ADDRESS, True)
    assert Config().bounces is None


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("returning@example.org", "57 of the 64"),
        ("b.c@example.org", "letters or digits"),
        ("bücher@example.org", "letters or digits"),
        ("bounces+x@example.org", "letters or digits"),
        ("bounces", "no @"),
        ("Bounces <bounces@example.org>", "only the address"),
        (f"b@{'a' * 60}.{'b' * 60}.{'c' * 60}.example", "189"),
    ],
)
def test_a_wrong_bounce_address_is_refused_with_a_sentence(address: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Bounces.model_validate({"address": address, "key_file": "key"})
