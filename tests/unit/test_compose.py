"""Composed mails, read back by the standard library's parser: the same meaning, and nothing smuggled in."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.parser import BytesParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postlane.core.events import Attachment, MailContent, TemplateRef
from postlane.core.identity import delivery_id as make_delivery_id
from postlane.mime.compose import check_content, compose
from postlane.mime.content import AttachedFile, Content, InvalidContent, Rendered

DELIVERY = make_delivery_id("0190b5a0-7a3c-7c2e-9d54-0123456789ab", "ada@example.com", 999_999)
AT_MS = 1_732_400_000_123


def mail(**changes: Any) -> Content:
    fields: dict[str, Any] = {
        "sender": "shop@example.org", "to": ["ada@example.com"], "subject": "Order 42", "text": "On its way.\n",
    }  # fmt: skip
    return Content(**{**fields, **changes})


def made(content: Any, **arguments: Any) -> bytes:
    check_content(content) if not arguments else None
    data = compose(content, delivery_id=DELIVERY, date_ms=AT_MS, **arguments)
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", data), "a lone CR or LF"
    assert b"\x00" not in data
    assert data.endswith(b"\r\n")
    assert max(map(len, data.split(b"\r\n"))) <= 998
    assert data == compose(content, delivery_id=DELIVERY, date_ms=AT_MS, **arguments), "a resend is byte-identical"
    head = data.partition(b"\r\n\r\n")[0]
    for line in head.split(b"\r\n"):
        assert line.strip(), "a line of white space in the header"
        if b"=?utf-8?" in line:
            assert len(line) <= 76
    return data


def read(data: bytes) -> EmailMessage:
    message = BytesParser(policy=policy.default).parsebytes(data)
    assert isinstance(message, EmailMessage)
    for part in message.walk():
        assert not part.defects, part.defects
        for name, value in part.items():
            assert not getattr(value, "defects", ()), (name, value, value.defects)
    return message


def text_of(message: EmailMessage, kind: str = "plain") -> str:
    body = message.get_body((kind,))
    assert body is not None
    return body.get_content().replace("\r\n", "\n")


def test_a_plain_mail_word_by_word() -> None:
    data = made(mail(cc=["bob@example.net"], reply_to="help@example.org", headers={"X-Campaign": "spring"}))
    assert data.decode("ascii").split("\r\n") == [
        "From: shop@example.org",
        "To: ada@example.com",
        "Cc: bob@example.net",
        "Reply-To: help@example.org",
        "Subject: Order 42",
        "Date: Sat, 23 Nov 2024 22:13:20 +0000",
        f"Message-ID: <{DELIVERY}@example.org>",
        f"X-Postlane-Delivery: {DELIVERY}",
        "X-Campaign: spring",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 7bit",
        "",
        "On its way.",
        "",
    ]
    assert read(data)["date"].datetime == datetime(2024, 11, 23, 22, 13, 20, tzinfo=UTC)


def test_a_trace_is_a_header_after_the_delivery_and_nothing_else_can_be() -> None:
    trace = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
    plain = made(mail())
    own = f"X-Postlane-Delivery: {DELIVERY}\r\n".encode()
    assert made(mail(), trace=trace) == plain.replace(own, own + f"X-Postlane-Trace: {trace}\r\n".encode())
    zwsp = "\u200b"
    for text in (
        "",
        trace.upper(),
        trace[:-1],
        trace + "0",
        f"{trace}\n",
        f" {trace}",
        "x\r\nBcc: eve@example.net",
        zwsp,
    ):
        assert made(mail(), trace=text) == plain
    with pytest.raises(InvalidContent):
        check_content(mail(headers={"X-Postlane-Trace": trace}))


def test_the_event_model_fits() -> None:
    content = MailContent(
        sender="Shop <shop@example.org>", to=("ada@example.com",), subject="Grüße", text="a", html="<p>b</p>",
        attachments=(Attachment(filename="a.txt", content_type="text/plain", content="YQ=="),),
    )  # fmt: skip
    message = read(made(content))
    assert message["subject"] == "Grüße"
    assert [part.get_filename() for part in message.iter_attachments()] == ["a.txt"]


def test_bcc_never_appears_and_nobody_to_name_is_said_so() -> None:
    message = read(made(mail(to=[])))
    assert str(message["to"]) == "undisclosed-recipients:;"
    assert "bcc" not in message


def names() -> list[str]:
    return [
        "Ada Lovelace", "Lovelace, Ada", 'Ada "Countess" L', "Ада Лавлейс", "愛達·勒芙蕾絲", "أدا لوفليس", "עדה",
        "एडा लवलेस", "เอดา", "Ada 🎉", "=?utf-8?Q?Ada?=", "a@b.example", "(Ada)", "Ada.", "\\", "A  B", "x" * 200,
        "ß" * 120, "🎉" * 60, "Ada <eve@example.net>", "Zoë O'Brien-Ünal",
    ]  # fmt: skip


@pytest.mark.parametrize("name", names())
def test_display_names(name: str) -> None:
    quoted = '"' + name.replace("\\", r"\\").replace('"', r"\"") + '" <ada@example.com>'
    message = read(made(mail(sender=quoted, to=[quoted, "bob@example.com"])))
    (sender,) = message["from"].addresses
    first, second = message["to"].addresses
    assert sender.addr_spec == first.addr_spec == "ada@example.com"
    assert (second.display_name, second.addr_spec) == ("", "bob@example.com")
    assert first_name(message, "from") == first_name(message, "to") == name


def first_name(message: EmailMessage, header: str) -> str:
    """The first display name in `header`, of one encoded word or many.

    The structured parser of Python 3.11 leaves a space between the encoded words of a phrase (RFC 2047 6.2 says to
    drop it), so where there are several, the older decoder is asked.
    """
    raw = next(str(value) for key, value in message.raw_items() if key.lower() == header)
    words = re.match(r"(?:=\?[^?]+\?B\?[^?]*\?=\s*){2,}", raw)
    if words is None:
        return str(message[header].addresses[0].display_name)
    return str(make_header(decode_header(words[0].rstrip())))


def test_a_hundred_recipients_fold() -> None:
    to = [f"Имя Фамилия {n} <user{n}@example.com>" for n in range(100)]
    data = made(mail(to=to))
    message = read(data)
    assert [a.addr_spec for a in message["to"].addresses] == [f"user{n}@example.com" for n in range(100)]
    assert [str(a.display_name) for a in message["to"].addresses] == [f"Имя Фамилия {n}" for n in range(100)]
    assert max(map(len, data.split(b"\r\n"))) <= 110


def test_internationalised_addresses() -> None:
    data = made(mail(to=["a@bücher.example"]))
    assert b"To: a@xn--bcher-kva.example\r\n" in data
    assert data.isascii()
    utf8 = made(mail(to=["用户@bücher.example"]))
    assert not utf8.isascii(), "this one needs SMTPUTF8"
    assert "To: 用户@xn--bcher-kva.example\r\n".encode() in utf8
    parsed = message_from_bytes(utf8, policy=policy.SMTPUTF8)
    assert parsed["message-id"] == f"<{DELIVERY}@example.org>"


SUBJECTS = [
    "", "Order 42", "Grüße aus Köln", "🎉🎉🎉", "ご注文の品は明日到着いたします。" * 6, "word " * 40 + "end", "x" * 900,
    "=?utf-8?B?SGk=?=", " leading", "trailing ", "two  spaces " * 12 + "x", "a" * 66, "a" * 67, "a " * 33 + "b",
    "family 👨‍👩‍👧‍👦" * 9, "e\u0301" * 60, "مرحبا " * 20 + "x",
    "Re: [x] \"quotes\" <tags> (comment) a@b, c; d: \\",
    "=", "?=", "x =? y",
]  # fmt: skip


@pytest.mark.parametrize("subject", SUBJECTS, ids=range(len(SUBJECTS)))
def test_subjects(subject: str) -> None:
    data = made(mail(subject=subject))
    assert read(data)["subject"] == subject
    raw = message_from_bytes(data)["subject"]
    assert str(make_header(decode_header(raw))).replace("\r\n", "") == subject or "=?" not in raw


def test_encoded_words_hold_whole_characters() -> None:
    data = made(mail(subject="ab" + "🎉ü語" * 60))
    words = re.findall(rb"=\?utf-8\?B\?([^?]*)\?=", data)
    assert len(words) > 5
    assert "".join(base64.b64decode(word).decode() for word in words) == "ab" + "🎉ü語" * 60
    assert max(map(len, words)) <= 63


BODIES = [
    "plain\n", "no end", "", "a\r\nb\rc\nd\n", "ünï\n", "語" * 2000, "x" * 5000, ("x" * 990 + "\n") * 3, "a" * 998,
    "a" * 999, ".\n..\n.\n", "From me\n>From\nFrom you\n", "trailing space \ntab\t\n", "tab\tin\n",
    "bell\x07 form\x0c\n",
    f"--=_{DELIVERY}_a\n--=_{DELIVERY}_a--\n", f"x\n--=_{DELIVERY}_m--\nContent-Type: text/html\n\n<b>", "=_ = =3D =\n",
    "\n\n\n", "\x7f", "a\u2028b\x85c\n", "🎉" * 300, " \n", "=\n", "ü" + "x" * 3000, "\ufeffbom\n", "--\n-- \nsig",
]  # fmt: skip


def one_end(text: str) -> str:
    """Line ends as LF, and one at the end: the two liberties that a mail takes with a text."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.endswith("\n") else text + "\n"


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_bodies(body: str) -> None:
    for content in (
        mail(text=body or " ", html=None),
        mail(text=body or " ", html=f"<pre>{body}</pre>"),
        mail(text=body or " ", html=body + "x", attachments=[AttachedFile("a", "YQ==")]),
    ):
        data = made(content)
        assert data.isascii()
        message = read(data)
        assert one_end(text_of(message)) == one_end(body or " ")
        if content.html:
            assert one_end(text_of(message, "html")) == one_end(content.html)
        assert sum(1 for part in message.walk() if not part.is_multipart()) == 1 + bool(content.html) + len(
            content.attachments
        )


