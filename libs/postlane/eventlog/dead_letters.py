"""Dead letters: the record that could not go on, bytes and headers untouched, with headers that say why.

The `kafka_dlt-*` headers are those of Spring for Apache Kafka's DeadLetterPublishingRecoverer, value formats included
(partition: 4 bytes, offset and timestamp: 8 bytes, big-endian), so that ordinary Kafka tools can redrive. Where a
record was a dead letter before, its older bookkeeping headers give way to the new ones.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from postlane.core.events import ReplyInfo
from postlane.eventlog.ports import Headers, Outgoing, Received
from postlane.eventlog.topics import RECORD_MAX_BYTES, TopicNames

ORIGINAL_TOPIC = "kafka_dlt-original-topic"
ORIGINAL_PARTITION = "kafka_dlt-original-partition"
ORIGINAL_OFFSET = "kafka_dlt-original-offset"
ORIGINAL_TIMESTAMP = "kafka_dlt-original-timestamp"
ORIGINAL_GROUP = "kafka_dlt-original-consumer-group"
EXCEPTION_NAME = "kafka_dlt-exception-fqcn"
EXCEPTION_MESSAGE = "kafka_dlt-exception-message"
REASON = "postlane-reason"
ATTEMPTS = "postlane-attempts"
SMTP_REPLY = "postlane-smtp-reply"
PROVIDER = "postlane-provider"
DELIVERY_ID = "postlane-delivery-id"
VALUE_OMITTED = "postlane-value-omitted"  # bytes of a value too large to be written once more

_OURS = frozenset(
    {
        ORIGINAL_TOPIC,
        ORIGINAL_PARTITION,
        ORIGINAL_OFFSET,
        ORIGINAL_TIMESTAMP,
        ORIGINAL_GROUP,
        EXCEPTION_NAME,
        EXCEPTION_MESSAGE,
        REASON,
        ATTEMPTS,
        SMTP_REPLY,
        PROVIDER,
        DELIVERY_ID,
        VALUE_OMITTED,
    }
)
_TEXT_MAX_CHARS = 500
_RECORD_SLACK_BYTES = 16_384  # what Kafka's framing and our own headers may take of RECORD_MAX_BYTES
_PREFIX = re.compile(r"(?P<prefix>.*)mail\.(?:requests|dispatch\.|delay\.)")


def dead_letter(
    record: Received,
    group: str,
    reason: str,
    exception: BaseException | None,
    *,
    attempts: int | None = None,
    reply: ReplyInfo | None = None,
    provider: str | None = None,
    delivery_id: str | None = None,
) -> Outgoing:
    """The record for `mail.dead-letters` (same partition number) that keeps `record` and says why it went there.

    `reason` is a short machine-readable word (`undecodable`, `key_conflict`, `uncertain`, ...); `exception` is what a
    Kafka tool shows, its text must not repeat content. A record that is too large to be written again keeps
    its headers, and its bytes stay where `original-topic/-partition/-offset` point to (`postlane-value-omitted`).
    Raises ValueError when `record` is not from a topic that mails travel through.
    """
    found = _PREFIX.match(record.topic)
    if found is None:
        raise ValueError(f"{record.topic} is not a topic that mails travel through")
    key, value, kept, omitted = _what_fits(record)
    return Outgoing(
        topic=TopicNames(found["prefix"]).dead_letters,
        partition=record.partition,
        key=key,
        value=value,
        headers=[
            *kept,
            *_origin(record, group, exception, reason),
            *_why(reason, attempts, reply, provider, delivery_id),
            *omitted,
        ],
    )


def _origin(record: Received, group: str, exception: BaseException | None, reason: str) -> Headers:
    name = "postlane.DeadLettered" if exception is None else _name(type(exception))
    return [
        (ORIGINAL_TOPIC, record.topic.encode()),
        (ORIGINAL_PARTITION, struct.pack(">i", record.partition)),
        (ORIGINAL_OFFSET, struct.pack(">q", record.offset)),
        (ORIGINAL_TIMESTAMP, struct.pack(">q", record.timestamp_ms)),
        (ORIGINAL_GROUP, group.encode()),
        (EXCEPTION_NAME, name.encode()),
        (EXCEPTION_MESSAGE, _text(reason if exception is None else str(exception))),
    ]


def _why(
    reason: str, attempts: int | None, reply: ReplyInfo | None, provider: str | None, delivery_id: str | None
) -> Headers:
    headers = [(REASON, _text(reason))]
    if attempts is not None:
        headers.append((ATTEMPTS, str(attempts).encode()))
    if reply is not None:
        parts = (str(reply.code), reply.enhanced or "", reply.text)
        headers.append((SMTP_REPLY, _text(" ".join(part for part in parts if part))))
    if provider is not None:
        headers.append((PROVIDER, _text(provider)))
    if delivery_id is not None:
        headers.append((DELIVERY_ID, _text(delivery_id)))
    return headers


def _what_fits(record: Received) -> tuple[bytes | None, bytes | None, Headers, Headers]:
    """(key, value, headers kept, headers that say what was left out): what a broker takes in one record."""
    kept = [(name, value) for name, value in record.headers if name not in _OURS]
    room = RECORD_MAX_BYTES - _RECORD_SLACK_BYTES
    around = sum(len(name.encode()) + len(value or b"") for name, value in kept) + len(record.key or b"")
    size = len(record.value or b"")
    if around + size <= room:
        return record.key, record.value, kept, []
    omitted = [(VALUE_OMITTED, str(size).encode())]
    if around <= room:
        return record.key, None, kept, omitted
    return (record.key or b"")[:1024] or None, None, [], omitted


def _name(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _text(value: str) -> bytes:
    return value[:_TEXT_MAX_CHARS].encode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Origin:
    """What the headers of a dead letter say: where it came from and why it is here."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    group: str
    reason: str
    message: str
    attempts: int | None = None
    smtp_reply: str | None = None
    provider: str | None = None
    delivery_id: str | None = None
    omitted_bytes: int | None = None


