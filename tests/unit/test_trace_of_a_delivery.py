"""The trace of a delivery: from the router's span into the record, over every hop, into the mail's header."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from postlane.core.delay import Wait, look
from postlane.core.events import DispatchReady, MailRequested
from postlane.core.identity import delivery_id, message_id_from_key
from postlane.core.policy import Config
from postlane.core.route import RoutePolicy
from postlane.eventlog.codec import decode, encode
from postlane.eventlog.ports import Received
from postlane.eventlog.topics import TopicNames
from postlane.telemetry import tracing
from postlane.telemetry.tracing import OFF, Tracer
from postlane_router.deciding import Decider
from postlane_router.store import MemoryStore
from postlane_router.tables import RouterTables

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NAMES = TopicNames()
MESSAGE = message_id_from_key("default", "order-42")
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SAMPLED, UNSAMPLED = (("traceparent", f"00-{TRACE_ID}-b7ad6b7169203331-0{flag}".encode()) for flag in (1, 0))


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracer]:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    made = tracing.tracer("router")
    yield made
    made.close()


def dispatched(tracer: Tracer, *headers: tuple[str, bytes], **said: Any) -> list[DispatchReady]:
    request = MailRequested.model_validate(
        {
            "message_id": MESSAGE,
            "sender": "shop@example.org",
            "to": ["ada@example.com", "bob@example.com"],
            "text": "t",
            "requested_at": NOW,
            **said,
        }
    )
    record = Received(NAMES.requests, 0, 0, 0, MESSAGE.encode(), encode(request), headers)
    decider = Decider(NAMES, RoutePolicy.of(Config()), RouterTables(), MemoryStore(), tracer=tracer)
    (batch,) = decider.decide(decider.read([record]), NOW, {}, {}, 10**9)
    written = [r for r in batch.records if r.topic.startswith(("mail.dispatch.", "mail.delay."))]
    return [decode(DispatchReady, r.value) for r in written]


def test_each_delivery_names_the_routers_span(tracer: Tracer, capfd: pytest.CaptureFixture[str]) -> None:
    one, other = dispatched(tracer, SAMPLED)
    assert one.trace is not None
    assert one.trace == other.trace
    trace_id, _, span_id = one.trace.partition("-")
    assert trace_id == TRACE_ID
    assert span_id != "b7ad6b7169203331"  # the publisher's
    assert len(span_id) == 16


def test_what_is_not_sampled_names_none(tracer: Tracer) -> None:
    assert [ready.trace for ready in dispatched(tracer, UNSAMPLED)] == [None, None]
    assert [ready.trace for ready in dispatched(OFF, SAMPLED)] == [None, None]


def test_the_delay_stage_keeps_it(tracer: Tracer) -> None:
    ready = dispatched(tracer, SAMPLED, send_at=NOW + timedelta(hours=2))[0]
    assert ready.trace is not None

    class Paused(RouterTables):
        def paused(self, tenant: str, campaign: str | None) -> bool:
            return True

    decision = look(ready, Paused(), NOW + timedelta(hours=2))
    assert isinstance(decision, Wait)
    assert decision.ready is not None
    assert decision.ready.trace == ready.trace


def test_a_replay_gets_the_span_of_its_own_generation(tracer: Tracer) -> None:
    first = dispatched(tracer, SAMPLED)[0]
    again = dispatched(
        tracer, generation=1, replay_of=delivery_id(MESSAGE, "ada@example.com"), replay_recipient="ada@example.com"
    )[0]
    assert again.generation == 1
    assert first.trace is not None
    assert again.trace is not None
    assert again.trace.partition("-")[0] != TRACE_ID