def test_the_encoding_follows_the_content() -> None:
    def encoding(text: str) -> str:
        return str(read(made(mail(text=text)))["content-transfer-encoding"])

    assert encoding("plain") == "7bit"
    assert encoding("Grüße aus Köln, Ihre Bestellung ist unterwegs.") == "quoted-printable"
    assert encoding("ご注文の品は明日到着いたします。") == "base64"
    assert encoding("x" * 999) == "quoted-printable"
    assert encoding("From here") == "quoted-printable"


PNG = base64.b64encode(bytes(range(256)) * 5).decode()


def test_structure_is_as_deep_as_needed() -> None:
    logo = AttachedFile("logo.png", PNG, "image/png", content_id="logo")
    report = AttachedFile("report.pdf", PNG, "application/pdf")

    def shape(part: EmailMessage) -> Any:
        if part.is_multipart():
            return [part.get_content_subtype(), *(shape(inner) for inner in part.iter_parts())]
        return part.get_content_type()

    def of(**changes: Any) -> Any:
        return shape(read(made(mail(**changes))))

    assert of() == "text/plain"
    assert of(text="", html="<b>x</b>") == "text/html"
    assert of(html="<b>x</b>") == ["alternative", "text/plain", "text/html"]
    assert of(text=None, html="<b>x</b>") == ["alternative", "text/plain", "text/html"]
    assert of(attachments=[report]) == ["mixed", "text/plain", "application/pdf"]
    assert of(text=None, attachments=[report]) == ["mixed", "application/pdf"]
    assert of(attachments=[logo]) == ["mixed", "text/plain", "image/png"]
    assert of(html="<b>x</b>", attachments=[logo, report]) == [
        "mixed",
        ["related", ["alternative", "text/plain", "text/html"], "image/png"],
        "application/pdf",
    ]
    message = read(made(mail(html="<img src=cid:logo>", attachments=[logo])))
    image = next(part for part in message.walk() if part.get_content_type() == "image/png")
    assert image["content-id"] == "<logo>"
    assert image.get_content_disposition() == "inline"
    assert image.get_content() == base64.b64decode(PNG)


