"""Reading .eml files: what is kept, what is left behind, and that broken files end in a reason."""

from __future__ import annotations

import base64
from email.message import EmailMessage
from email.policy import SMTP

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postlane.core.events import MailContent
from postlane.mime.compose import check_content, compose
from postlane.mime.content import AttachedFile, Content
from postlane.mime.eml import EML_MAX_BYTES, InvalidEml, parse_eml


def test_a_whole_mail() -> None:
    message = EmailMessage(policy=SMTP)
    message["From"] = '"Лавлейс, Ада" <ada@example.org>'
    message["To"] = "Bob <bob@example.com>, carol@example.com"
    message["Cc"] = "Zoë <zoe@example.net>"
    message["Bcc"] = "hidden@example.net"
    message["Reply-To"] = "help@example.org"
    message["Subject"] = "Grüße aus Köln 🎉"
    message["Message-ID"] = "<old@example.org>"
    message["Received"] = "from x by y; Mon, 01 Jan 2024 00:00:00 +0000"
    message["List-Unsubscribe"] = "<https://example.org/u>"
    message["X-Mailer"] = "something"
    message.set_content("Hallo\nWelt\n")
    message.add_alternative("<p>Hallo <img src='cid:logo'></p>", subtype="html")
    html = message.get_payload()[1]
    html.add_related(b"\x89PNG", "image", "png", cid="<logo>", filename="logo.png")
    message.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="Übersicht.pdf")
    message.add_attachment("naïve", filename="note.txt")
    fields = parse_eml(message.as_bytes())
    assert fields["sender"] == '"Лавлейс, Ада" <ada@example.org>'
    assert fields["to"] == ['"Bob" <bob@example.com>', "carol@example.com"]
    assert fields["cc"] == ['"Zoë" <zoe@example.net>']
    assert fields["reply_to"] == "help@example.org"
    assert fields["subject"] == "Grüße aus Köln 🎉"
    assert fields["text"] == "Hallo\nWelt\n"
    assert fields["html"].strip() == "<p>Hallo <img src='cid:logo'></p>"
    assert fields["headers"] == {"List-Unsubscribe": "<https://example.org/u>"}
    logo, pdf, note = fields["attachments"]
    assert (logo["filename"], logo["content_id"], logo["disposition"]) == ("logo.png", "logo", "attachment")
    assert (pdf["filename"], pdf["content_type"], base64.b64decode(pdf["content"])) == (
        "Übersicht.pdf",
        "application/pdf",
        b"%PDF",
    )
    assert note["content_type"] == "text/plain; charset=utf-8"
    assert "hidden" not in repr(fields)
    content = MailContent(**fields)
    check_content(content)
    compose(content, delivery_id="x.y.0", date_ms=0)


def test_what_we_compose_we_can_read() -> None:
    content = Content(
        sender="Łukasz Żółć <shop@example.org>", to=["Ада <ada@example.com>"], cc=['"a, b" <c@example.com>'],
        subject="語" * 60, text="Zwölf\n", html="<p>Zwölf</p>\n", headers={"In-Reply-To": "<1@example.org>"},
        attachments=[AttachedFile("ü" * 100, "YWJj", "text/csv")],
    )  # fmt: skip
    fields = parse_eml(compose(content, delivery_id="x.y.0", date_ms=0))
    assert fields["sender"] == '"Łukasz Żółć" <shop@example.org>'
    assert fields["cc"] == ['"a, b" <c@example.com>']
    assert (fields["subject"], fields["text"], fields["html"]) == ("語" * 60, "Zwölf\n", "<p>Zwölf</p>\n")
    assert fields["headers"] == {"In-Reply-To": "<1@example.org>"}
    assert fields["attachments"][0]["filename"] == "ü" * 100
    again = parse_eml(compose(MailContent(**fields), delivery_id="x.y.0", date_ms=0))
    assert again == fields


