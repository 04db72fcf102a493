"""A team's program that uses OpenTelemetry and publishes: `publishing SERVERS PREFIX TO...`

Prints the message id of each mail. Everything happens within one span, "checkout".
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from postlane import Mail, Publisher


def as_a_program(servers: str, prefix: str, env: Mapping[str, str], *recipients: str) -> list[str]:
    """Run it with these variables besides: the message ids, in the order of the recipients."""
    program = [sys.executable, "-m", "tests.observability.publishing", servers, prefix, *recipients]
    done = subprocess.run(program, env={**os.environ, **env}, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


def main(servers: str, prefix: str, *recipients: str) -> None:
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    with (
        Publisher(servers, topic_prefix=prefix) as publisher,
        trace.get_tracer("shop").start_as_current_span("checkout"),
    ):
        for to in recipients:
            mail = Mail(sender="shop@example.org", to=[to], subject="Order", text="On its way.")
            print(publisher.publish(mail, key=to).message_id)
    provider.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
