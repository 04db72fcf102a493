"""Mails made of anything: addresses, content, templates, replies. One mail with the header fields that it should have,
or a refusal; what a standard-library parser reads is what was meant."""

from __future__ import annotations

import base64
import email
import email.policy
import re
from typing import Any

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from postlane.core.addresses import InvalidAddress, parse_mailbox
from postlane.core.events import DispatchReady, Template
from postlane.core.replies import Phase, ReplyClass, classify, reply_from_lines, text_max_chars
from postlane.core.smtp_wire import (
    MalformedReply,
    ReplyReader,
    address_max_bytes,
    check_address,
    dot_stuff,
    line_max_bytes,
    reply_max_bytes,
)
from postlane.eventlog.codec import Unreadable, decode
from postlane.eventlog.ports import Received
from postlane.eventlog.tables import TemplateTable
from postlane.mime.compose import compose
from postlane.mime.content import AttachedFile, Content, InvalidContent
from postlane.mime.eml import InvalidEml, parse_eml
from postlane_sender.composer import Composer
from postlane_sender.lane import NotComposable
from tests.hostile.effort import EXAMPLES

DELIVERY = "0197a1b2-0000-7000-8000-000000000001.0123456789abcdef.0"
BOUNDARIES = [f"--=_{DELIVERY}_{letter}" for letter in "abc"] + [f"--=_{DELIVERY}_a--"]

# What has ended headers, parts, lines or mails somewhere.
_SCRAPS = (
    "\r|\n|\r\n|\r\n.\r\n|\n.\n|\r\n\r\n|\x00|\x85|\u2028|\x0b|\x0c|\x1b[31m|.|..|From |>From |--|--=_|?=|=?utf-8?B?|"
    '=?utf-8?Q?=0D=0ABcc:_x?=|Bcc: evil@example.net|Subject: forged|Content-Type: text/html|;|,|:|<|>|@|(|)|[|]|"|\\|'
    "%0d%0a|ü|\U0001f4a9|\ud800|\u202e|\ufeff| |\t|=|=0D=0A|=\r\n|x|a@b.example|<a@b.example>|\xad|ı|ß"
)
scraps = st.sampled_from([*_SCRAPS.split("|"), *BOUNDARIES, "x" * 998, "y" * 3000, " " * 1200, "ü" * 400])
words = st.lists(scraps | st.text(max_size=6), max_size=6).map("".join)
_NAMES = ("X-Own", "Bcc", "Subject", "MIME-Version", "X-Postlane-Delivery", "List-Unsubscribe", "References")
names = st.sampled_from(_NAMES) | words
attachments = st.lists(
    st.builds(
        AttachedFile,
        filename=st.just("a.txt") | words,
        content=st.binary(max_size=60).map(lambda data: base64.b64encode(data).decode()) | words,
        content_type=st.just("text/plain") | words,
        content_id=st.none() | words,
        disposition=st.sampled_from(["attachment", "inline"]) | words,
    ),
    max_size=2,
)
contents = st.builds(
    Content,
    sender=st.just("shop@example.org") | words.map(lambda w: f'"{w}" <shop@example.org>') | words,
    to=st.lists(st.just("ada@example.com") | words.map(lambda w: f"{w} <ada@example.com>"), max_size=2),
    cc=st.lists(st.just("bob@example.com") | words, max_size=1),
    reply_to=st.none() | st.just("help@example.org") | words,
    subject=words,
    text=st.none() | words,
    html=st.none() | words.map(lambda w: f"<p>{w}</p>") | words,
    attachments=attachments,
    headers=st.dictionaries(names, words, max_size=2),
)
# What Postlane itself writes; every other field must be one that was asked for.
_OURS = (
    "from|to|cc|reply-to|subject|date|message-id|x-postlane-delivery|mime-version|content-type|content-disposition|"
    "content-transfer-encoding|content-id"
)
OURS = frozenset(_OURS.split("|"))


@settings(max_examples=EXAMPLES, deadline=None)
@given(contents)
@example(
    Content(
        sender="a@b.example", to=["c@d.example"], subject="s", text="\n".join(BOUNDARIES), html="<p>" + BOUNDARIES[0]
    )
)
def test_any_content_is_one_mail_or_refused(content: Content) -> None:
    try:
        message = compose(content, delivery_id=DELIVERY, date_ms=0)
    except InvalidContent:
        return
    _is_clean(message)
    parsed = email.message_from_bytes(message, policy=email.policy.SMTPUTF8)
    asked = {name.lower() for name in content.headers}
    assert {name.lower() for name in parsed} <= OURS | asked
    for field in ("from", "to", "cc", "subject", "date", "message-id", "mime-version", "content-type"):
        assert len(parsed.get_all(field, [])) <= 1, field
    leaves = [part for part in parsed.walk() if not part.is_multipart()]
    files = [part for part in leaves if part.get_filename() is not None]
    texts = len(leaves) - len(files)
    assert len(files) == len(content.attachments)
    assert texts <= 2
    assert not parsed.defects
    for part, attached in zip(files, content.attachments, strict=True):
        wanted = base64.b64decode(re.sub(r"[ \t\r\n]", "", attached.content))
        assert part.get_payload(decode=True) == wanted
    if content.text:
        (first, *_) = [part for part in leaves if part.get_content_type() == "text/plain" and part not in files]
        got = first.get_payload(decode=True)
        assert isinstance(got, bytes)
        wanted_text = content.text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n").encode()
        assert got.removesuffix(b"\r\n") == wanted_text.removesuffix(b"\r\n")


