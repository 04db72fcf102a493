"""OpenTelemetry traces: off unless the standard OTEL_* variables ask for them, and free of cost while off.

opentelemetry is imported only when tracing is on. While it is off every span is one shared object that does nothing;
the trace context of incoming records is handed on by `codec.trace_headers` either way.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol
from zlib import crc32

from postlane.core.errors import ConfigurationError
from postlane.telemetry.addresses import Shown, shown_by

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan

Headers = Sequence[tuple[str, bytes]]
Value = str | int | float | bool
Kind = Literal["internal", "producer", "consumer", "client", "server"]
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_BY_RATIO = ("traceidratio", "parentbased_traceidratio")
_UNSAMPLED = frozenset(f"{flags:02x}".encode() for flags in range(0, 256, 2))  # W3C Trace Context 3.2.2.5.1
FLUSH_TIMEOUT_MS = 3_000


class Span(Protocol):
    """One piece of work. As a context manager it is the active span; without, `end` ends it."""

    @property
    def trace_id(self) -> str:
        """32 hex digits; empty while off, and where the span is not sampled."""

    @property
    def span_id(self) -> str:
        """16 hex digits, as `trace_id`."""

    def set(self, name: str, value: Value | None) -> None:
        """An attribute; None is left out."""

    def event(self, name: str, attributes: Mapping[str, Value] | None = None) -> None: ...

    def fail(self, reason: str) -> None:
        """The work failed."""

    def end(self) -> None: ...

    def __enter__(self) -> Span: ...

    def __exit__(self, *exception: object) -> None: ...


class Tracer(Protocol):
    """What services ask of tracing."""

    @property
    def enabled(self) -> bool: ...

    def wants(self, headers: Headers, key: bytes | None) -> bool:
        """Whether the work that a record causes gets spans; cheap, so that what is not sampled costs next to nothing.

        A record's own context decides. One without is sampled by its key, so that every service decides the same.
        """

    def extract(self, headers: Headers) -> Context | None:
        """The trace context of a record; None where it has none (or while off)."""

    def span(
        self,
        name: str,
        parent: Context | Span | None = None,
        links: Iterable[Context] = (),
        attributes: Mapping[str, Value] | None = None,
        kind: Kind = "internal",
        root: bool = False,
    ) -> Span:
        """A span that has begun; its parent is `parent`, else the active span, or none where `root`.

        Callbacks run in the context in which their connection was opened: what they begin says whose child it is.
        """

    def headers(self, span: Span) -> list[tuple[str, bytes]]:
        """`traceparent` and `tracestate` for the records that this span causes; empty while off."""

    def address(self, address: str) -> dict[str, Value]:
        """How spans speak of a recipient: its domain, and its address as POSTLANE_TRACE_ADDRESSES says."""

    def close(self) -> None:
        """Send what has gathered, at most FLUSH_TIMEOUT_MS."""


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether the OTEL_* variables turn traces on."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter:
        return exporter != "none"
    return any(environ.get(name) for name in _ENDPOINTS)


def tracer(service: str, instance: str = "", environ: Mapping[str, str] | None = None) -> Tracer:
    """The tracer of this process. Raises ConfigurationError when the variables ask for what is not there."""
    env = os.environ if environ is None else environ
    if not wanted(env):
        return OFF
    exporter = env.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    protocol = next((env[name] for name in _PROTOCOLS if env.get(name)), "http/protobuf")
    if exporter not in ("otlp", "console"):
        raise ConfigurationError(f"OTEL_TRACES_EXPORTER: {exporter!r} is not known here; otlp, console or none")
    if exporter == "otlp" and protocol != "http/protobuf":
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} is not built in; use http/protobuf")
    try:
        ratio = _ratio(env)
        return _On(_provider(service, instance, exporter, ratio is not None), service, shown_by(env), ratio)
    except ImportError:
        raise ConfigurationError("OTEL_* asks for traces: install postlane[telemetry]") from None


def _ratio(env: Mapping[str, str]) -> float | None:
    """The share of mails to trace; None where OTEL_TRACES_SAMPLER is left to the SDK. Raises ConfigurationError."""
    if env.get("OTEL_TRACES_SAMPLER", "").strip().lower() not in _BY_RATIO:
        return None
    text = env.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1"
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise ConfigurationError(f"OTEL_TRACES_SAMPLER_ARG: {text!r} is no share between 0 and 1")
    return ratio


def _provider(service: str, instance: str, exporter: str, sampled_before: bool) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased

    from postlane.telemetry.http import package_version

    about = {"service.namespace": "postlane", "service.version": package_version()}
    if "OTEL_SERVICE_NAME" not in os.environ:
        about["service.name"] = f"postlane-{service}"
    if instance:
        about["service.instance.id"] = instance
    sampler = ParentBased(ALWAYS_ON) if sampled_before else None  # else what OTEL_TRACES_SAMPLER says
    provider = TracerProvider(resource=Resource.create(dict(about)), sampler=sampler, shutdown_on_exit=False)
    processor: SpanProcessor
    if exporter == "console":
        import sys

        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        processor = SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stderr))
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        processor = BatchSpanProcessor(OTLPSpanExporter())
    provider.add_span_processor(processor)
    return provider


class _NoSpan:
    """The span of tracing that is off."""

    trace_id = ""
    span_id = ""

    def set(self, name: str, value: Value | None) -> None:
        pass

    def event(self, name: str, attributes: Mapping[str, Value] | None = None) -> None:
        pass

    def fail(self, reason: str) -> None:
        pass

    def end(self) -> None:
        pass

    def __enter__(self) -> Span:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class _Off:
    enabled = False

    def wants(self, headers: Headers, key: bytes | None) -> bool:
        return False

    def extract(self, headers: Headers) -> Context | None:
        return None

    def span(
        self,
        name: str,
        parent: Context | Span | None = None,
        links: Iterable[Context] = (),
        attributes: Mapping[str, Value] | None = None,
        kind: Kind = "internal",
        root: bool = False,
    ) -> Span:
        return NO_SPAN

    def headers(self, span: Span) -> list[tuple[str, bytes]]:
        return []

    def address(self, address: str) -> dict[str, Value]:
        return {}

    def close(self) -> None:
        pass


NO_SPAN: Span = _NoSpan()
OFF: Tracer = _Off()


class _OnSpan:
    def __init__(self, span: OtelSpan) -> None:
        self.otel = span
        self._active: Any = None

    @property
    def trace_id(self) -> str:
        context = self.otel.get_span_context()
        return f"{context.trace_id:032x}" if context.trace_flags.sampled else ""

    @property
    def span_id(self) -> str:
        context = self.otel.get_span_context()
        return f"{context.span_id:016x}" if context.trace_flags.sampled else ""

    def set(self, name: str, value: Value | None) -> None:
        if value is not None:
            self.otel.set_attribute(name, value)

    def event(self, name: str, attributes: Mapping[str, Value] | None = None) -> None:
        self.otel.add_event(name, attributes)

    def fail(self, reason: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        self.otel.set_status(Status(StatusCode.ERROR, reason))

    def end(self) -> None:
        self.otel.end()

    def __enter__(self) -> Span:
        from opentelemetry.trace import use_span

        self._active = use_span(self.otel, end_on_exit=True, record_exception=True)
        self._active.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._active.__exit__(*exception)


class _On:
    enabled = True

    def __init__(self, provider: TracerProvider, service: str, shown: Shown, ratio: float | None = None) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._shown = shown
        self._below = None if ratio is None else ratio * 2**32
        self._tracer = provider.get_tracer(f"postlane.{service}")
        self._propagator = TraceContextTextMapPropagator()
        self._kinds = {kind.name.lower(): kind for kind in SpanKind}

    def wants(self, headers: Headers, key: bytes | None) -> bool:
        for name, value in headers:
            if name == "traceparent":
                return value[53:55] not in _UNSAMPLED
        return self._below is None or crc32(key or b"") < self._below

    def extract(self, headers: Headers) -> Context | None:
        carrier = {k: v.decode("latin-1") for k, v in headers if k in ("traceparent", "tracestate")}
        return self._propagator.extract(carrier) if "traceparent" in carrier else None

    def span(
        self,
        name: str,
        parent: Context | Span | None = None,
        links: Iterable[Context] = (),
        attributes: Mapping[str, Value] | None = None,
        kind: Kind = "internal",
        root: bool = False,
    ) -> Span:
        from opentelemetry.context import Context
        from opentelemetry.trace import Link, get_current_span, set_span_in_context

        context: Any = set_span_in_context(parent.otel) if isinstance(parent, _OnSpan) else parent
        if context is None and root:
            context = Context()
        spans = (get_current_span(link).get_span_context() for link in links)
        found = [Link(span) for span in spans if span.is_valid]
        started = self._tracer.start_span(name, context, self._kinds[kind], attributes, found)
        return _OnSpan(started)

    def headers(self, span: Span) -> list[tuple[str, bytes]]:
        from opentelemetry.trace import set_span_in_context

        if not isinstance(span, _OnSpan):
            return []
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span.otel))
        return [(name, value.encode("latin-1")) for name, value in carrier.items()]

    def address(self, address: str) -> dict[str, Value]:
        return dict(self._shown.of(address))

    def close(self) -> None:
        self._provider.force_flush(FLUSH_TIMEOUT_MS)
        self._provider.shutdown()
