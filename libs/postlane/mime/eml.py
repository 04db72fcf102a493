"""Read a .eml file into the fields of a request: what `postlane send --eml` publishes.

The standard library parses; here the result is bounded, decoded and checked. What a mail picked up on its way
(Received, signatures, Bcc, Message-ID, Date) is left behind: a published mail gets its own.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from email import policy
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.parser import BytesParser
from email.utils import getaddresses
from typing import Any

from postlane.core.addresses import InvalidAddress, parse_mailbox
from postlane.mime.content import InvalidContent
from postlane.mime.headers import FILENAME_MAX_CHARS, content_id_of, content_type_of, custom_field

EML_MAX_BYTES = 2_000_000  # a request has at most 900 KB; base64 and what is left behind come on top
PARTS_MAX = 200
DEPTH_MAX = 20

KEPT_HEADERS = frozenset(
    (  # noqa: SIM905
        "auto-submitted comments feedback-id importance in-reply-to keywords list-archive list-help list-id "
        "list-owner list-post list-subscribe list-unsubscribe list-unsubscribe-post organization precedence priority "
        "references x-priority"
    ).split()
)
_ADDRESS_FIELDS = {"from": "sender", "to": "to", "cc": "cc", "reply-to": "reply_to"}
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_CHARSET = re.compile(r"[A-Za-z0-9._-]{1,40}")


class InvalidEml(ValueError):
    """This file is not a mail that can be published; the message says why."""


def parse_eml(data: bytes) -> dict[str, Any]:
    """The request fields that `data`, a whole RFC 5322 message, fills.

    Keys are those of MailContent: sender, to, cc, reply_to, subject, text, html, attachments (dicts), headers. Absent
    parts have no key. Bcc is not read: the caller names hidden recipients itself. Raises InvalidEml.
    """
    if len(data) > EML_MAX_BYTES:
        raise InvalidEml(f"larger than {EML_MAX_BYTES} bytes; send large files as links")
    if not data.strip():
        raise InvalidEml("the file is empty")
    try:
        message = BytesParser(_class=EmailMessage, policy=policy.default).parsebytes(data)
        if not message.keys():
            raise InvalidEml("no header at its beginning; a .eml file starts with lines like From: and Subject:")
        return _fields(message)
    except RecursionError:
        raise InvalidEml(f"parts nested deeper than {DEPTH_MAX}") from None
    except (InvalidEml, MemoryError):
        raise
    except Exception as error:  # the parser fails in many ways on hostile input; none of them is worth a traceback
        raise InvalidEml(f"cannot be read as a mail ({type(error).__name__}: {_clean(str(error))[:200]})") from None


def _fields(message: EmailMessage) -> dict[str, Any]:
    fields = _addresses(message)
    if "subject" in message:
        raw = next(str(value) for name, value in message.raw_items() if name.lower() == "subject")
        fields["subject"] = _clean(str(message["subject"]) if raw.isascii() else _decoded(_utf8(raw)))
    leaves = list(_leaves(message, 0))
    if len(leaves) > PARTS_MAX:
        raise InvalidEml(f"more than {PARTS_MAX} parts")
    used: set[int] = set()
    for kind, key in (("plain", "text"), ("html", "html")):
        body = message.get_body((kind,))
        if body is not None:
            used.add(id(body))
            text = _text(body)  # type: ignore[arg-type]  # what the parser made: an EmailMessage
            if text:
                fields[key] = text
    files = [_attachment(part, n) for n, part in enumerate(leaves, 1) if id(part) not in used and _holds(part)]
    if files:
        fields["attachments"] = files
    headers = _headers(message)
    if headers:
        fields["headers"] = headers
    return fields


def _addresses(message: EmailMessage) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for header, field in _ADDRESS_FIELDS.items():
        mailboxes: list[str] = []
        # Addresses are split before encoded words are decoded: a name may well hold a comma or a bracket.
        raw = [_utf8(str(value)) for name, value in message.raw_items() if name.lower() == header]
        for name, address in getaddresses([" ".join(value.split()) for value in raw]):
            if not address and not name:
                continue
            if address.endswith(":") or not address:
                continue  # a group's name, as in "undisclosed-recipients:;"
            mailboxes.append(_mailbox(header, _decoded(name), address))
        if field == "sender" and len(mailboxes) > 1:
            raise InvalidEml("From names more than one sender; give one")
        if field == "reply_to" and len(mailboxes) > 1:
            raise InvalidEml("Reply-To names more than one address; give one")
        if mailboxes:
            fields[field] = mailboxes[0] if field in ("sender", "reply_to") else mailboxes
    return fields


def _mailbox(header: str, name: str, address: str) -> str:
    name = _clean(name)
    text = address
    if name:
        text = '"' + name.replace("\\", r"\\").replace('"', r"\"") + f'" <{address}>'
    try:
        parse_mailbox(text)
    except InvalidAddress as error:
        raise InvalidEml(f"{header.title()}: {error}") from None
    return text


def _leaves(part: EmailMessage, depth: int) -> Iterator[EmailMessage]:
    if depth > DEPTH_MAX:
        raise InvalidEml(f"parts nested deeper than {DEPTH_MAX}")
    if part.get_content_maintype() == "multipart" and part.is_multipart():
        for inner in part.iter_parts():
            yield from _leaves(inner, depth + 1)  # type: ignore[arg-type]  # made by the same parser
    else:
        yield part


def _holds(part: EmailMessage) -> bool:
    """False for the empty shell of a multipart whose parts were not found."""
    return part.get_content_maintype() != "multipart"


def _text(part: EmailMessage) -> str:
    payload = part.get_payload(decode=True)
    octets = payload if isinstance(payload, bytes) else b""
    charset = str(part.get_content_charset() or "utf-8")
    try:
        text = octets.decode(charset, "replace")
    except (LookupError, ValueError):
        text = octets.decode("utf-8", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "\ufffd")


def _attachment(part: EmailMessage, number: int) -> dict[str, Any]:
    kind = part.get_content_type()
    if part.get_content_maintype() == "message":
        inner = part.get_payload()
        octets = inner[0].as_bytes() if isinstance(inner, list) and isinstance(inner[0], EmailMessage) else b""
        kind, default = "application/octet-stream", f"message-{number}.eml"  # message/* cannot be base64 (RFC 2046 5.2)
    else:
        payload = part.get_payload(decode=True)
        octets = payload if isinstance(payload, bytes) else b""
        default = f"part-{number}.{'txt' if kind.startswith('text/') else 'bin'}"
    charset = part.get_content_charset()
    if charset and kind.startswith("text/") and _CHARSET.fullmatch(charset):
        kind = f"{kind}; charset={charset}"
    content_id = _content_id(part)
    inline = part.get_content_disposition() == "inline" or (content_id is not None and not part.get_filename())
    return {
        "filename": _filename(part.get_filename(), default),
        "content_type": _content_type(kind),
        "content": b64encode(octets).decode("ascii"),
        "content_id": content_id,
        "disposition": "inline" if inline else "attachment",
    }


def _filename(name: str | None, default: str) -> str:
    bare = re.split(r"[/\\]", _clean(name or ""))[-1].strip()
    return bare[-FILENAME_MAX_CHARS:] or default


def _content_type(kind: str) -> str:
    try:
        return content_type_of("Content-Type", kind)
    except InvalidContent:
        return "application/octet-stream"


def _content_id(part: EmailMessage) -> str | None:
    try:
        return content_id_of("Content-ID", str(part["content-id"]).strip()) if part["content-id"] else None
    except InvalidContent:
        return None


def _headers(message: EmailMessage) -> dict[str, str]:
    kept: dict[str, str] = {}
    for name, value in message.items():
        lower = name.lower()
        if lower in KEPT_HEADERS and lower not in {known.lower() for known in kept}:
            text = _clean(str(value))
            if text:
                try:
                    custom_field(name, text)
                except InvalidContent as error:
                    raise InvalidEml(f"{name}: {error.problem}") from None
                kept[name] = text
    return kept


def _decoded(text: str) -> str:
    try:
        return str(make_header(decode_header(text)))
    except (HeaderParseError, LookupError, ValueError):
        return text


def _utf8(raw: str) -> str:
    """Header octets above 127, which the parser keeps as surrogates, read as UTF-8 (RFC 6532)."""
    return raw.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _clean(text: str) -> str:
    """One line: control characters, folds among them, become spaces."""
    return _CONTROLS.sub(" ", text).strip()
