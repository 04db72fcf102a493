"""The publisher without a broker: identity, sizes, headers, order, and what each failure means."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any

import pytest

from postlane import (
    AsyncPublisher,
    BrokerUnavailable,
    InvalidMail,
    Mail,
    MailTooLarge,
    Publisher,
    PublishRefused,
    PublishTimeout,
)
from postlane.config import ConfigurationError
from postlane.core.events import FANOUT_MAX_BYTES, REQUEST_MAX_BYTES, MailRequested
from postlane.core.identity import message_id_from_key
from postlane.eventlog.codec import decode, header
from postlane.eventlog.errors import Fatal, LogError, Retriable, TooLarge, UnknownTopic, Unreachable
from postlane.eventlog.ports import Outgoing
from postlane.eventlog.publish import AppendUnknown
from postlane.publisher import Receipt, prepare

NOW = datetime(2026, 1, 31, 9, tzinfo=UTC)


def mail(number: int = 0, **changed: Any) -> Mail:
    return Mail(**{"sender": "shop@example.org", "to": f"u{number}@example.com", "text": "hi", **changed})


class FakeAppender:
    """Records what is appended; answers when told, or at once."""

    delivery_timeout_s = 1.0

    def __init__(self, at_once: bool = True) -> None:
        self.at_once = at_once
        self.error: LogError | None = None
        self.later: LogError | None = None
        self.appended: list[tuple[Outgoing, Future[tuple[int, int]]]] = []
        self.blocking = False
        self.in_flight_max = 0

    def append_soon(self, record: Outgoing) -> Future[tuple[int, int]]:
        if self.error is not None:
            raise self.error
        future: Future[tuple[int, int]] = Future()
        self.appended.append((record, future))
        self.in_flight_max = max(self.in_flight_max, sum(not f.done() for _, f in self.appended))
        if self.at_once:
            self.answer(len(self.appended) - 1)
        return future

    def try_append(self, record: Outgoing) -> Future[tuple[int, int]] | None:
        return None if self.blocking else self.append_soon(record)

    def answer(self, number: int) -> None:
        future = self.appended[number][1]
        if self.later is not None:
            future.set_exception(self.later)
        else:
            future.set_result((number % 12, number))

    def connect(self) -> None:
        if self.error is not None:
            raise self.error

    def flush(self, timeout_s: float) -> int:
        return sum(not f.done() for _, f in self.appended)

    def close(self, timeout_s: float | None = None) -> int:
        return self.flush(0)


@pytest.fixture
def appender() -> FakeAppender:
    return FakeAppender()


@pytest.fixture
def publisher(appender: FakeAppender) -> Publisher:
    made = Publisher()
    made._appender = appender  # type: ignore[assignment]
    return made


# ---------------------------------------------------------------------------------------------------------- records


def test_a_key_decides_the_message_id_and_the_record_key() -> None:
    prepared = prepare(mail(), "order-42", None, "mail.requests", now=lambda: NOW)
    expected = message_id_from_key("default", "order-42")
    assert prepared.message_id == expected
    assert prepared.record.key == expected.encode()
    assert (prepared.record.topic, prepared.record.partition) == ("mail.requests", None)
    again = prepare(mail(), "order-42", None, "mail.requests", now=lambda: NOW)
    assert again.record.value == prepared.record.value


def test_the_tenant_is_part_of_the_identity() -> None:
    other = prepare(mail(), "order-42", "acme", "t", now=lambda: NOW)
    assert other.message_id == message_id_from_key("acme", "order-42")
    assert decode(MailRequested, other.record.value).tenant == "acme"
    own = prepare(mail(tenant="acme"), "order-42", None, "t", now=lambda: NOW)
    assert own.message_id == other.message_id


def test_without_a_key_the_id_is_of_the_time_and_unique() -> None:
    ids = {prepare(mail(), None, None, "t", now=lambda: NOW).message_id for _ in range(50)}
    assert len(ids) == 50
    assert {ident[14] for ident in ids} == {"7"}


def test_what_is_written_is_what_was_asked_for() -> None:
    asked = mail(
        cc="c@example.com",
        bcc="b@example.com",
        headers={"X-A": "1"},
        campaign="spring",
        send_at=NOW,
        in_doubt="park",
        attachments=[{"filename": "a", "content": b"abc"}],
    )
    read = decode(MailRequested, prepare(asked, "k", None, "t", now=lambda: NOW).record.value)
    for name in Mail.model_fields:
        want, got = getattr(asked, name), getattr(read, name)
        if name == "attachments":
            assert [a.model_dump() for a in got] == [a.model_dump() for a in want]
        else:
            assert got == want, name
    assert (read.key, read.requested_at, read.generation) == ("k", NOW, 0)


def test_cloudevents_headers() -> None:
    record = prepare(mail(), "k", None, "t", now=lambda: NOW).record
    assert header(record.headers, "ce_type") == b"postlane.MailRequested.v1"
    assert header(record.headers, "ce_specversion") == b"1.0"
    assert header(record.headers, "ce_id") == record.key
    assert header(record.headers, "ce_time") == b"2026-01-31T09:00:00.000Z"
    assert header(record.headers, "traceparent") is None


def test_the_active_span_travels_along() -> None:
    from opentelemetry.sdk.trace import TracerProvider

    with TracerProvider(shutdown_on_exit=False).get_tracer("t").start_as_current_span("checkout") as span:
        record = prepare(mail(), "k", None, "t", now=lambda: NOW).record
        trace_id = f"{span.get_span_context().trace_id:032x}".encode()
    assert trace_id in (header(record.headers, "traceparent") or b"")
    assert "opentelemetry.trace" in sys.modules


def test_too_large_names_the_sizes() -> None:
    with pytest.raises(MailTooLarge) as caught:
        prepare(mail(text="x" * REQUEST_MAX_BYTES), None, None, "t")
    assert caught.value.size_bytes > caught.value.max_bytes == REQUEST_MAX_BYTES
    many = mail(to=[f"u{i}@example.com" for i in range(100)], text="x" * (FANOUT_MAX_BYTES // 100))
    with pytest.raises(MailTooLarge, match="100 recipients") as caught:
        prepare(many, None, None, "t")
    assert caught.value.max_bytes == FANOUT_MAX_BYTES


@pytest.mark.parametrize("value", [object(), {1, 2}, 1 << 70, "\ud800"])
def test_template_data_must_be_json(value: Any) -> None:
    asked = mail(text=None, template={"id": "w", "data": {"x": value}})
    with pytest.raises(InvalidMail, match=r"template\.data"):
        prepare(asked, None, None, "t")


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Unreachable("no broker"), BrokerUnavailable),
        (Retriable("buffer full"), BrokerUnavailable),
        (UnknownTopic("no topic"), PublishRefused),
        (Fatal("no right"), PublishRefused),
        (TooLarge("too large"), MailTooLarge),
        (AppendUnknown("timed out"), PublishTimeout),
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_what_a_failure_means(
    publisher: Publisher, appender: FakeAppender, error: LogError, expected: type[Exception], later: bool
) -> None:
    appender.error, appender.later = (None, error) if later else (error, None)
    with pytest.raises(expected):
        publisher.publish(mail(), "k")


def test_an_unknown_outcome_says_which_key_to_use_again(publisher: Publisher, appender: FakeAppender) -> None:
    appender.later = AppendUnknown("no acknowledgement")
    with pytest.raises(PublishTimeout, match="again with the key 'k'") as caught:
        publisher.publish(mail(), "k")
    assert (caught.value.key, caught.value.message_id) == ("k", message_id_from_key("default", "k"))
    with pytest.raises(PublishTimeout, match="may send it twice"):
        publisher.publish(mail())


def test_only_a_mail_can_be_published(publisher: Publisher) -> None:
    with pytest.raises(InvalidMail, match="not dict"):
        publisher.publish({"sender": "x"})  # type: ignore[arg-type]


def test_options_of_the_books_and_unknown_ones_are_refused() -> None:
    for options in ({"enable.idempotence": "false"}, {"acks": "1"}, {"partitioner": "random"}, {"no.such.thing": "1"}):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            Publisher(kafka=options)


def test_no_broker_is_said_in_bounded_time() -> None:
    publisher = Publisher("127.0.0.1:1", connect_timeout_s=0.3)
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1"):
        publisher.publish(mail())
    publisher.close()


def test_leaving_with_unanswered_mails_is_an_error(publisher: Publisher, appender: FakeAppender) -> None:
    appender.at_once = False
    with pytest.raises(PublishTimeout, match="1 mails"), publisher:
        publisher.publish_soon(mail())
    with pytest.raises(ZeroDivisionError), publisher:
        raise ZeroDivisionError  # what went wrong first is what is seen


# ------------------------------------------------------------------------------------------------------ publish_many


def test_receipts_come_in_order(publisher: Publisher) -> None:
    receipts = list(publisher.publish_many((mail(i), f"k{i}") for i in range(30)))
    assert [r.message_id for r in receipts] == [message_id_from_key("default", f"k{i}") for i in range(30)]


@pytest.mark.parametrize("behind", [3, 9])
def test_the_iterable_is_read_no_further_ahead_than_allowed(
    publisher: Publisher, appender: FakeAppender, behind: int
) -> None:
    appender.at_once = False
    taken = 0

    def mails() -> Iterator[Mail]:
        for number in range(1000):
            assert number - taken <= 10  # what was read and not handed out as a receipt
            if number >= behind:
                appender.answer(number - behind)
            yield mail(number)

    receipts = publisher.publish_many(mails(), in_flight_max=10)
    for _ in range(50):
        next(receipts)
        taken += 1
    assert appender.in_flight_max <= 10


def test_a_failure_comes_in_its_turn(publisher: Publisher, appender: FakeAppender) -> None:
    huge = mail(text="x" * REQUEST_MAX_BYTES)
    receipts = publisher.publish_many([mail(0), mail(1), huge, mail(3)])
    assert [type(next(receipts)) for _ in range(2)] == [Receipt, Receipt]
    with pytest.raises(MailTooLarge):
        next(receipts)
    assert len(appender.appended) == 2  # nothing after the failure was begun


# ------------------------------------------------------------------------------------------------------------- async


async def test_the_same_verbs_awaited(publisher: Publisher, appender: FakeAppender) -> None:
    async with AsyncPublisher(publisher) as awaited:
        receipt = await awaited.publish(mail(), "k")
        assert receipt.message_id == message_id_from_key("default", "k")
        assert await (await awaited.publish_soon(mail(), "k")) == Receipt(receipt.message_id, 1, 1)
        appender.blocking = True
        assert (await awaited.publish(mail(), "k2")).offset == 2
        many = [r async for r in awaited.publish_many([mail(1), (mail(2), "k3")])]
        assert many[1].message_id == message_id_from_key("default", "k3")


async def test_asynchronous_iterables_and_errors(publisher: Publisher, appender: FakeAppender) -> None:
    async def mails() -> Any:
        for number in range(5):
            await asyncio.sleep(0)
            yield mail(number)

    awaited = AsyncPublisher(publisher)
    assert len([r async for r in awaited.publish_many(mails())]) == 5
    appender.error = Unreachable("gone")
    with pytest.raises(BrokerUnavailable):
        await awaited.publish(mail())
    with pytest.raises(BrokerUnavailable):
        async for _ in awaited.publish_many([mail()]):
            pass
