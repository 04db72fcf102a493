"""Records to bytes and back: orjson, with CloudEvents 1.0 binary-mode headers and W3C trace context.

A record that cannot be read raises `Unreadable` with a reason that a person understands and that repeats none of the
record's content; nothing else is ever raised for bytes, whatever they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from postlane.core.events import EVENT, VERSION, AnyEvent, Fact, Intent, Outcome, ce_type
from postlane.eventlog.ports import Headers, Received

M = TypeVar("M", bound=Fact)
VALUE_MAX_BYTES = 2_000_000
TRACE_NAMES = ("traceparent", "tracestate")
_TIME_MAX_MS = 253_402_300_799_999  # the end of year 9999


class Unreadable(Exception):
    """The bytes are not a record that this version can read."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {k: v for k, v in value.__dict__.items() if v is not None}
    raise TypeError(f"cannot encode {type(value).__name__}")


def encode(fact: Fact) -> bytes:
    """The JSON of a fact, without the fields that are None; times in RFC 3339 with Z."""
    return orjson.dumps(
        {k: v for k, v in fact.__dict__.items() if v is not None}, default=_plain, option=orjson.OPT_UTC_Z
    )


def decode(model: type[M], value: bytes | None) -> M:
    """A fact from the bytes of a record. Raises Unreadable."""
    body = _parse(value)
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise Unreadable(_reason(error)) from None


def decode_event(value: bytes | None) -> AnyEvent:
    """An event of `mail.events`. Raises Unreadable."""
    body = _parse(value)
    try:
        return EVENT.validate_python(body)
    except ValidationError as error:
        raise Unreadable(_reason(error)) from None


def decode_state(value: bytes | None) -> Intent | Outcome:
    """An entry of `mail.state`. Raises Unreadable."""
    body = _parse(value)
    kind = body.get("kind") if isinstance(body, dict) else None
    try:
        return Intent.model_validate(body) if kind == "intent" else Outcome.model_validate(body)
    except ValidationError as error:
        raise Unreadable(_reason(error)) from None


def decode_record(model: type[M], record: Received) -> M:
    """Like `decode`, and refuses a record whose `ce_type` header names another type or a version unknown here."""
    for name, value in record.headers:
        if name == "ce_type":
            check_type(model, value)
            break
    return decode(model, record.value)


def decode_at_once(model: type[M], record: Received) -> M:
    """Like `decode_record`, parsing and validating in one pass at half the cost: for what our own services wrote.

    The parser is pydantic's, which takes NaN and Infinity where RFC 8259 has none.
    """
    for name, kind in record.headers:
        if name == "ce_type":
            check_type(model, kind)
            break
    value = record.value
    if not value:
        raise Unreadable("empty record")
    if len(value) > VALUE_MAX_BYTES:
        raise Unreadable(f"record of {len(value)} bytes; at most {VALUE_MAX_BYTES}")
    try:
        return model.model_validate_json(value)
    except ValidationError as error:
        raise Unreadable(_reason(error)) from None


def check_type(model: type[Fact], value: bytes | None) -> None:
    """Raises Unreadable unless `value` is the CloudEvents type of `model` in a version that can be read here."""
    if value == _type_bytes(model):
        return
    text = (value or b"").decode("utf-8", "replace")[:100]
    name, _, version = text.rpartition(".v")
    if name == f"postlane.{model.__name__}" and version.isdigit():
        raise Unreadable(f"schema version {version[:8]} is not known here (known: {VERSION}); upgrade this service")
    raise Unreadable(f"ce_type is not {ce_type(model)}")


def _parse(value: bytes | None) -> Any:
    if not value:
        raise Unreadable("empty record")
    if len(value) > VALUE_MAX_BYTES:
        raise Unreadable(f"record of {len(value)} bytes; at most {VALUE_MAX_BYTES}")
    try:
        return orjson.loads(value)
    except (orjson.JSONDecodeError, RecursionError):
        raise Unreadable("not valid JSON (RFC 8259, UTF-8)") from None


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])[:120] or "record"
    more = error.error_count() - 1
    return f"{place}: {first['msg'][:160]}" + (f" (and {more} more)" if more else "")


@lru_cache(maxsize=64)
def _type_bytes(model: type[Fact]) -> bytes:
    return ce_type(model).encode()


@lru_cache(maxsize=256)
def _fixed(model: type[Fact], source: str) -> tuple[tuple[str, bytes], ...]:
    return (
        ("ce_specversion", b"1.0"),
        ("ce_type", _type_bytes(model)),
        ("ce_source", source.encode()),
        ("content-type", b"application/json"),
    )


def headers(
    model: type[Fact], source: str, ident: str, at: datetime, trace: Sequence[tuple[str, bytes]] = ()
) -> Headers:
    """CloudEvents headers: `ident` is unique per source and fact (`ce_id`), `trace` carries W3C trace context."""
    return [
        *_fixed(model, source),
        ("ce_id", ident.encode()),
        ("ce_time", at.isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()),
        *trace,
    ]


def time_of(timestamp_ms: int) -> datetime:
    """A record's time, from 1970 to 9999: Kafka takes whatever its producer says."""
    return datetime.fromtimestamp(min(max(timestamp_ms, 0), _TIME_MAX_MS) / 1000, UTC)


def header(record_headers: Headers, name: str) -> bytes | None:
    """The first header of that name."""
    for key, value in record_headers:
        if key == name:
            return value
    return None


def trace_headers(record_headers: Headers) -> list[tuple[str, bytes]]:
    """The W3C trace context of a record (`traceparent`, `tracestate`), to be handed on."""
    return [(k, v) for k, v in record_headers if k in TRACE_NAMES]


def without_trace(record_headers: Headers) -> list[tuple[str, bytes]]:
    """The other headers of a record."""
    return [(k, v) for k, v in record_headers if k not in TRACE_NAMES]
