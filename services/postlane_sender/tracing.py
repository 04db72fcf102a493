"""The span of one attempt: from the intent to the server's last word, with an event per SMTP phase.

Called only where `tracer.enabled` said so, or where an entry carries a span. Its parent is what wrote the dispatch
record (the router, or the delay stage), which is also a link where the delivery has waited there. The address of the
recipient is shown as the tracer shows addresses, hashed by default; what servers say in words is left out.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from postlane.core.books import Entry
from postlane.core.events import DeliveryEvent, DispatchReady
from postlane.core.policy import Provider
from postlane.eventlog.ports import Received
from postlane.telemetry.tracing import Span, Tracer, Value

if TYPE_CHECKING:
    from postlane_sender.lane import LaneState

_log = logging.getLogger("postlane.sender")


def begin(lane: LaneState, entry: Entry, mail: DispatchReady) -> None:
    """An attempt begins; what it causes (events, the next hop) carries its context."""
    tracer, raw = lane.tracer, entry.raw
    if not isinstance(raw, Received) or not tracer.wants(raw.headers, raw.key):
        return
    parent = tracer.extract(raw.headers)
    provider = lane.config.providers.get(entry.provider)
    attributes: dict[str, Value] = {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "process",
        "messaging.destination.name": lane.dispatch,
        "messaging.destination.partition.id": str(entry.partition),
        "messaging.kafka.offset": entry.offset,
        "messaging.consumer.group.name": lane.group,
        "messaging.message.id": mail.message_id,
        "network.protocol.name": "smtp",
        "postlane.lane": lane.name,
        "postlane.tenant": mail.tenant,
        "postlane.provider": entry.provider,
        "postlane.attempt": mail.attempt,
        "postlane.hop": mail.hop,
        "postlane.generation": mail.generation,
        "postlane.doubts": mail.doubts,
        **tracer.address(mail.recipient),
    }
    if provider is not None:
        attributes |= {"server.address": provider.host, "server.port": provider.port}
    links = (parent,) if parent is not None and mail.hop > 0 else ()
    span = tracer.span("smtp send", parent=parent, links=links, attributes=attributes, kind="client", root=True)
    entry.span, entry.trace = span, tracer.headers(span)


def session(tracer: Tracer, provider: Provider) -> Span:
    """A session is opened: name, connection, TLS, EHLO, AUTH. Many mails use it, so it is a trace of its own."""
    attributes: dict[str, Value] = {
        "network.protocol.name": "smtp",
        "server.address": provider.host,
        "server.port": provider.port,
        "postlane.provider": provider.name,
        "postlane.tls": provider.tls,
    }
    return tracer.span("smtp connect", attributes=attributes, kind="client", root=True)


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
    outcome = "" if event is None else type(event).__name__
    if event is None:
        span.fail(reason)
    else:
        reply = getattr(event, "reply", None)
        span.set("postlane.outcome", outcome)
        span.set("postlane.provider", entry.provider or None)
        span.set("postlane.reason", _words(getattr(event, "reason", None)))
        if reply is not None:
            span.event("reply")
            span.set("smtp.reply.code", reply.code)
            span.set("smtp.reply.enhanced", reply.enhanced)
        if outcome != "Delivered":
            span.set("error.type", outcome)
            span.fail(outcome)
    if outcome != "Delivered" and _log.isEnabledFor(logging.DEBUG):
        ids = {"trace_id": span.trace_id, "span_id": span.span_id}
        _log.debug("an attempt ended", extra={"outcome": outcome or reason, "provider": entry.provider, **ids})
    span.end()


def _words(reason: str | None) -> str | None:
    """A reason without what follows its colon: that may repeat an address."""
    return None if reason is None else reason.partition(":")[0]