FILENAMES = [
    "report.pdf", "two words.txt", 'quo"te.txt', "semi;colon=.txt", "Übersicht 2024.pdf", "見積書.xlsx", "🎉.png",
    "a" * 60, "a" * 61, "a" * 255, "ü" * 255, "100%.txt", "it's.txt", "=?utf-8?Q?x?=.txt", "%41.txt", "a..b", " x ",
]  # fmt: skip


@pytest.mark.parametrize("filename", FILENAMES)
def test_filenames(filename: str) -> None:
    message = read(made(mail(attachments=[AttachedFile(filename, "YWJj", "text/plain; charset=utf-8")])))
    (part,) = message.iter_attachments()
    assert part.get_filename() == filename.strip()
    assert part.get_content() == "abc"


@pytest.mark.parametrize("size", [0, 1, 2, 3, 56, 57, 58, 113, 114, 1000, 57 * 32, 57 * 32 + 1, 57 * 64, 100_000])
def test_attachments_of_every_size(size: int) -> None:
    data = bytes(i * 7 % 256 for i in range(size))
    for content in (base64.b64encode(data).decode(), base64.encodebytes(data).decode()):
        (part,) = read(made(mail(attachments=[AttachedFile("x.bin", content)]))).iter_attachments()
        assert part.get_content() == data


