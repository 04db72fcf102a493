"""HTTP clients that mean harm: the probes of a service and the practice server's control interface go on answering."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from postlane.local.practice import PracticeProcess
from postlane.telemetry import http as service_http
from postlane.telemetry.http import REQUESTS_AT_ONCE_MAX, ServiceHttp
from tests.hostile.effort import EXAMPLES

HOST = "127.0.0.1"
ANSWER_TIMEOUT_S = 10.0


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceHttp]:
    server = ServiceHttp(HOST, 0, lambda: None, service="test")
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def practice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PracticeProcess]:
    with PracticeProcess(tmp_path_factory.mktemp("practice")) as server:
        yield server
        told = server.log_path.read_text(errors="replace")
        assert "Traceback" not in told, told[-3000:]


def status(port: int, path: str = "/livez") -> int:
    connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def said_to(port: int, data: bytes) -> bytes:
    """What comes back for these bytes and the end of them; b"" when the connection is closed or reset."""
    with socket.create_connection((HOST, port), timeout=ANSWER_TIMEOUT_S) as connection:
        answer = b""
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                answer += part
        except TimeoutError:
            raise
        except OSError:
            pass
        return answer


# ----------------------------------------------------------------------------------------------- a service's probes

REQUESTS = {
    "a line without end": b"GET /" + b"a" * 200_000,
    "a long path": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    "a long header": b"GET /livez HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    "many headers": b"GET /livez HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(5000)) + b"\r\n",
    "NUL": b"GET /livez\x00 HTTP/1.1\r\n\r\n",
    "bare LF": b"GET /livez HTTP/1.1\n\n",
    "no version": b"GET /livez\r\n",
    "a strange version": b"GET /livez HTTP/9999999999999999999999.9\r\n\r\n",
    "a version of many digits": b"GET /livez HTTP/" + b"9" * 5000 + b".1\r\n\r\n",
    "a body": b"POST /livez HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\nx",
    "another method": b"DELETE /metrics HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "Accept that is none": b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version="
    + b"9" * 5000
    + b"\r\n\r\n",
    "a header of bytes": b"GET /livez HTTP/1.1\r\n\xff\xfe: \x80\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "nothing": b"",
}


@pytest.mark.parametrize("data", REQUESTS.values(), ids=REQUESTS)
def test_a_strange_request_is_answered_or_dropped_and_the_next_probe_is_answered(
    service: ServiceHttp, data: bytes
) -> None:
    answer = said_to(service.port, data)
    assert answer == b"" or answer.startswith((b"HTTP/", b"{", b"<"))
    assert b"Traceback" not in answer
    assert status(service.port) == 200


_WORDS = (
    "GET |POST |/livez|/metrics|/faults|/ledger?since=| HTTP/1.1|\r\n|\n|\r\n\r\n|Content-Length: |Accept: |-1|%|%00|"
    "//h/|"
    "Expect: 100-continue|Transfer-Encoding: chunked|\x00|\xff|:|?|[]|{}|http://[::1|[::"
)
words = st.sampled_from([*_WORDS.split("|"), "9" * 5000])
fragments = st.lists(words, max_size=12).map(lambda parts: "".join(parts).encode("latin-1"))


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.binary(max_size=100) | fragments)
def test_any_bytes_to_a_service(service: ServiceHttp, data: bytes) -> None:
    answer = said_to(service.port, data)
    assert answer == b"" or answer.startswith((b"HTTP/", b"{", b"<"))
    assert b"Traceback" not in answer


def test_slow_clients_keep_no_probe_out(service: ServiceHttp) -> None:
    """As many as are served at once, and more, each sending a byte now and then."""
    with ExitStack() as stack:
        slow = []
        for _ in range(REQUESTS_AT_ONCE_MAX + 4):
            slow.append(stack.enter_context(socket.create_connection((HOST, service.port), timeout=ANSWER_TIMEOUT_S)))
            slow[-1].sendall(b"GET /livez HTTP/1.1\r\nX: ")
        for _ in range(5):
            for connection in slow:
                _try(lambda c=connection: c.sendall(b"a"))
            assert status(service.port) == 200


def test_a_request_has_a_time_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one time-out for each byte: who sends one every 50 ms is cut off as well."""
    monkeypatch.setattr(service_http, "REQUEST_TIMEOUT_S", 0.5)
    server = ServiceHttp(HOST, 0, lambda: None)
    server.start()
    try:
        with socket.create_connection((HOST, server.port), timeout=0.05) as slow:
            slow.sendall(b"GET /livez HTTP/1.1\r\nX: ")
            deadline = time.monotonic() + ANSWER_TIMEOUT_S
            while not _is_closed(slow):
                assert time.monotonic() < deadline
                _try(lambda: slow.sendall(b"a"))
    finally:
        server.close()


