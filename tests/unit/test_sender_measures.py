"""What the sender tells of itself: waits, attempts, dead letters, books, all bounded; and its spans."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from tests.contract.virtual_time import run_virtually
from tests.unit.sender_world import LANE, NAMES, TRACE, World, at, config, mail

from postlane.core.books import Book, Cell
from postlane.telemetry.addresses import Shown
from postlane.telemetry.metrics import SERIES_MAX, SenderMetrics
from postlane.telemetry.tracing import OFF, _On
from postlane_sender import measures


def told(world: World, sender: Any) -> dict[str, float]:
    """The samples of the sender's metrics, as Prometheus would read them."""
    samples = {}
    metrics = sender.lane.metrics
    for metric in vars(metrics).values():
        collector = getattr(metric, "_metric", metric)
        for family in collector.collect():
            for sample in family.samples:
                labels = ",".join(sample.labels.values())
                samples[f"{sample.name.removeprefix('postlane_sender_')}[{labels}]"] = sample.value
    return samples


def test_attempts_and_waits_are_counted_once_each() -> None:
    async def main() -> None:
        world = World()
        world.primary.latency_s = 0.2
        for n in range(4):
            world.put(mail(f"k{n}", requested_at=at(-100)))
        world.put(mail("again", hop=1, attempt=2, requested_at=at(-100), reason="temporary"))
        world.put(mail("limited", hop=1, requested_at=at(-100), reason="tenant_limit"))
        world.put(mail("scheduled", requested_at=at(-5000), due_at=at(-3)))
        world.put(mail("released", hop=1, requested_at=at(-100), due_at=at(-1), reason="lapsed"))
        sender = world.sender()
        await world.settled()
        said = told(world, sender)
        await sender.stop()
        assert said[f"attempt_seconds_count[{LANE},primary]"] == 8
        assert said[f"attempt_seconds_bucket[{LANE},primary,0.1]"] == 0  # not faster than the server
        assert said[f"attempt_seconds_bucket[{LANE},primary,5.0]"] == 8
        assert said[f"first_attempt_seconds_count[{LANE}]"] == 6  # not the second attempt, nor what a limit held back
        assert said[f"first_attempt_seconds_bucket[{LANE},60.0]"] == 1  # the scheduled one, from send_at
        assert said[f"first_attempt_seconds_bucket[{LANE},300.0]"] == 6

    run_virtually(main())


def test_dead_letters_are_counted_by_reason() -> None:
    async def main() -> None:
        world = World(config(lane={"in_doubt": "park"}))
        world.primary.answer = lambda phase, who: "take and drop" if phase == "dot" else "250 ok"
        doubtful = world.put(mail("k", in_doubt="park"))
        sender = world.sender()
        await world.until(lambda: "Uncertain" in world.kinds(doubtful))
        said = told(world, sender)
        await sender.stop()
        assert said[f"dead_letters_total[{LANE},uncertain]"] == 1
        assert said[f"outcomes_total[{LANE},Uncertain]"] == 1

    run_virtually(main())


@pytest.mark.parametrize(
    ("reason", "label"),
    [
        ("uncertain", "uncertain"),
        ("address: <a@b> is not one", "address"),
        ("composing failed: KeyError", "composing_failed"),
        ("550 5.1.1 <ada@example.com> unknown", "other"),
        ("", "other"),
        ("x" * 100, "other"),
    ],
)
def test_what_a_server_says_is_no_label(reason: str, label: str) -> None:
    assert measures.reason_label(reason) == label


def test_every_labelled_metric_of_the_sender_is_bounded() -> None:
    metrics = SenderMetrics(CollectorRegistry())
    for metric in vars(metrics).values():
        if not hasattr(metric, "labels"):
            continue
        width = len(getattr(metric, "_other", None) or metric._about[2])
        for number in range(SERIES_MAX + 20):
            metric.labels(*[f"v{number}"] * width)
        assert len(metric._children) == SERIES_MAX + 1


def test_series_begin_at_zero() -> None:
    metrics = SenderMetrics(CollectorRegistry())
    metrics.expect("bulk", ["primary"], "park")
    (family,) = metrics.doubts_total._metric.collect()
    assert [(s.labels, s.value) for s in family.samples if s.name.endswith("_total")] == [
        ({"lane": "bulk", "policy": "park"}, 0.0)
    ]


