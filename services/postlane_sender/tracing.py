"""The span of one attempt: from the intent to the server's last word, with an event per SMTP phase.

Called only where `tracer.enabled` said so, or where an entry carries a span. No attribute names an address.
"""

from __future__ import annotations

from collections.abc import Mapping

from postlane.core.books import Entry
from postlane.core.events import DeliveryEvent, DispatchReady
from postlane.eventlog.ports import Received
from postlane.telemetry.tracing import Span, Tracer, Value


def begin(tracer: Tracer, lane: str, entry: Entry, mail: DispatchReady) -> None:
    """An attempt begins; what it causes (events, the next hop) carries its context."""
    parent = tracer.extract(entry.raw.headers) if isinstance(entry.raw, Received) else None
    attributes: Mapping[str, Value] = {
        "messaging.message.id": mail.message_id,
        "postlane.lane": lane,
        "postlane.provider": entry.provider,
        "postlane.attempt": mail.attempt,
        "postlane.hop": mail.hop,
        "postlane.generation": mail.generation,
    }
    span = tracer.span("smtp send", parent=parent, attributes=attributes, kind="client")
    entry.span, entry.trace = span, tracer.headers(span)


def phase(entry: Entry, name: str) -> None:
    """The conversation reached a phase."""
    span: Span | None = entry.span
    if span is not None:
        span.event(name)


def end(entry: Entry, event: DeliveryEvent | None, reason: str = "") -> None:
    """The attempt is over: with its event, or without one because nothing of it was written down."""
    span: Span | None = entry.span
    if span is None:
        return
    entry.span = None
    if event is None:
        span.fail(reason)
    else:
        reply = getattr(event, "reply", None)
        span.set("postlane.outcome", type(event).__name__)
        span.set("postlane.provider", entry.provider or None)
        span.set("postlane.reason", getattr(event, "reason", None))
        if reply is not None:
            span.set("smtp.reply.code", reply.code)
            span.set("smtp.reply.enhanced", reply.enhanced)
        if type(event).__name__ != "Delivered":
            span.fail(type(event).__name__)
    span.end()
