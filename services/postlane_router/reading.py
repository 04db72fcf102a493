"""Reading a request: bytes of any sort -> a request that keeps the contract, or why it is none."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from postlane.core.addresses import InvalidAddress, parse_mailbox
from postlane.core.events import REQUEST_MAX_BYTES, MailRequested
from postlane.core.identity import content_digest
from postlane.core.route import Recipient, dedup_key, recipients, unacceptable
from postlane.eventlog.codec import Unreadable, decode_record
from postlane.eventlog.ports import Received
from postlane.mime.compose import check_content
from postlane.mime.content import InvalidContent

_NOT_CONTENT = frozenset({"message_id", "key", "requested_at"})


@dataclass(frozen=True, slots=True)
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


def fault_of(request: MailRequested) -> str | None:
    """Why the sender or the content cannot be mailed, None when they can."""
    try:
        parse_mailbox(request.sender)
        check_content(request)
    except InvalidAddress as error:
        return f"sender: {error}"
    except InvalidContent as error:
        return str(error)
    return None
