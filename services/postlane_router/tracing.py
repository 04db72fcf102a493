"""The spans of the router: one for each request decided, one for each stay in the delay stage that ends.

A span ends when its transaction is committed, and is sent only then: what is decided twice, because a transaction was
rolled back, is told once. By the messaging conventions the record's context is a link as well as the parent, so that
the hop shows as one also where a trace is cut by its age. Called only while `tracer.enabled`.
"""

from __future__ import annotations

from datetime import datetime

from postlane.core.delay import Step
from postlane.core.events import DispatchReady
from postlane.eventlog.ports import Received
from postlane.telemetry.tracing import Span, Tracer, Value
from postlane_router.batch import LETTERS, Batch


def begin(tracer: Tracer, group: str, record: Received, now: datetime, delayed: bool) -> Span:
    """The router looks at a record; what it causes carries the span's context."""
    parent = tracer.extract(record.headers)
    attributes: dict[str, Value] = {
        "messaging.system": "kafka",
        "messaging.operation.name": "delay" if delayed else "route",
        "messaging.operation.type": "process",
        "messaging.destination.name": record.topic,
        "messaging.destination.partition.id": str(record.partition),
        "messaging.kafka.offset": record.offset,
        "messaging.consumer.group.name": group,
        "postlane.waited_s": round(max(0.0, now.timestamp() - record.timestamp_ms / 1000), 3),
    }
    key = record.key
    if key is not None and len(key) <= 64 and key.isascii():
        attributes["messaging.message.id"] = key.decode()
    links = () if parent is None else (parent,)
    return tracer.span(
        f"{'delay' if delayed else 'route'} {record.topic}", parent, links, attributes, "consumer", root=True
    )


def dispatched(tracer: Tracer, span: Span, ready: DispatchReady, step: Step | None) -> None:
    """A delivery goes to its lane, or to a step of the delay stage."""
    about: dict[str, Value] = {
        "postlane.lane": ready.lane,
        "postlane.tenant": ready.tenant,
        "postlane.attempt": ready.attempt,
        "postlane.hop": ready.hop,
        **tracer.address(ready.recipient),
    }
    if step is not None:
        about["postlane.delay"] = step.name
    span.event("dispatched", about)


def decided(batch: Batch, span: Span) -> None:
    """The decision is in the batch."""
    outcome = batch.outcome
    span.set("postlane.outcome", outcome)
    if outcome in LETTERS:
        span.set("error.type", outcome)
        span.fail(outcome)
    batch.spans.append(span)


def spoken(span: Span | None) -> str | None:
    """The span as a mail says it, `<trace id>-<span id>`; None where there is none, or it is not sampled."""
    return None if span is None or not span.trace_id else f"{span.trace_id}-{span.span_id}"


def ids(span: Span | None) -> dict[str, object]:
    """For a log line about the record that is being decided."""
    return {} if span is None else {"trace_id": span.trace_id, "span_id": span.span_id}


def over(batch: Batch) -> None:
    """The batch was committed."""
    for span in batch.spans:
        span.end()