@pytest.mark.parametrize(
    "control", ["\r\nBcc: eve@example.net", "\n", "\r", "\x00", "\x0b", "\x1b", "\x7f", "\x85", "\u2028"]
)
@pytest.mark.parametrize(
    "field",
    ["sender", "to", "cc", "reply_to", "subject", "name", "value", "filename", "content_type", "content_id", "unicode"],
)
def test_no_field_can_carry_a_line_end(field: str, control: str) -> None:
    address = f"Ada{control} <ada@example.com>"
    file = {"filename": "a.txt", "content": "YQ==", "content_type": "text/plain"}
    changes: dict[str, Any] = {
        "sender": {"sender": address},
        "to": {"to": ["bob@example.com", address]},
        "cc": {"cc": [address]},
        "reply_to": {"reply_to": address},
        "subject": {"subject": f"Hi{control}"},
        "unicode": {"subject": f"Grüße{control}"},
        "name": {"headers": {f"X-A{control}": "b"}},
        "value": {"headers": {"X-A": f"b{control}c"}},
        "filename": {"attachments": [AttachedFile(**{**file, "filename": f"a{control}.txt"})]},
        "content_type": {"attachments": [AttachedFile(**{**file, "content_type": f"text/plain{control}"})]},
        "content_id": {"attachments": [AttachedFile(**file, content_id=f"a{control}")], "html": "x"},
    }[field]
    for refuse in (check_content, lambda content: compose(content, delivery_id=DELIVERY, date_ms=AT_MS)):
        with pytest.raises(InvalidContent) as caught:
            refuse(mail(**changes))
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name",
    ["Bcc", "BCC", "From", "To", "Cc", "Sender", "Reply-To", "Subject", "Date", "Message-ID", "Content-Type",
     "content-transfer-encoding", "MIME-Version", "X-Postlane-Delivery", "X-postlane-x", "DKIM-Signature",
     "Return-Path",     "Received", "Resent-To", "ARC-Seal", "", "a b", "a:b", "ü", "X" * 51, "X-\r\nY"],
)  # fmt: skip
def test_header_names_that_are_ours_are_refused(name: str) -> None:
    with pytest.raises(InvalidContent, match="headers"):
        check_content(mail(headers={name: "x"}))


def test_custom_headers_pass_through() -> None:
    url = "https://example.org/u?" + "k=v&" * 60
    headers = {
        "List-Unsubscribe": f"<mailto:leave@example.org>, <{url}>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        "References": " ".join(f"<{n}@example.org>" for n in range(30)),
        "X-Note": "Grüße 🎉",
        "X-Note-In-Greek-With-A-Very-Long-Name-Indeed-Abcd": "αβγ" * 40,
        "X-Long": "word " * 300 + "x",
    }
    message = read(made(mail(headers=headers)))
    for name, value in headers.items():
        assert str(message[name]) == value


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"text": None}, "text"),
    ({"text": "", "html": ""}, "text"),
    ({"sender": ""}, "sender"),
    ({"sender": "a@x.org, b@x.org"}, "sender"),
    ({"sender": None}, "sender"),
    ({"to": "ada@example.com"}, "to"),
    ({"to": ["nobody"]}, "to"),
    ({"to": [None]}, "to"),
    ({"cc": ["@"]}, "cc"),
    ({"reply_to": ["a@b", "c"]}, "reply_to"),
    ({"subject": "x" * 1001}, "subject"),
    ({"subject": "\ud800"}, "subject"),
    ({"subject": None}, "subject"),
    ({"text": "a\x00b"}, "text"),
    ({"text": "a\ud800b"}, "text"),
    ({"text": b"bytes"}, "text"),
    ({"html": "a\x00b"}, "html"),
    ({"headers": {"X-A": "1", "x-a": "2"}}, "headers"),
    ({"headers": {f"X-{n}": "1" for n in range(51)}}, "headers"),
    ({"headers": {"X-A": " "}}, "headers"),
    ({"headers": {"X-A": 3}}, "headers"),
    ({"headers": {"X-A": "x" * 999}}, "headers"),
    ({"headers": {"X-A": "x " * 5000}}, "headers"),
    ({"headers": {"List-Unsubscribe": "<https://bücher.example>"}}, "headers"),
    ({"template": TemplateRef(id="welcome")}, "template"),
    ({"attachments": [AttachedFile("a", "YQ==")] * 101}, "attachments"),
    ({"attachments": [AttachedFile("", "YQ==")]}, "attachments[0].filename"),
    ({"attachments": [AttachedFile("../etc/passwd", "YQ==")]}, "attachments[0].filename"),
    ({"attachments": [AttachedFile("a\\b", "YQ==")]}, "attachments[0].filename"),
    ({"attachments": [AttachedFile("x" * 256, "YQ==")]}, "attachments[0].filename"),
    ({"attachments": [AttachedFile("a", "YQ=")]}, "attachments[0].content"),
    ({"attachments": [AttachedFile("a", "Y_-=")]}, "attachments[0].content"),
    ({"attachments": [AttachedFile("a", "YQ==\r\n--=_x")]}, "attachments[0].content"),
    ({"attachments": [AttachedFile("a", "=YQ=")]}, "attachments[0].content"),
    ({"attachments": [AttachedFile("a", "YQ==", "pdf")]}, "attachments[0].content_type"),
    ({"attachments": [AttachedFile("a", "YQ==", "multipart/mixed; boundary=x")]}, "attachments[0].content_type"),
    ({"attachments": [AttachedFile("a", "YQ==", "message/rfc822")]}, "attachments[0].content_type"),
    ({"attachments": [AttachedFile("a", "YQ==", "text/plain; x=ü")]}, "attachments[0].content_type"),
    ({"attachments": [AttachedFile("a", "YQ==", content_id="a b")]}, "attachments[0].content_id"),
    ({"attachments": [AttachedFile("a", "YQ==", content_id="")]}, "attachments[0].content_id"),
    ({"attachments": [AttachedFile("a", "YQ==", disposition="form-data")]}, "attachments[0].disposition"),
]


