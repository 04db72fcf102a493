"""An OTLP receiver in the test's process: takes what real exporters send over HTTP, and keeps the spans."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """One span as it came over the wire; ids in hex."""

    service: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    links: tuple[str, ...]  # span ids
    attributes: dict[str, Any]
    events: tuple[str, ...]
    error: bool
    texts: tuple[str, ...]  # every string in it


class Receiver(ThreadingHTTPServer):
    """`with Receiver() as otlp:` — `endpoint` is for OTEL_EXPORTER_OTLP_ENDPOINT."""

    daemon_threads = True

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Take)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Receiver:
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()

    def take(self, body: bytes) -> None:
        spans = []
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = _plain(resource.resource.attributes)
            for scope in resource.scope_spans:
                spans += [_span(str(about["service.name"]), span) for span in scope.spans]
        with self._lock:
            self._spans += spans

    def spans(self) -> list[Span]:
        with self._lock:
            return list(self._spans)

    def until(self, condition: Callable[[list[Span]], bool], timeout_s: float = 60.0) -> list[Span]:
        """The spans as soon as they satisfy `condition`; AssertionError with their names after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not condition(spans := self.spans()):
            assert time.monotonic() < deadline, sorted(f"{s.service}: {s.name}" for s in spans)
            time.sleep(0.05)
        return spans


class _Take(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.take(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def _plain(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


def _span(service: str, span: Any) -> Span:
    attributes = _plain(span.attributes)
    texts = [span.name, span.status.message, *map(str, attributes.values())]
    for event in span.events:
        texts += [event.name, *map(str, _plain(event.attributes).values())]
    return Span(
        service=service,
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        links=tuple(link.span_id.hex() for link in span.links),
        attributes=attributes,
        events=tuple(event.name for event in span.events),
        error=span.status.code == 2,
        texts=tuple(texts),
    )
