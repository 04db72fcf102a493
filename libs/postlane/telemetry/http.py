"""What a service says about itself over HTTP: `/livez`, `/readyz`, `/metrics`, in a thread of its own.

A thread, not the service's event loop, so that a loop that hangs shows: it still answers, and says what is wrong.
Whoever is slow cannot keep a probe out: a request has a time in all, and when there are too many the oldest goes.
"""

from __future__ import annotations

import io
import secrets
import socket
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, version
from threading import Lock, Thread
from typing import Any

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from postlane.core.errors import ConfigurationError

REQUESTS_AT_ONCE_MAX = 16
REQUEST_TIMEOUT_S = 5.0  # to be asked; as long again for the answer to be taken
_JSON = "application/json"


def package_version() -> str:
    """The version of the installed distribution."""
    try:
        return version("postlane")
    except PackageNotFoundError:
        return "0+unknown"


class ServiceHttp:
    """The HTTP server of one service; it listens as soon as it is made and answers once `start` was called.

    `ready` returns None while the service can do its work, else why not; it is called from this server's threads.
    Port 0 is any free port; `port` says which. Raises ConfigurationError when the port is taken or the host is wrong.
    """

    def __init__(
        self,
        host: str,
        port: int,
        ready: Callable[[], str | None],
        *,
        service: str = "postlane",
        instance: str = "",
        registry: CollectorRegistry | None = None,
    ) -> None:
        self.nonce = secrets.token_hex(8)  # of this boot: tells a restarted process from the one before
        about = {"service": service, "instance": instance, "nonce": self.nonce, "version": package_version()}
        answers = _Answers(about, ready, registry or CollectorRegistry())
        try:
            self._server = _Server(host, port, answers)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ConfigurationError(
                f"POSTLANE_HTTP_PORT: cannot listen on {host}:{port}: {reason}; give another port, or 0 for a free one"
            ) from None
        self.host = host
        self.port: int = self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, args=(0.2,), name="http", daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port; returns within a second."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(1.0)
        self._server.server_close()


class _Answers:
    """Path -> (status, content type, body)."""

    def __init__(self, about: dict[str, str], ready: Callable[[], str | None], registry: CollectorRegistry) -> None:
        self._about = about
        self._ready = ready
        self._registry = registry

    def to(self, path: str, accept: str) -> tuple[int, str, bytes]:
        match path.partition("?")[0]:
            case "/livez":
                return 200, _JSON, orjson.dumps({"status": "live", **self._about})
            case "/readyz":
                return self._readiness()
            case "/metrics":
                encode, content_type = choose_encoder(accept)
                return 200, content_type, encode(self._registry)
        return 404, _JSON, orjson.dumps({"error": "there are /livez, /readyz and /metrics"})

    def _readiness(self) -> tuple[int, str, bytes]:
        try:
            reason = self._ready()
        except Exception as error:  # a check that fails is itself a reason, never a dead endpoint
            reason = f"the readiness check failed: {type(error).__name__}"
        status = "ready" if reason is None else "unready"
        body = {"status": status, **self._about} | ({} if reason is None else {"reason": reason})
        return (200 if reason is None else 503), _JSON, orjson.dumps(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(self, host: str, port: int, answers: _Answers) -> None:
        self.answers = answers
        self._lock = Lock()
        self._open: dict[socket.socket, None] = {}  # in the order in which they came
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Like HTTPServer's, without its reverse DNS look-up of the host, which can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            oldest = next(iter(self._open)) if len(self._open) >= REQUESTS_AT_ONCE_MAX else None
            if oldest is not None:
                del self._open[oldest]
                _cut(oldest)
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event of ours."""


def _cut(connection: socket.socket) -> None:
    """Its thread, which waits for it, ends at once."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has gone by itself


class _Bounded(io.RawIOBase):
    """A socket to read from until a moment, however slowly its bytes come: a time-out for each read would never end
    one that sends a byte now and then."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self._connection = connection
        self._until = until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_TIMEOUT_S
    server_version = "postlane"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Bounded(self.connection, time.monotonic() + REQUEST_TIMEOUT_S))

    def do_GET(self) -> None:
        status, content_type, body = self.server.answers.to(self.path, self.headers.get("Accept") or "")
        self.connection.settimeout(REQUEST_TIMEOUT_S)  # for the answer as a whole
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds: not logged."""
