"""A child process for the stack's tests: answers /readyz, says what it was started with, and ends as it is told.

Usage: fake_service.py PORT [--ready-after N] [--stubborn] [--fail CODE]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--ready-after", type=int, default=0, help="answer 503 to so many questions first")
    parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM")
    parser.add_argument("--fail", type=int)
    arguments = parser.parse_args()
    if arguments.fail is not None:
        print("configuration: lane bulk has no provider", file=sys.stderr)
        return int(arguments.fail)
    asked = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal asked
            asked += self.path == "/readyz"
            ready = asked > arguments.ready_after
            body = json.dumps({k: v for k, v in os.environ.items() if k.startswith("POSTLANE_")}).encode()
            if not ready:
                body = b"waiting for topics"
            self.send_response(200 if ready else 503)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    def stop(signum: int, frame: object) -> None:
        print("stopping", flush=True)
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if arguments.stubborn else stop)
    HTTPServer(("127.0.0.1", arguments.port), Handler).serve_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
