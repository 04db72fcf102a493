"""One trace from a publisher through router, delay stage and sender, as real exporters send it; and what real services
expose, held against what rules and dashboards name."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from postlane.local.kafka import KafkaCluster
from postlane.ops.backup import textfile
from tests.acceptance.checker import read_topic
from tests.acceptance.rig import Rig
from tests.observability import recorded
from tests.observability.names import FOREIGN, series_of, used
from tests.observability.otlp import Receiver, Span
from tests.observability.publishing import as_a_program
from tests.observability.test_rules import check, expectation, needs_promtool
from tests.observability.test_rules import test as one

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

PRODUCER, CONSUMER, CLIENT = 4, 5, 3  # of the OTLP protocol
EASY, HARD, LOST = "ada@plain.example", "bob@later.example", "eve@lost.example"


@pytest.fixture(scope="module")
def drill(kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> object:
    """A calm beginning, then three mails: one goes through, one is put off once, one loses its connection after the
    dot."""
    with Receiver() as otlp:
        on = {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        env = dict.fromkeys(("router", "sender", "ledger"), on)
        folder = tmp_path_factory.mktemp("trace")
        with Rig(kafka.bootstrap_servers, folder, ledger=True, env=env) as rig:
            names = ("router-1", "sender-1", "ledger-1")
            before = {name: scrape(rig, name) for name in names}
            for lane in ("transactional", "bulk"):
                rig.publish(20, lane=lane)
            rig.until_settled(timeout_s=200)
            calm = before, {name: scrape(rig, name) for name in names}
            control = rig.practice.control
            control.add_fault("reply", "rcpt", code=451, text="4.2.1 later", recipient=HARD, count=1)
            control.add_fault("accept_drop", "dot", recipient=LOST, count=1)
            said = as_a_program(kafka.bootstrap_servers, rig.names.prefix, on, EASY, HARD, LOST)
            ids = dict(zip((EASY, HARD, LOST), said, strict=True))
            rig.until(lambda b: b.count("delivered") == 43, "three mails more", timeout_s=200)
            otlp.until(lambda spans: delivered(spans) >= set(ids.values()))
            scrapes = {name: scrape(rig, name) for name in names}
            events = read_topic(kafka.bootstrap_servers, rig.names.events)
            yield otlp.spans(), ids, scrapes, events, rig.names, calm


def delivered(spans: list[Span]) -> set[str]:
    """Messages that a span says were delivered."""
    return {s.attributes["messaging.message.id"] for s in spans if s.attributes.get("postlane.outcome") == "Delivered"}


def scrape(rig: Rig, name: str) -> str:
    url = rig.stack.url(name)
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def way_of(spans: list[Span], message_id: str) -> list[Span]:
    """The spans of one mail, from the publisher's on, each the parent of the next."""
    by_parent: dict[str, list[Span]] = {}
    for span in spans:
        by_parent.setdefault(span.parent_id, []).append(span)
    first = [s for s in spans if s.kind == PRODUCER and s.attributes.get("messaging.message.id") == message_id]
    assert len(first) == 1
    way = first
    while following := by_parent.get(way[-1].span_id):
        assert len(following) == 1, [s.name for s in following]
        way.append(following[0])
    return [span for span, before in zip(way, [None, *way], strict=False) if not (released(span) or released(before))]


def released(span: Span | None) -> bool:
    """A busy machine lets intents lapse: such attempts, and the delay that each leads to, are left out."""
    return span is not None and span.attributes.get("postlane.outcome") == "Released"


def test_a_mail_is_one_trace_from_the_publisher_to_the_server(drill: tuple) -> None:
    spans, ids, _, _, names, _ = drill
    way = way_of(spans, ids[EASY])
    checkout = next(s for s in spans if s.name == "checkout")
    assert [(s.service, s.name) for s in way] == [
        ("shop", f"publish {names.requests}"),
        ("postlane-router", f"route {names.requests}"),
        ("postlane-sender", "smtp send"),
    ]
    assert way[0].parent_id == checkout.span_id
    assert {s.trace_id for s in way} == {checkout.trace_id}
    assert [s.kind for s in way] == [PRODUCER, CONSUMER, CLIENT]
    route, send = way[1], way[2]
    assert route.links == (way[0].span_id,)
    assert route.attributes["postlane.outcome"] == "accepted"
    assert route.attributes["messaging.destination.name"] == names.requests
    assert send.attributes["postlane.outcome"] == "Delivered"
    assert send.attributes["smtp.reply.code"] == 250
    assert send.events == ("envelope", "body", "dot", "reply")
    assert not send.error


