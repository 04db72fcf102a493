"""The dead letter keeps the original and says why; Spring's header formats."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postlane.core.events import ReplyInfo
from postlane.eventlog import dead_letters as dl
from postlane.eventlog.ports import Received


def received(**changes: object) -> Received:
    base = {
        "topic": "x.mail.requests",
        "partition": 3,
        "offset": 77,
        "timestamp_ms": 1_700_000_000_123,
        "key": b"k",
        "value": b"\xff\x00",
        "headers": [("traceparent", b"00-1-2-01")],
    }
    return Received(**{**base, **changes})  # type: ignore[arg-type]


def test_keeps_the_original_and_names_the_topic_by_prefix() -> None:
    out = dl.dead_letter(received(), "x.router", "undecodable", ValueError("no JSON"))
    assert (out.topic, out.partition, out.key, out.value) == ("x.mail.dead-letters", 3, b"k", b"\xff\x00")
    headers = dict(out.headers)
    assert headers["traceparent"] == b"00-1-2-01"
    assert headers[dl.ORIGINAL_PARTITION] == struct.pack(">i", 3)
    assert headers[dl.ORIGINAL_OFFSET] == struct.pack(">q", 77)
    assert headers[dl.EXCEPTION_NAME] == b"ValueError"
    assert headers[dl.EXCEPTION_MESSAGE] == b"no JSON"


@pytest.mark.parametrize("topic", ["mail.dispatch.bulk", "mail.delay.1s", "mail.requests"])
def test_topics_without_prefix(topic: str) -> None:
    assert dl.dead_letter(received(topic=topic), "g", "r", None).topic == "mail.dead-letters"


def test_a_prefix_that_looks_like_a_topic() -> None:
    assert dl.dead_letter(received(topic="mail.mail.delay.1s"), "g", "r", None).topic == "mail.mail.dead-letters"


def test_refuses_other_topics() -> None:
    with pytest.raises(ValueError, match=r"mail\.events"):
        dl.dead_letter(received(topic="mail.events"), "g", "r", None)


def test_round_trip_with_everything() -> None:
    out = dl.dead_letter(
        received(),
        "sender.bulk",
        "gave_up",
        None,
        attempts=12,
        reply=ReplyInfo(code=451, enhanced="4.7.1", text="later"),
        provider="primary",
        delivery_id="d.1.0",
    )
    origin = dl.origin_of(out.headers)
    assert (origin.topic, origin.partition, origin.offset) == ("x.mail.requests", 3, 77)
    assert origin.reason == origin.message == "gave_up"
    assert (origin.attempts, origin.smtp_reply, origin.provider) == (12, "451 4.7.1 later", "primary")
    assert origin.delivery_id == "d.1.0"


def test_a_second_death_replaces_the_bookkeeping_of_the_first() -> None:
    first = dl.dead_letter(received(), "g", "one", None, attempts=3)
    again = dl.dead_letter(received(offset=99, headers=first.headers), "g", "two", None)
    names = [name for name, _ in again.headers]
    assert len(names) == len(set(names))
    origin = dl.origin_of(again.headers)
    assert (origin.offset, origin.reason, origin.attempts) == (99, "two", None)


def test_a_record_too_large_to_be_written_again_leaves_its_bytes_where_they_are() -> None:
    out = dl.dead_letter(received(value=b"x" * 3_000_000), "g", "undecodable", None)
    assert out.value is None
    assert dl.origin_of(out.headers).omitted_bytes == 3_000_000
    assert dict(out.headers)["traceparent"] == b"00-1-2-01"
    headers = [("h", b"y" * 3_000_000)]
    out = dl.dead_letter(received(headers=headers, key=b"k" * 2000), "g", "undecodable", None)
    assert sum(len(v) for _, v in out.headers) + len(out.key or b"") < 4096


@given(st.lists(st.tuples(st.text(), st.binary())), st.binary(), st.text())
def test_any_bytes_and_any_reason(headers: list[tuple[str, bytes]], value: bytes, reason: str) -> None:
    out = dl.dead_letter(received(headers=headers, value=value), "g", reason, None)
    assert out.value == value
    assert dl.origin_of(out.headers).offset == 77


def test_ordinary_headers_are_not_an_origin() -> None:
    with pytest.raises(ValueError):
        dl.origin_of([("traceparent", b"x")])