def test_the_books_say_how_far_a_takeover_would_read() -> None:
    async def main() -> None:
        world = World()
        sender = world.sender()
        await world.until(lambda: len(sender.lane.books) == 2)
        measures.say_books(sender.lane)
        assert told(world, sender)[f"state_lag_records[{LANE}]"] == 0
        book = Book(partition=0, low_water=0, state_floor=0, state_end=900)
        book.cells.clear()
        book.cells.extend([Cell(100, 0), Cell(200, 3), Cell(800, 1)])  # nothing rests on the first any more
        sender.lane.books[0] = book
        measures.say_books(sender.lane)
        said = told(world, sender)
        sender.lane.books.pop(0)
        await sender.stop()
        assert said[f"state_lag_records[{LANE}]"] == 700
        assert said[f"span_max_records[{LANE}]"] == sender.lane.policy.max_span

    run_virtually(main())


def test_links_say_what_is_under_way() -> None:
    async def main() -> None:
        world = World()
        world.primary.latency_s = 1.0
        world.put_many(3)
        sender = world.sender()
        await world.until(lambda: sender.pool.links[0].places == 3)
        measures.say_links(sender.pool.links)
        said = told(world, sender)
        assert said[f"under_way[{LANE},primary]"] == 3
        assert said[f"under_way[{LANE},backup]"] == 0
        await world.settled()
        measures.say_links(sender.pool.links)
        assert told(world, sender)[f"provider_oldest_seconds[{LANE},primary]"] == 0
        await sender.stop()

    run_virtually(main())


# ------------------------------------------------------------------------------------------------------------- spans


class Traced:
    """A tracer whose spans stay in memory."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = _On(provider, "sender", Shown())

    def spans(self) -> list[Any]:
        return list(self.exporter.get_finished_spans())


def test_an_attempt_is_a_span_with_the_phases_it_reached() -> None:
    async def main() -> None:
        world, traced = World(), Traced()
        world.primary.answer = lambda phase, who: "451 4.2.1 later" if phase == "rcpt" and "k1@" in who else "250 ok"
        good, put_off = world.put(mail("k0")), world.put(mail("k1"))
        sender = world.sender(tracer=traced.tracer)
        await world.until(lambda: "Deferred" in world.kinds(put_off) and "Delivered" in world.kinds(good))
        await sender.stop()
        spans = {s.attributes["messaging.message.id"]: s for s in traced.spans()}
        fine, bad = spans[good.message_id], spans[put_off.message_id]
        assert [e.name for e in fine.events] == ["envelope", "body", "dot", "reply"]
        assert [e.name for e in bad.events] == ["envelope", "reply"]
        assert f"{fine.context.trace_id:032x}".encode() == TRACE[1][3:35]
        assert (fine.status.is_ok, bad.attributes["error.type"]) == (True, "Deferred")
        assert "ada" not in str(fine.attributes)
        outcomes = [r for r in world.records(NAMES.events) if b"Delivered" in dict(r.headers)["ce_type"]]
        assert f"{fine.context.span_id:016x}".encode() in dict(outcomes[0].headers)["traceparent"]

    run_virtually(main())


def test_an_exemplar_leads_from_the_histogram_to_the_trace() -> None:
    async def main() -> None:
        world, traced = World(), Traced()
        world.put(mail("k0"))
        sender = world.sender(tracer=traced.tracer)
        await world.settled()
        await sender.stop()
        (child,) = sender.lane.metrics.attempt_seconds._children.values()
        (exemplar,) = child.exemplars.values()
        assert exemplar.labels == {"trace_id": TRACE[1][3:35].decode()}

    run_virtually(main())


def test_a_log_line_of_an_attempt_carries_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        world, traced = World(), Traced()
        world.primary.answer = lambda phase, who: "550 5.1.1 unknown" if phase == "rcpt" else "250 ok"
        world.put(mail("k0"))
        sender = world.sender(tracer=traced.tracer)
        await world.settled()
        await sender.stop()

    with caplog.at_level(logging.DEBUG, "postlane.sender"):
        run_virtually(main())
    (line,) = [record for record in caplog.records if record.message == "an attempt ended"]
    assert (line.trace_id, line.outcome) == (TRACE[1][3:35].decode(), "Bounced")  # type: ignore[attr-defined]


def test_while_off_nothing_is_kept_of_a_trace() -> None:
    async def main() -> None:
        world = World()
        world.put(mail("k0"))
        sender = world.sender()
        assert sender.lane.tracer is OFF
        await world.settled()
        await sender.stop()
        (child,) = sender.lane.metrics.attempt_seconds._children.values()
        assert child.exemplars == {}

    run_virtually(main())