@pytest.mark.parametrize(("changes", "field"), REFUSED, ids=range(len(REFUSED)))
def test_refused_by_name_of_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidContent) as caught:
        check_content(mail(**changes))
    assert caught.value.field.startswith(field)


@pytest.mark.parametrize("delivery", ["", "a b", "a\r\nb", "a" * 65, ".a", "a..b", "a>b"])
def test_a_delivery_id_that_is_none_is_refused(delivery: str) -> None:
    with pytest.raises(InvalidContent, match="delivery_id"):
        compose(mail(), delivery_id=delivery, date_ms=AT_MS)


@pytest.mark.parametrize("date_ms", [-1, 10**16])
def test_a_date_that_is_none_is_refused(date_ms: int) -> None:
    with pytest.raises(InvalidContent, match="date_ms"):
        compose(mail(), delivery_id=DELIVERY, date_ms=date_ms)


def test_a_template_has_to_be_rendered_first() -> None:
    content = mail(text=None, template=TemplateRef(id="welcome"))
    check_content(content)
    with pytest.raises(InvalidContent, match="template"):
        compose(content, delivery_id=DELIVERY, date_ms=AT_MS)
    message = read(made(content, rendered=Rendered("Hello Ada", None, "<p>Hi <b>Ada</b></p>")))
    assert message["subject"] == "Hello Ada"
    assert text_of(message) == "Hi Ada\n"


def test_deliveries_of_one_mail_differ_only_by_their_id() -> None:
    other = DELIVERY[:-1] + "8"
    content = mail(html="<b>x</b>", attachments=[AttachedFile("a", "YQ==")])
    one = compose(content, delivery_id=DELIVERY, date_ms=AT_MS)
    two = compose(content, delivery_id=other, date_ms=AT_MS)
    assert one != two
    assert one.replace(DELIVERY.encode(), other.encode()) == two


_line = st.text(st.characters(blacklist_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=200)
_text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), min_size=1, max_size=300)


@given(_line)
def test_any_subject_survives(subject: str) -> None:
    assert read(made(mail(subject=subject)))["subject"] == subject


@given(_line.filter(lambda name: name.strip() == name))
def test_any_display_name_survives(name: str) -> None:
    quoted = '"' + name.replace("\\", r"\\").replace('"', r"\"") + '" <ada@example.com>'
    message = read(made(mail(to=[quoted])))
    assert first_name(message, "to") == name
    assert [address.addr_spec for address in message["to"].addresses] == ["ada@example.com"]


@given(_text, _text)
@settings(max_examples=150)
def test_any_text_and_html_survive(text: str, html: str) -> None:
    message = read(made(mail(text=text, html=html)))
    assert one_end(text_of(message)) == one_end(text)
    assert one_end(text_of(message, "html")) == one_end(html)


@given(_line.filter(lambda name: bool(name.strip()) and "/" not in name and "\\" not in name), st.binary(max_size=300))
def test_any_attachment_survives(filename: str, data: bytes) -> None:
    content = base64.b64encode(data).decode()
    (part,) = read(made(mail(attachments=[AttachedFile(filename, content)]))).iter_attachments()
    assert part.get_filename() == filename.strip()
    assert part.get_content() == data
