"""Traces: nothing while off, joined over records while on, and exported for real."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from postlane.config import ConfigurationError
from postlane.telemetry import logs, tracing

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("environ", "on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "True"}, False),
    ],
)
def test_when_traces_are_wanted(environ: dict[str, str], on: bool) -> None:
    assert tracing.wanted(environ) is on


def test_off_costs_no_import_and_every_span_is_the_same_object() -> None:
    code = (
        "import sys; from postlane.telemetry import tracing, logs\n"
        "t = tracing.tracer('x', environ={})\n"
        "a = t.span('a', attributes={'k': 1})\n"
        "with a as b: b.set('k', 2); b.fail('no')\n"
        "assert a is t.span('c') and not t.enabled and t.headers(a) == []\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_what_is_not_built_in_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="OTEL_"):
        tracing.tracer("x", environ=environ)


class Collector(HTTPServer):
    """An OTLP receiver that keeps what it was sent."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Take)


class _Take(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_spans_join_the_record_s_trace_and_reach_a_collector(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    collector = Collector()
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{collector.server_address[1]}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    tracer = tracing.tracer("sender", "s-1")
    assert tracer.enabled
    parent = tracer.extract([("ce_id", b"x"), ("traceparent", PARENT)])
    assert parent is not None
    with tracer.span("send", parent, links=[parent], attributes={"hop": 1}, kind="consumer") as span:
        (name, value), *_ = tracer.headers(span)
        record = logging.LogRecord("x", logging.INFO, "", 1, "m", (), None)
        line = json.loads(logs.JsonFormatter("sender", "s-1").format(record))
    later = tracer.span("settle", span)
    later.fail("no")
    later.end()
    tracer.close()
    collector.shutdown()
    collector.server_close()
    assert (name, value[:35]) == ("traceparent", PARENT[:35])
    assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    spans = {}
    for body in collector.bodies:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = {a.key: a.value.string_value for a in resource.resource.attributes}
            assert (about["service.name"], about["service.instance.id"]) == ("postlane-sender", "s-1")
            spans.update({s.name: s for scope in resource.scope_spans for s in scope.spans})
    assert spans["send"].parent_span_id.hex() == "b7ad6b7169203331"
    assert len(spans["send"].links) == 1
    assert spans["settle"].parent_span_id == spans["send"].span_id
    assert spans["settle"].status.message == "no"


@pytest.mark.parametrize("value", [b"", b"\xff\xfe", b"00-0-0-0", PARENT + b"\n"])
def test_a_hostile_traceparent_starts_no_exception(monkeypatch: pytest.MonkeyPatch, value: bytes) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    tracer = tracing.tracer("x")
    with tracer.span("a", tracer.extract([("traceparent", value)])) as span:
        assert tracer.headers(span)
    tracer.close()


KEYS = [f"message-{n}".encode() for n in range(4000)]


@pytest.mark.parametrize("sampler", ["traceidratio", "parentbased_traceidratio"])
def test_every_service_samples_the_same_mails(sampler: str) -> None:
    environ = {"OTEL_TRACES_EXPORTER": "console", "OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": "0.05"}
    one, two = tracing.tracer("router", environ=environ), tracing.tracer("sender", environ=environ)
    chosen = [key for key in KEYS if one.wants([], key)]
    assert chosen == [key for key in KEYS if two.wants([("ce_id", b"x")], key)]
    assert 100 < len(chosen) < 300
    with one.span("a") as span:  # what was chosen is not thrown dice for again
        assert span.trace_id


@pytest.mark.parametrize(("flags", "wanted"), [(b"00", False), (b"01", True), (b"02", False), (b"03", True)])
def test_a_record_s_own_context_decides(flags: bytes, wanted: bool) -> None:
    environ = {"OTEL_TRACES_EXPORTER": "console", "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
    tracer = tracing.tracer("x", environ=environ)
    assert tracer.wants([("traceparent", PARENT[:53] + flags)], b"k") is wanted
    assert not tracer.wants([], b"k")
    assert tracing.tracer("x", environ={"OTEL_TRACES_EXPORTER": "console"}).wants([], None)


@pytest.mark.parametrize("text", ["2", "-0.1", "some", "nan"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    environ = {
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": text,
    }
    with pytest.raises(ConfigurationError, match="OTEL_TRACES_SAMPLER_ARG"):
        tracing.tracer("x", environ=environ)
