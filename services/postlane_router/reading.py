"""Reading a request: bytes of any sort -> a request that keeps the contract, or why it is none."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import orjson

from postlane.core.addresses import InvalidAddress, parse_mailbox
from postlane.core.events import REQUEST_MAX_BYTES, MailContent, MailRequested
from postlane.core.identity import content_digest
from postlane.core.route import Recipient, dedup_key, recipients, unacceptable
from postlane.eventlog.codec import Unreadable, decode_record
from postlane.eventlog.ports import Received
from postlane.mime.compose import check_content
from postlane.mime.content import InvalidContent
from postlane.mime.headers import CUSTOM_HEADERS_MAX, SUBJECT_MAX_CHARS, custom_field

_HEADER_VALUE_MAX_CHARS = 500  # of one that needs no second look: longer ones may be folded
_NOT_CONTENT = frozenset({"message_id", "key", "requested_at"})


@dataclass(slots=True)
class Reading:
    """A request with what is needed to tell whether it came before."""

    record: Received
    request: MailRequested
    people: list[Recipient]
    key: bytes  # of the memory of what was accepted
    digest: str


def read_request(record: Received) -> Reading:
    """Raises Unreadable for whatever is no request by the contract."""
    size_bytes = len(record.value or b"")
    if size_bytes > REQUEST_MAX_BYTES:
        raise Unreadable(f"request of {size_bytes} bytes; at most {REQUEST_MAX_BYTES}")
    request = decode_record(MailRequested, record)
    reason = unacceptable(request, record.key)
    if reason is not None:
        raise Unreadable(reason)
    people = recipients(request)
    return Reading(record, request, people, dedup_key(request, people).encode(), digest_of(request))


def digest_of(request: MailRequested) -> str:
    """The same for two requests that ask for the same mail, whoever wrote them and whenever.

    Fields that are empty do not count, so that a field that a later version adds leaves the digest as it was.
    """
    body = {name: value for name, value in request.__dict__.items() if value and name not in _NOT_CONTENT}
    return content_digest(orjson.dumps(body, default=_plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z))


def _plain(value: object) -> dict[str, object]:
    return {name: inner for name, inner in vars(value).items() if inner}


def fault_of(content: MailContent) -> str | None:
    """Why the sender or the content cannot be mailed, None when they can."""
    if _surely_fine(content):
        return None
    try:
        check_content(content)
    except InvalidContent as error:
        return str(error)
    return None


def _surely_fine(content: MailContent) -> bool:
    """Whether a look is enough to see that `check_content` would pass: the common mail, at a quarter of the cost.

    `to` and `cc` of a `content_of` hold only what can be read; everything that is not plain is left to the check.
    """
    if content.template is not None or content.attachments or content.reply_to is not None:
        return False
    text, html, subject = content.text, content.html, content.subject
    if (
        not (text or html)
        or not _is_plain(subject)
        or len(subject) > SUBJECT_MAX_CHARS
        or not _is_mailbox(content.sender)
    ):
        return False
    if (text and "\x00" in text) or (html and "\x00" in html):
        return False
    headers = content.headers
    if not headers:
        return True
    if len(headers) > CUSTOM_HEADERS_MAX or len({name.lower() for name in headers}) < len(headers):
        return False
    for name, value in headers.items():
        if not (0 < len(value) <= _HEADER_VALUE_MAX_CHARS and _is_plain(value) and not value.isspace()):
            return False
        if not _is_header_name(name):
            return False
    return True


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


@lru_cache(maxsize=4096)
def _is_mailbox(text: str) -> bool:
    try:
        parse_mailbox(text)
    except InvalidAddress:
        return False
    return True


@lru_cache(maxsize=4096)
def _is_header_name(name: str) -> bool:
    try:
        custom_field(name, "x")
    except InvalidContent:
        return False
    return True
