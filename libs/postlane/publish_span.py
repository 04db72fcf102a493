"""The producer's span of a publish, in programs that use OpenTelemetry; nothing at all in others.

The program's own tracer provider makes it (the API is enough: without an SDK the active context is handed on as it is).
"""

from __future__ import annotations

import sys
from typing import Any


class PublishSpan:
    """From the encoded request to its acknowledgement; `headers` carry its context into the record."""

    __slots__ = ("_span", "headers")

    def __init__(self, span: Any, headers: list[tuple[str, bytes]]) -> None:
        self._span = span
        self.headers = headers

    def end(self, error: BaseException | None = None) -> None:
        """Acknowledged, or why not."""
        span, self._span = self._span, None
        if span is None:
            return
        if error is not None:
            from opentelemetry.trace import Status, StatusCode

            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        span.end()


NONE = PublishSpan(None, [])


def begin(topic: str, message_id: str, size_bytes: int) -> PublishSpan:
    """A span by the messaging conventions, child of the active one."""
    if "opentelemetry.trace" not in sys.modules:
        return NONE
    from opentelemetry.trace import SpanKind, get_tracer, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    attributes: dict[str, str | int] = {
        "messaging.system": "kafka",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": topic,
        "messaging.message.id": message_id,
        "messaging.message.body.size": size_bytes,
    }
    span = get_tracer("postlane").start_span(f"publish {topic}", kind=SpanKind.PRODUCER, attributes=attributes)
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return PublishSpan(span, [(name, value.encode("latin-1")) for name, value in carrier.items()])