def test_who_takes_no_answer_keeps_no_probe_out(service: ServiceHttp) -> None:
    with ExitStack() as stack:
        for _ in range(REQUESTS_AT_ONCE_MAX + 4):
            deaf = stack.enter_context(socket.create_connection((HOST, service.port), timeout=ANSWER_TIMEOUT_S))
            deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert status(service.port) == 200


def _try(call: Callable[[], object]) -> None:
    try:
        call()
    except OSError:
        pass


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


# -------------------------------------------------------------------------------------- the practice server's control


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.binary(max_size=100) | fragments)
@example(data=b"GET http://[::1 HTTP/1.1\r\n\r\n")
@example(data=b"GET /ledger?since=-1&limit=-1 HTTP/1.1\r\n\r\n")
@example(data=b"GET /ledger?since=" + b"9" * 5000 + b" HTTP/1.1\r\n\r\n")
@example(data=b"GET /ledger?since=99999999999999999999 HTTP/1.1\r\n\r\n")
@example(data=b"DELETE /faults/%00 HTTP/1.1\r\n\r\n")
@example(data=b"GET /livez HTTP/1.1\r\nX: " + b"a" * 200_000)
def test_any_bytes_to_the_control_interface(practice: PracticeProcess, data: bytes) -> None:
    answer = said_to(practice.http_port, data)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
rules = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(["delay", "reply", "drop", "hang", "max_connections"]) | anything,
        "phase": st.sampled_from(["connect", "rcpt", "dot"]) | anything,
        **dict.fromkeys(("code", "text", "delay_s", "limit", "count", "probability", "seed", "id"), anything),
        **dict.fromkeys(("recipient", "recipient_regex", "delivery", "server", "bytes_per_s"), anything),
    },
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(method=st.sampled_from(["POST", "PUT"]), body=anything | rules | st.lists(rules, max_size=2))
@example(method="POST", body={"action": "drop", "phase": "rcpt", "recipient_regex": "("})
@example(method="POST", body={"action": "delay", "phase": "rcpt", "delay_s": 1e308})
def test_any_document_is_a_rule_or_refused(practice: PracticeProcess, method: str, body: object) -> None:
    data = json.dumps(body).encode()
    head = f"{method} /faults HTTP/1.1\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    answer = said_to(practice.http_port, head + data)
    assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400", b"HTTP/1.1 503")), answer[:200]
    practice.control.clear()


def test_the_practice_server_is_alive_after_all_that(practice: PracticeProcess) -> None:
    assert practice.control.health()["status"] == "ok"
    assert status(practice.http_port, "/health") == 200


def test_what_waits_is_bounded(practice: PracticeProcess, tmp_path: Path) -> None:
    """Two hundred that never finish their request: the others are answered."""
    with ExitStack() as stack:
        for _ in range(200):
            slow = stack.enter_context(socket.create_connection((HOST, practice.http_port), timeout=ANSWER_TIMEOUT_S))
            slow.sendall(b"GET /health HTTP/1.1\r\nX: ")
        assert status(practice.http_port, "/health") == 200
