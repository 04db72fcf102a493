"""Mailboxes: what is accepted in which normal form, what is refused, and that normal forms are fixed points."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from postlane.core.addresses import (
    ADDRESS_MAX_OCTETS,
    InvalidAddress,
    Mailbox,
    normalise_domain,
    parse_address,
    parse_mailbox,
    recipient_domain,
)

ACCEPTED = [
    ("ada@example.com", "", "ada", "example.com"),
    ("Ada.Lovelace+x@EXAMPLE.Com", "", "Ada.Lovelace+x", "example.com"),
    ("<ada@example.com>", "", "ada", "example.com"),
    ("Ada <ada@example.com>", "Ada", "ada", "example.com"),
    ("Ada Lovelace <ada@example.com>", "Ada Lovelace", "ada", "example.com"),
    ("Dr. Ada Lovelace<ada@example.com>", "Dr. Ada Lovelace", "ada", "example.com"),
    ('"Lovelace, Ada" <ada@example.com>', "Lovelace, Ada", "ada", "example.com"),
    ('"Ada \\"Countess\\" L" <ada@example.com>', 'Ada "Countess" L', "ada", "example.com"),
    ('"<mallory@example.net>" <ada@example.com>', "<mallory@example.net>", "ada", "example.com"),
    ('"" <ada@example.com>', "", "ada", "example.com"),
    ("Ада Лавлейс <ada@example.com>", "Ада Лавлейс", "ada", "example.com"),
    ('"a b"@example.com', "", '"a b"', "example.com"),
    ('"ab"@example.com', "", "ab", "example.com"),
    ('"a\\b"@example.com', "", "ab", "example.com"),
    ('"a@b"@example.com', "", '"a@b"', "example.com"),
    ('"a..b"@example.com', "", '"a..b"', "example.com"),
    (r'"a\"b\\"@example.com', "", r'"a\"b\\"', "example.com"),
    ("jörg@example.com", "", "jörg", "example.com"),
    ("jo\u0308rg@example.com", "", "jörg", "example.com"),
    ("用户@例え.テスト", "", "用户", "xn--r8jz45g.xn--zckzah"),
    ("a@BÜCHER.example", "", "a", "xn--bcher-kva.example"),
    ("a@bu\u0308cher.example", "", "a", "xn--bcher-kva.example"),
    ("a@straße.example", "", "a", "xn--strae-oqa.example"),
    ("a@ΣΊΣΥΦΟΣ.example", "", "a", normalise_domain("σίσυφοσ.example")),
    ("a@日本。example", "", "a", "xn--wgv71a.example"),
    ("a@ｅｘａｍｐｌｅ.com", "", "a", "example.com"),
    ("a@xn--bcher-kva.example", "", "a", "xn--bcher-kva.example"),
    ("a@localhost", "", "a", "localhost"),
    ("a@3com.com", "", "a", "3com.com"),
    ("a@1.2.3.x4", "", "a", "1.2.3.x4"),
]

REFUSED = [
    ("", "no @"),
    (" ", "no @"),
    ("ada", "no @"),
    ("@example.com", "source routes"),
    ("@a.example,@b.example:ada@example.com", "source routes"),
    ("<@a.example:ada@example.com>", "source routes"),
    ("ada@", "empty label"),
    ("ada@@example.com", "more than one @"),
    ("ada@b@example.com", "more than one @"),
    ("ada@example..com", "empty label"),
    ("ada@.example.com", "empty label"),
    ("ada@example.com.", "empty label"),
    ("ada@-example.com", "no domain label"),
    ("ada@example-.com", "no domain label"),
    ("ada@exa_mple.com", "no domain label"),
    ("ada@exa mple.com", "no domain label"),
    ("ada @example.com", "double quotes"),
    ("ada@ example.com", "no domain label"),
    ("ada@example.com>", "double quotes"),
    ("ada@" + "a" * 64 + ".com", "63"),
    ("ada@" + "ü" * 64 + ".com", "63 octets"),
    ("ada@" + "üx" * 30 + ".com", "63 octets"),
    ("a" * 65 + "@example.com", "64 octets"),
    ("ü" * 33 + "@example.com", "64 octets"),
    ("a" * 20 + "@" + ".".join(["b" * 60] * 4), "254 octets"),
    ("a@" + ".".join(["b" * 60] * 5), "255 octets"),
    ("a@" + ".".join(["b" * 60] * 100), "2048"),
    ("ada@[192.0.2.1]", "address literals"),
    ("ada@[IPv6:::1]", "address literals"),
    ("ada@192.0.2.1", "IP address"),
    (".ada@example.com", "a dot may not"),
    ("ada.@example.com", "a dot may not"),
    ("a..b@example.com", "a dot may not"),
    ("a(comment)b@example.com", "comments"),
    ("ada@example.com (Ada)", "no domain label"),
    ("Ada (Countess) <ada@example.com>", "double quotes"),
    ("a@example.com, b@example.com", "more than one @"),
    ("a@example.com,b <b@example.com>", "double quotes"),
    ("Friends: a@example.com;", "double quotes"),
    ("Lovelace, Ada <ada@example.com>", "double quotes"),
    ('Ada "x <ada@example.com>', "double quotes"),
    ('"Ada <ada@example.com>', "double quotes"),
    ('"Ada" x <ada@example.com>', '"Name"'),
    ('""@example.com', "empty"),
    ('"a"b@example.com', "after the quoted"),
    ('"a@example.com', "has no end"),
    ('"abc@example.com', "has no end"),
    ("Ada <ada@example.com> <eve@example.com>", "double quotes|more than one"),
    ("<<ada@example.com>>", "double quotes"),
    ("ada@example.com\r\nRCPT TO:<eve@example.com>", "remove the character"),
    ("ada\n@example.com", "remove the character"),
    ("ada\x00@example.com", "remove the character"),
    ("ada\x7f@example.com", "remove the character"),
    ("ada\x85@example.com", "remove the character"),
    ("ada\u2028@example.com", "remove the character"),
    ("ada\ud800@example.com", "remove the character"),
    ("ada\u202e@example.com", "remove the character"),
    ("ada\u3000@example.com", "remove the character"),
    ('"a\r\nb"@example.com', "remove the character"),
    ('"A\r\nBcc: eve@example.com" <ada@example.com>', "remove the character"),
    ("a@exa\u200dmple.com", "may not stand in a domain"),
    ("a@ex\u2026mple.com", "label|stand"),
    ("a@\u0301a.com", "mark"),
    ("a@☃.com", "may not stand in a domain"),
    ("a" * 3000, "2048"),
    ("A" * 300 + " <ada@example.com>", "256"),
]


@pytest.mark.parametrize(("text", "name", "local", "domain"), ACCEPTED)
def test_accepted(text: str, name: str, local: str, domain: str) -> None:
    assert parse_mailbox(text) == Mailbox(name, local, domain)
    assert parse_mailbox(f"  {text} ") == Mailbox(name, local, domain)
    assert recipient_domain(text) == domain


@pytest.mark.parametrize(("text", "hint"), REFUSED, ids=range(len(REFUSED)))
def test_refused(text: str, hint: str) -> None:
    with pytest.raises(InvalidAddress, match=hint) as caught:
        parse_mailbox(text)
    assert str(caught.value).isprintable(), "an error must not carry what was smuggled in"
    assert len(str(caught.value)) < 400


def test_lengths_are_inclusive() -> None:
    assert parse_mailbox("a" * 64 + "@example.com").local == "a" * 64
    assert parse_mailbox("ü" * 32 + "@example.com").local == "ü" * 32
    longest = "a@" + ".".join(["b" * 63, "c" * 63, "d" * 63, "e" * 60])
    assert len(longest) == ADDRESS_MAX_OCTETS
    assert parse_mailbox(longest).address == longest
    with pytest.raises(InvalidAddress):
        parse_mailbox(longest + "e")


def test_smtputf8_is_needed_for_the_local_part_only() -> None:
    assert parse_mailbox("用户@example.com").needs_smtputf8
    assert not parse_mailbox("Ада <a@例え.テスト>").needs_smtputf8


def test_parse_address_takes_no_display_name() -> None:
    assert parse_address("ada@EXAMPLE.com") == "ada@example.com"
    for text in ("Ada <ada@example.com>", "<ada@example.com>", '"" <ada@example.com>'):
        with pytest.raises(InvalidAddress, match="only the address"):
            parse_address(text)


@pytest.mark.parametrize("bad", [None, 3, b"ada@example.com", ["ada@example.com"]])
def test_only_strings(bad: object) -> None:
    with pytest.raises(TypeError):
        parse_mailbox(bad)  # type: ignore[arg-type]


@given(st.text(max_size=80))
def test_any_text_is_a_mailbox_or_refused(text: str) -> None:
    try:
        mailbox = parse_mailbox(text)
    except InvalidAddress:
        return
    assert parse_mailbox(mailbox.address) == mailbox._replace(display_name="")
    assert len(mailbox.address.encode()) <= ADDRESS_MAX_OCTETS
    assert not set(mailbox.address) & set("\r\n\x00")
    assert mailbox.domain.isascii()
    assert mailbox.domain == mailbox.domain.lower()


_atoms = st.text(string.ascii_letters + string.digits + "!#$%&'*+-/=?^_`{|}~", min_size=1, max_size=12)
_labels = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
_hostile = st.text(st.sampled_from('@<>"\\(),;: .\r\n\x00aü[]'), max_size=24)


@given(st.lists(_atoms, min_size=1, max_size=4), st.lists(_labels, min_size=2, max_size=4))
def test_every_dot_atom_address_is_its_own_normal_form(local: list[str], domain: list[str]) -> None:
    text = f"{'.'.join(local)}@{'.'.join(domain)}"
    assert parse_mailbox(text).address == text
    assert parse_mailbox(f"X <{text}>").address == text, "fast and slow path agree"
    assert parse_mailbox(f'"X" <{text.upper()}>').domain == ".".join(domain)


@given(_hostile)
def test_hostile_strings_end_in_one_mailbox_or_a_refusal(text: str) -> None:
    try:
        mailbox = parse_mailbox(text)
    except InvalidAddress:
        return
    bare = mailbox.local if not mailbox.local.startswith('"') else ""
    assert not set(bare) & set('@<>"\\(),;: \r\n\x00[]')
    assert parse_mailbox(mailbox.address).address == mailbox.address


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30))
def test_any_quoted_local_part_survives(content: str) -> None:
    quoted = content.replace("\\", r"\\").replace('"', r"\"")
    mailbox = parse_mailbox(f'"{quoted}"@example.com')
    inner = mailbox.local
    if inner.startswith('"'):
        inner = inner[1:-1].replace(r"\"", '"').replace(r"\\", "\\") if "\\" in inner else inner[1:-1]
    if "\\" not in content:
        assert inner == content
    assert parse_mailbox(mailbox.address) == mailbox


@given(st.text(st.characters(categories=["Ll", "Lo", "Nd"], max_codepoint=0x2FFFF), min_size=1, max_size=12))
@example("\uab70\u13f8\u13a0")  # Cherokee, small and capital
def test_domains_agree_with_idna_2008(label: str) -> None:
    idna = pytest.importorskip("idna")
    try:
        expected = idna.encode(label, uts46=True).decode()
    except idna.IDNAError:
        return  # stricter about context and Bidi than a mailer needs to be
    if expected.isdigit():
        return
    try:
        normal = normalise_domain(label)
    except InvalidAddress:
        # Characters that our Unicode tables do not know yet are refused, never mapped to another domain.
        return
    assert normal == expected