def _is_clean(message: bytes) -> None:
    bare = message.replace(b"\r\n", b"")
    assert b"\r" not in bare
    assert b"\n" not in bare
    assert b"\x00" not in message
    assert max(map(len, message.split(b"\r\n"))) <= 998
    assert b"\r\n.\r\n" not in dot_stuff(message)[:-2]


@settings(max_examples=EXAMPLES, deadline=None)
@given(words)
def test_any_address_stands_alone_in_a_command_or_is_refused(text: str) -> None:
    mailbox, said = None, ""
    try:
        mailbox = parse_mailbox(text)
    except InvalidAddress as error:
        said = str(error)
    if mailbox is None:
        assert said.isprintable()
        return
    check_address(mailbox.address)
    assert len(mailbox.address.encode()) <= address_max_bytes
    assert parse_mailbox(mailbox.address).address == mailbox.address
    assert not re.search(r"[\x00-\x1f\x7f]", mailbox.address)


@settings(max_examples=EXAMPLES, deadline=None)
@given(contents, st.booleans(), words, words)
@example(Content(sender="a@b.example", to=["c@d.example"]), True, "\ud800", "x")
@example(Content(sender="a@b.example", to=["c@d.example"]), True, "{{ x }}", "\ud800")
def test_the_sender_composes_any_dispatch_record_or_says_why_not(
    content: Content, templated: bool, source: str, value: str
) -> None:
    """Anything else than NotComposable would end the lane."""
    body: dict[str, Any] = {
        "sender": content.sender,
        "to": list(content.to),
        "cc": list(content.cc),
        "subject": content.subject,
        "text": content.text,
        "html": content.html,
        "headers": dict(content.headers),
        "template": {"id": "t", "version": 1, "data": {"x": value, "y": [value, {"z": 10**30}]}} if templated else None,
    }
    mail = DispatchReady.model_construct(
        delivery_id=DELIVERY,
        message_id=DELIVERY[:36],
        recipient="ada@example.com",
        lane="bulk",
        requested_at=_moment(),
        content=_content(body),
    )
    table = TemplateTable()
    table.versions["t", 1] = Template.model_construct(
        id="t", version=1, subject=source, text=f"{{{{ x }}}}{source}", html=f"<b>{{{{ y }}}}</b>{source}", at=_moment()
    )
    try:
        composed = Composer(table)(mail)
    except NotComposable:
        return
    _is_clean(composed.data)


def _moment() -> Any:
    from datetime import UTC, datetime

    return datetime(2026, 1, 2, tzinfo=UTC)


def _content(body: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    from postlane.core.events import MailContent

    try:
        return MailContent.model_validate({k: v for k, v in body.items() if v is not None})
    except ValidationError:
        assume(False)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=200) | st.lists(scraps, max_size=12).map(lambda w: "".join(w).encode("utf-8", "replace")))
def test_any_eml_is_a_mail_or_refused(data: bytes) -> None:
    try:
        parse_eml(data)
    except InvalidEml:
        pass


_REPLIES = (
    "250 ok\r\n|250-|250 |354|\r\n|\n|\r|\x00|5.1.1 |4.7.28|999|2\xb50|421|\xff\xfe|\xe2\x80\xa8|\x1b[2J"
).encode("latin-1")
reply_scraps = st.sampled_from([*_REPLIES.split(b"|"), b"x" * 5000, b"250-x\r\n" * 20])
reply_bytes = st.lists(reply_scraps | st.binary(max_size=6), max_size=14)


@settings(max_examples=EXAMPLES, deadline=None)
@given(reply_bytes)
def test_any_replies_are_read_the_same_however_they_are_split_and_within_bounds(parts: list[bytes]) -> None:
    whole, split = _replies([b"".join(parts)]), _replies([bytes([byte]) for byte in b"".join(parts)])
    assert whole == split
    for code, lines in whole[0]:
        reply = reply_from_lines(code, lines)
        assert len(reply.text) <= text_max_chars
        assert reply.text.isprintable()
        assert 200 <= reply.code <= 599
        for phase in Phase:
            assert classify(reply, phase) in ReplyClass


def _replies(chunks: list[bytes]) -> tuple[list[tuple[int, list[bytes]]], bool]:
    reader, found = ReplyReader(), []
    for chunk in chunks:
        try:
            reader.feed(chunk)
            while code := reader.next():
                assert sum(map(len, reader.texts)) <= reply_max_bytes + line_max_bytes
                found.append((code, list(reader.texts)))
        except MalformedReply:
            return found, True
    return found, False


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=60))
def test_any_value_of_a_template_record(value: bytes) -> None:
    TemplateTable().apply(Received("mail.templates", 0, 1, 0, b"t/1", value, ()))
    try:
        decode(Template, value)
    except Unreadable:
        pass