def test_odd_but_readable() -> None:
    assert parse_eml(b"Subject: x\n\nbody") == {"subject": "x", "text": "body"}
    assert parse_eml("Subject: Grüße\nFrom: Zoë <z@x.example>\n\nnaïve".encode()) == {
        "subject": "Grüße",
        "sender": '"Zoë" <z@x.example>',
        "text": "naïve",
    }
    assert parse_eml(b"Subject: a\n b\n\tc\n\n")["subject"] == "a b c"
    assert parse_eml(b"To: undisclosed-recipients:;\nSubject: x\n\n").get("to") is None
    assert parse_eml(b"Subject: x\nContent-Type: text/plain; charset=no-such\n\nx\xe9")["text"] == "x\ufffd"
    latin = b"Subject: =?iso-8859-1?Q?Gr=FC=DFe?=\nContent-Type: text/plain; charset=iso-8859-1\n\nna\xefve"
    assert parse_eml(latin) == {"subject": "Grüße", "text": "naïve"}
    assert parse_eml(b"Subject: x\nContent-Type: text/html\n\n<b>x</b>") == {"subject": "x", "html": "<b>x</b>"}
    assert parse_eml(b"Subject: x\n\na\x00b")["text"] == "a\ufffdb"


def test_a_forwarded_mail_becomes_a_file() -> None:
    inner = EmailMessage()
    inner["Subject"] = "inner"
    inner.set_content("x")
    outer = EmailMessage()
    outer["Subject"] = "outer"
    outer.set_content("see")
    outer.add_attachment(inner)
    (file,) = parse_eml(outer.as_bytes())["attachments"]
    assert file["content_type"] == "application/octet-stream"
    assert file["filename"].endswith(".eml")
    assert b"Subject: inner" in base64.b64decode(file["content"])


def test_file_names_lose_their_paths_and_controls() -> None:
    disposition = b'Content-Disposition: attachment; filename="..\\\\..\\\\a/b\tc.pdf"'
    part = b"Subject: x\nContent-Type: application/pdf\n" + disposition + b"\n\nx"
    (file,) = parse_eml(part)["attachments"]
    assert "/" not in file["filename"]
    assert "\\" not in file["filename"]
    assert file["filename"].endswith("c.pdf")


NESTED = b"".join(
    b'Content-Type: multipart/mixed; boundary="b%d"\n\n--b%d\n' % (n, n) for n in range(300)
)  # fmt: skip


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"", "empty"),
        (b" \r\n ", "empty"),
        (b"just some words", "no header"),
        (b"\n\nSubject: x\n\nbody", "no header"),
        (bytes(range(256)) * 4, "no header"),
        (b"Subject: x\n\n" + b"a" * EML_MAX_BYTES, "larger"),
        (b"From: a@x.example, b@x.example\n\nx", "more than one sender"),
        (b"From: nobody\n\nx", "From: .*no @"),
        (b"To: a@b@c\n\nx", "To: "),
        (b"To: =?utf-8?B?Cg==?= <a@[1.2.3.4]>\n\nx", "To: .*literals"),
        (b"Reply-To: a@x.example, b@x.example\n\nx", "Reply-To"),
        (b"List-Unsubscribe: <" + b"x" * 1200 + b">\n\nx", "List-Unsubscribe"),
        (b"Subject: x\n" + NESTED, "nested deeper"),
        (b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\nContent-Type: a/b\n\nx\n" * 300 + b"--b--", "parts"),
    ],
)
def test_what_cannot_be_published_is_refused_with_a_reason(data: bytes, hint: str) -> None:
    with pytest.raises(InvalidEml, match=hint) as caught:
        parse_eml(data)
    assert str(caught.value).isprintable()


_scraps = st.sampled_from(
    [b"From: ", b"To: ", b"Subject: ", b"Content-Type: multipart/mixed; boundary=b",
     b"Content-Type: text/html; charset=utf-7",
     b"Content-Type: message/rfc822", b"Content-Transfer-Encoding: base64",
     b"Content-Disposition: attachment; filename*0*=utf-8''%",
     b"--b", b"--b--", b"\n", b"\n\n", b"\r", b"\x00", b"\xff", b"=?utf-8?Q?=", b"=?utf-8?B?Cg==?=", b"a@x.example",
     b"<", b">", b";", b",", b"(", b'"', b"x" * 100, b"Content-ID: <a>", b": ", b" "]
)  # fmt: skip


@given(st.lists(_scraps, max_size=30).map(b"".join) | st.binary(max_size=200))
def test_scraps_of_mails_are_read_or_refused(data: bytes) -> None:
    try:
        fields = parse_eml(data)
    except InvalidEml:
        return
    content = MailContent(**{"sender": "a@x.example", "text": "x", **fields})
    check_content(content)
    compose(content, delivery_id="x.y.0", date_ms=0)