def test_a_hop_through_the_delay_stage_is_a_link_in_the_same_trace(drill: tuple) -> None:
    spans, ids, _, _, names, _ = drill
    way = way_of(spans, ids[HARD])
    assert [s.name.removeprefix(f"delay {names.prefix}") for s in way[2:]] == [
        "smtp send",
        "mail.delay.1s",
        "smtp send",
    ]
    refused, waited, sent = way[2:]
    assert refused.error
    assert (refused.attributes["postlane.outcome"], refused.attributes["smtp.reply.code"]) == ("Deferred", 451)
    assert waited.links == (refused.span_id,)
    assert waited.attributes["postlane.waited_s"] > 0
    assert sent.links == (waited.span_id,)
    assert sent.attributes["postlane.attempt"] == 2
    assert sent.attributes["postlane.hop"] >= 1


def test_a_doubt_is_an_error_of_its_attempt(drill: tuple) -> None:
    spans, ids, _, _, _, _ = drill
    doubt, *_, sent = [s for s in way_of(spans, ids[LOST]) if s.name == "smtp send"]
    assert (doubt.attributes["postlane.outcome"], doubt.error) == ("Uncertain", True)
    assert "reply" not in doubt.events
    assert sent.attributes["postlane.doubts"] == 1


def test_the_outcome_event_carries_its_attempt(drill: tuple) -> None:
    spans, ids, _, events, _, _ = drill
    sent = {
        s.attributes["messaging.message.id"]: s for s in spans if s.attributes.get("postlane.outcome") == "Delivered"
    }
    found = {}
    for event in events:
        about = dict(event.headers())
        if about["ce_type"].startswith(b"postlane.Delivered"):
            found[event.key().decode()] = about["traceparent"].decode().split("-")
    assert found.keys() >= set(ids.values())
    for message_id, (_, trace_id, span_id, _) in found.items():
        assert (trace_id, span_id) == (sent[message_id].trace_id, sent[message_id].span_id)


def test_no_span_names_an_address(drill: tuple) -> None:
    spans = drill[0]
    assert [text for span in spans for text in span.texts if "@" in text] == []
    hashes = {s.attributes["postlane.recipient.hash"] for s in spans if s.name == "smtp send"}
    assert len(hashes) >= 3


def test_a_session_is_a_trace_of_its_own(drill: tuple) -> None:
    sessions = [s for s in drill[0] if s.name == "smtp connect"]
    assert sessions
    assert {s.parent_id for s in sessions} == {""}
    assert {s.attributes["postlane.provider"] for s in sessions} == {"primary"}


def test_every_metric_of_rules_and_dashboards_is_exposed(drill: tuple) -> None:
    scrapes = drill[2]
    exposed = set(FOREIGN)
    for text in scrapes.values():
        exposed |= series_of(text_string_to_metric_families(text))
    exposed |= {line.split()[2] for line in textfile_of_a_backup().splitlines() if line.startswith("# TYPE")}
    elsewhere = ("postlane_provider_", "postlane_producer_")  # of health, of the gateway: they do not run here
    mine = {name: places for name, places in used().items() if not name.startswith(elsewhere)}
    missing = {name: sorted(places) for name, places in mine.items() if name not in exposed}
    assert missing == {}


def textfile_of_a_backup() -> str:
    names = (textfile.LAST_SUCCESS,)
    return "".join(f"# TYPE {name} gauge\n" for name in names)


def test_what_services_say_of_themselves(drill: tuple) -> None:
    sender = drill[2]["sender-1"]
    found = re.search(r'attempt_seconds_count\{lane="transactional",provider="primary"\} ([0-9.]+)', sender)
    assert found is not None
    assert float(found[1]) >= 25  # twenty, three, and two of those again
    assert 'postlane_sender_dead_letters_total{lane="transactional",reason="uncertain"} 0.0' in drill[2]["sender-1"]
    assert "postlane_kafka_brokers 1.0" in drill[2]["router-1"]
    assert 'postlane_ready{service="ledger"} 1.0' in drill[2]["ledger-1"]


# What a machine that is busy with other tests is late with, these say for good reason.
OF_TIME = "Watchdog|TicksSlow|OldestMailTooOld|SloFirstAttemptBurning|LedgerBehind|RouterStoreRebuilding"


@needs_promtool
def test_a_real_fleet_at_work_wakes_nobody(drill: tuple, tmp_path: Path) -> None:
    loud = f'count(ALERTS{{alertname!~"{OF_TIME}"}}) or vector(0)'
    series = recorded.series(*drill[5])
    assert sum(name.startswith("postlane_") for name in series) > 300
    wanted = [expectation(loud, at, 0) for at in range(5, recorded.MINUTES, 5)]
    check(tmp_path, [{**one(series, loud, 5, 0), "promql_expr_test": wanted}])
