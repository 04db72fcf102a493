"""What traces cost a sender: the same mails with traces off, of one mail in a hundred, and of every mail.

Metrics cannot be turned off and are in all three. Spans go over OTLP to a receiver of its own process that throws them
away; it shares the machine, as a collector beside the sender would.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.processes import SenderProcess, throughput
from bench.sender import CONNECTIONS, SINK, fill, new_names, row
from bench.smtp_client import sink

RECEIVER = """
import socketserver, http.server
class Take(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Take)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@contextmanager
def receiver() -> Iterator[str]:
    """The endpoint of an OTLP receiver that keeps nothing."""
    process = subprocess.Popen([sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait(10)


def cost(bootstrap: str, folder: Path, count: int = 20_000, rounds: int = 3) -> list[dict[str, Any]]:
    """On ÷ off, the median of interleaved rounds."""
    figures: dict[str, list[float]] = {"off": [], "one in 100": [], "all": []}
    with receiver() as endpoint:
        on = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        some = {**on, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
        for _ in range(rounds):
            for name, env in (("off", {}), ("one in 100", some), ("all", on)):
                with sink(SINK, CONNECTIONS) as port:
                    names = new_names()
                    asyncio.run(fill(bootstrap, names, count))
                    with SenderProcess(bootstrap, names, folder / names.prefix, port, env=env) as sender:
                        figures[name].append(throughput([sender], count))
    middle = {name: statistics.median(values) for name, values in figures.items()}
    detail = ", ".join(f"{name} {value:.0f}/s" for name, value in middle.items())
    return [
        row("traces of one mail in 100 ÷ traces off", middle["one in 100"] / middle["off"], "x", 0.95, detail=detail),
        row("traces of every mail ÷ traces off", middle["all"] / middle["off"], "x", None, detail=detail),
    ]
