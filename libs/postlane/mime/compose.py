"""Compose: the content of a mail and its delivery -> the final bytes of one RFC 5322 message.

Built by hand, because `email.message.EmailMessage` needs about a millisecond for what costs some tens of
microseconds here. Everything that varies comes in through the arguments, so composing a delivery again gives the same
bytes (Date, Message-ID and the boundaries derive from it), and a receiver can fold a resend.

Structure, only as deep as needed: mixed(related(alternative(text, html), inline files…), files…). A boundary is
`=_<delivery id>_<letter>`: neither base64 nor quoted-printable can hold `=_`, and a 7bit text that has a line
beginning with `--=_` is sent as quoted-printable instead, so no boundary can occur in a body.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from postlane.core.identity import rfc_message_id
from postlane.mime.bodies import base64_of, check_text, encode_text, wrap_base64
from postlane.mime.content import AttachmentLike, ContentLike, InvalidContent, Rendered
from postlane.mime.headers import (
    CUSTOM_HEADERS_MAX,
    address_field,
    content_id_of,
    content_type_of,
    custom_field,
    date_field,
    disposition_field,
    mailbox_of,
    mailboxes_field,
    text_field,
)
from postlane.mime.plaintext import text_from_html

DELIVERY_ID_MAX_CHARS = 64  # a boundary has at most 70 (RFC 2046 5.1.1)
DATE_MAX_MS = 253_402_300_799_999  # the end of year 9999
ATTACHMENTS_MAX = 100
_DELIVERY_ID = re.compile(r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*")
_TRACE = re.compile(r"[0-9a-f]{32}-[0-9a-f]{16}")
_DERIVED_TEXTS = 64
_DERIVE_CACHED_MAX_CHARS = 65_536


def compose(
    content: ContentLike,
    *,
    delivery_id: str,
    date_ms: int,
    rendered: Rendered | None = None,
    trace: str | None = None,
) -> bytes:
    """The message of one delivery, CRLF line ends throughout, ready for DATA save for dot-stuffing.

    `date_ms` is milliseconds since 1970 (when the mail was requested); `rendered` takes the place of subject, text
    and html where a template made them; `trace` (`<32 hex>-<16 hex>`, anything else is left out) becomes
    X-Postlane-Trace, by which a bounce finds into the trace of its mail. Bcc recipients never appear. The bytes are
    pure ASCII unless an address has a UTF-8 local part: then, and only then, the message needs SMTPUTF8, so
    `not message.isascii()` tells.

    Raises InvalidContent, naming the field, when the content cannot be a mail.
    """
    if not _DELIVERY_ID.fullmatch(delivery_id) or len(delivery_id) > DELIVERY_ID_MAX_CHARS:
        raise InvalidContent("delivery_id", f"not a delivery id: {delivery_id[:80]!a}")
    if not 0 <= date_ms <= DATE_MAX_MS:
        raise InvalidContent("date_ms", "must be milliseconds since 1970, up to the year 9999")
    subject, text, html = _say(content, rendered)
    head = _head(content, subject, delivery_id, date_ms, trace)
    mime_headers, body = _body(text, html, content.attachments, delivery_id)
    return b"".join((head.encode(), mime_headers, b"\r\n", body))


def check_content(content: ContentLike) -> None:
    """Raise InvalidContent, naming the field and what to do, unless `compose` would accept `content`.

    Cheap enough for every publish: nothing is encoded that need not be. A template's result cannot be known yet.
    """
    if content.template is not None:
        if content.text is not None or content.html is not None:
            raise InvalidContent("template", "give a template or text and html, not both")
    elif not content.text and not content.html and not content.attachments:
        raise InvalidContent("text", "the mail is empty; give text, html, a template or an attachment")
    _head(content, content.subject, "0", 0)
    check_text("text", content.text)
    check_text("html", content.html)
    if len(content.attachments) > ATTACHMENTS_MAX:
        raise InvalidContent("attachments", f"more than {ATTACHMENTS_MAX}")
    for index, attachment in enumerate(content.attachments):
        _file_headers(attachment, f"attachments[{index}]", attachment.disposition)
        base64_of(f"attachments[{index}].content", attachment.content)


def _say(content: ContentLike, rendered: Rendered | None) -> Rendered:
    """Subject, text and html as they go out: the text derived from the HTML when there is none."""
    if rendered is None:
        if content.template is not None:
            raise InvalidContent("template", "render the template before composing the mail")
        rendered = Rendered(content.subject, content.text, content.html)
    check_text("html", rendered.html)
    check_text("text", rendered.text)
    if rendered.text is None and rendered.html:
        return rendered._replace(text=_derive(rendered.html))
    return rendered


def _derive(html: str) -> str:
    return _derived(html) if len(html) <= _DERIVE_CACHED_MAX_CHARS else text_from_html(html)


@lru_cache(maxsize=_DERIVED_TEXTS)
def _derived(html: str) -> str:
    return text_from_html(html)  # a campaign often sends one HTML to many


def _head(content: ContentLike, subject: str, delivery_id: str, date_ms: int, trace: str | None = None) -> str:
    sender = mailbox_of("sender", content.sender)
    fields = [mailboxes_field("From", [sender])]
    if isinstance(content.to, str) or isinstance(content.cc, str):
        raise InvalidContent("to", "must be a list of addresses")
    fields.append(address_field("To", "to", content.to) if content.to else "To: undisclosed-recipients:;\r\n")
    if content.cc:
        fields.append(address_field("Cc", "cc", content.cc))
    if content.reply_to:
        replies = [content.reply_to] if isinstance(content.reply_to, str) else content.reply_to
        fields.append(address_field("Reply-To", "reply_to", replies))
    fields.append(text_field("Subject", "subject", subject))
    fields.append(date_field(date_ms))
    # A folded line holds a delivery id and a domain of 255 octets well below 998.
    fields.append(f"Message-ID: {rfc_message_id(delivery_id, sender.domain)}\r\n")
    fields.append(f"X-Postlane-Delivery: {delivery_id}\r\n")
    if trace is not None and _TRACE.fullmatch(trace):
        fields.append(f"X-Postlane-Trace: {trace}\r\n")
    if content.headers:
        fields += _custom(content)
    fields.append("MIME-Version: 1.0\r\n")
    return "".join(fields)


def _custom(content: ContentLike) -> list[str]:
    if len(content.headers) > CUSTOM_HEADERS_MAX:
        raise InvalidContent("headers", f"more than {CUSTOM_HEADERS_MAX}")
    if len({str(name).lower() for name in content.headers}) < len(content.headers):
        raise InvalidContent("headers", "the same header twice, in different case")
    return [custom_field(name, value) for name, value in content.headers.items()]


def _body(
    text: str | None, html: str | None, attachments: Sequence[AttachmentLike], delivery_id: str
) -> tuple[bytes, bytes]:
    """(the Content-* headers, the body after the empty line) of the whole message."""
    parts: list[tuple[bytes, bytes]] = []
    if text or not (html or attachments):
        parts.append(_text_part("text", "plain", text or ""))
    if html:
        parts.append(_text_part("html", "html", html))
    if len(parts) == 2:
        parts = [_multipart("alternative", f"=_{delivery_id}_a", parts)]
    if not attachments:
        return parts[0]
    inline: list[tuple[bytes, bytes]] = []
    files: list[tuple[bytes, bytes]] = []
    for index, attachment in enumerate(attachments):
        field = f"attachments[{index}]"
        related = bool(html and attachment.content_id)
        headers = _file_headers(attachment, field, "inline" if related else attachment.disposition)
        part = headers, wrap_base64(base64_of(f"{field}.content", attachment.content))
        (inline if related else files).append(part)
    if inline:
        root = "multipart/alternative" if text else "text/html"
        parts = [_multipart("related", f"=_{delivery_id}_r", parts + inline, f'; type="{root}"')]
    if files:
        parts = [_multipart("mixed", f"=_{delivery_id}_m", parts + files)]
    return parts[0]


def _text_part(field: str, subtype: str, text: str) -> tuple[bytes, bytes]:
    encoding, body = encode_text(field, text)
    headers = f"Content-Type: text/{subtype}; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n"
    return headers.encode("ascii"), body


def _file_headers(attachment: AttachmentLike, field: str, disposition: str) -> bytes:
    if disposition not in ("attachment", "inline"):
        raise InvalidContent(f"{field}.disposition", "must be attachment or inline")
    lines = [
        f"Content-Type: {content_type_of(f'{field}.content_type', attachment.content_type)}\r\n",
        disposition_field(disposition, f"{field}.filename", attachment.filename),
        "Content-Transfer-Encoding: base64\r\n",
    ]
    if attachment.content_id is not None:
        lines.append(f"Content-ID: <{content_id_of(f'{field}.content_id', attachment.content_id)}>\r\n")
    return "".join(lines).encode("ascii")


def _multipart(
    subtype: str, boundary: str, parts: list[tuple[bytes, bytes]], parameters: str = ""
) -> tuple[bytes, bytes]:
    line = f"--{boundary}\r\n".encode("ascii")
    out: list[bytes] = []
    for headers, body in parts:
        out += (line, headers, b"\r\n", body, b"\r\n")  # this line end is the boundary's, not the body's
    out.append(f"--{boundary}--\r\n".encode("ascii"))
    headers_text = f'Content-Type: multipart/{subtype}{parameters};\r\n boundary="{boundary}"\r\n'
    return headers_text.encode("ascii"), b"".join(out)
