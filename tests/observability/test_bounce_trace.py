"""One trace from the publisher to the bounce that comes back, past a real server that knows nothing of traces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from postlane.core.identity import delivery_id
from postlane.local.kafka import KafkaCluster
from tests.acceptance.checker import read_topic
from tests.integration.bounce_town import Town, needs_postfix, until
from tests.observability.otlp import Receiver, Span
from tests.observability.publishing import as_a_program

pytestmark = [pytest.mark.kafka, pytest.mark.slow, needs_postfix]

CONSUMER = 5  # of the OTLP protocol
GONE = "gone@example.com"


class Story(NamedTuple):
    """What was seen of one mail that bounced."""

    message_id: str
    spans: list[Span]
    contexts: dict[str, str]  # traceparent, by the type of the event


@pytest.fixture(scope="module")
def story(kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with Receiver() as otlp:
        on = {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with Town(kafka.bootstrap_servers, tmp_path_factory.mktemp("trace"), on) as town:
            town.rig.practice.control.add_fault("reply", "rcpt", code=550, text="5.1.1 no such user", recipient=GONE)
            (message_id,) = as_a_program(kafka.bootstrap_servers, town.rig.names.prefix, on, GONE)
            ident = delivery_id(message_id, GONE)
            until(lambda: town.delivery(ident)["state"] == "bounced", "bounced")
            spans = otlp.until(lambda spans: {"bounce", "smtp send"} <= {span.name for span in spans})
            contexts = {}
            for event in read_topic(kafka.bootstrap_servers, town.rig.names.events):
                about = {name: value.decode() for name, value in event.headers()}
                contexts[about["ce_type"].split(".")[1]] = about["traceparent"]
            yield Story(message_id, spans, contexts)


def one(spans: list[Span], beginning: str) -> Span:
    (found,) = [span for span in spans if span.name.startswith(beginning)]
    return found


def test_the_bounce_is_in_the_trace_of_the_publisher(story: Story) -> None:
    checkout, publish, route, bounce = (one(story.spans, name) for name in ("checkout", "publish", "route", "bounce"))
    assert bounce.service == "postlane-producer"
    assert bounce.kind == CONSUMER
    assert bounce.trace_id == route.trace_id == publish.trace_id == checkout.trace_id
    assert (bounce.parent_id, route.parent_id, publish.parent_id) == (route.span_id, publish.span_id, checkout.span_id)


def test_the_bounce_says_what_the_event_says(story: Story) -> None:
    bounce = one(story.spans, "bounce")
    about = bounce.attributes
    assert about["messaging.message.id"] == story.message_id
    assert (about["postlane.outcome"], about["postlane.reason"]) == ("suppressed", "recipient")
    assert (about["smtp.reply.code"], about["smtp.reply.enhanced"]) == (550, "5.1.1")
    assert not bounce.error
    assert [text for text in bounce.texts if "@" in text] == []


def test_the_event_carries_the_context_of_the_span_that_wrote_it(story: Story) -> None:
    for event, name in (("Bounced", "bounce"), ("Routed", "route")):
        span = one(story.spans, name)
        assert story.contexts[event].split("-")[1:3] == [span.trace_id, span.span_id]