def origin_of(headers: Headers) -> Origin:
    """The bookkeeping of a dead letter. Raises ValueError when the headers are not those of one."""
    found = {name: value for name, value in headers if name in _OURS and value is not None}
    try:
        (partition,) = struct.unpack(">i", found[ORIGINAL_PARTITION])
        (offset,) = struct.unpack(">q", found[ORIGINAL_OFFSET])
        (timestamp_ms,) = struct.unpack(">q", found[ORIGINAL_TIMESTAMP])
        topic = found[ORIGINAL_TOPIC].decode()
    except (KeyError, struct.error, UnicodeDecodeError):
        raise ValueError("not a dead letter: its kafka_dlt-original-* headers are missing or damaged") from None

    def text(name: str) -> str | None:
        return found[name].decode("utf-8", "replace") if name in found else None

    def number(name: str) -> int | None:
        value = text(name)
        return int(value) if value is not None and value.isdecimal() else None

    return Origin(
        topic=topic,
        partition=partition,
        offset=offset,
        timestamp_ms=timestamp_ms,
        group=text(ORIGINAL_GROUP) or "",
        reason=text(REASON) or "",
        message=text(EXCEPTION_MESSAGE) or "",
        attempts=number(ATTEMPTS),
        smtp_reply=text(SMTP_REPLY),
        provider=text(PROVIDER),
        delivery_id=text(DELIVERY_ID),
        omitted_bytes=number(VALUE_OMITTED),
    )


def original_of(letter: Received) -> Outgoing:
    """The record that a dead letter keeps, for the topic and partition that it came from: a redrive.

    Bytes and headers are as they were. Raises ValueError when it is no dead letter, or when its value was left out.
    """
    origin = origin_of(letter.headers)
    if origin.omitted_bytes is not None:
        raise ValueError(f"its {origin.omitted_bytes} bytes were left out; they are where its headers say")
    kept = [(name, value) for name, value in letter.headers if name not in _OURS]
    return Outgoing(origin.topic, origin.partition, letter.key, letter.value, kept)
