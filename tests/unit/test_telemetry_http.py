"""The probes: live, ready, metrics, and a taken port."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection

import pytest

from postlane.config import ConfigurationError
from postlane.telemetry.http import REQUESTS_AT_ONCE_MAX, ServiceHttp
from postlane.telemetry.metrics import Metrics


@contextmanager
def serving(reason: list[str | None], metrics: Metrics | None = None) -> Iterator[ServiceHttp]:
    registry = metrics.registry if metrics else None
    http = ServiceHttp("127.0.0.1", 0, lambda: reason[0], service="router", instance="r-1", registry=registry)
    http.start()
    try:
        yield http
    finally:
        http.close()


def get(http: ServiceHttp, path: str) -> tuple[int, str]:
    with closing(HTTPConnection("127.0.0.1", http.port, timeout=10)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_livez_says_who_it_is() -> None:
    with serving(["not yet"]) as http:
        status, body = get(http, "/livez")
        assert status == 200
        assert json.loads(body) | {"version": "?"} == {
            "status": "live",
            "service": "router",
            "instance": "r-1",
            "nonce": http.nonce,
            "version": "?",
        }


def test_two_boots_have_two_nonces() -> None:
    with serving([None]) as one, serving([None]) as two:
        assert one.nonce != two.nonce


def test_readyz_follows_the_service() -> None:
    reason: list[str | None] = ["the broker does not answer"]
    with serving(reason) as http:
        status, body = get(http, "/readyz")
        assert (status, json.loads(body)["reason"]) == (503, "the broker does not answer")
        reason[0] = None
        assert get(http, "/readyz")[0] == 200


def test_a_failing_readiness_check_is_unready() -> None:
    http = ServiceHttp("127.0.0.1", 0, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    http.start()
    try:
        status, body = get(http, "/readyz")
        assert (status, "ZeroDivisionError" in body) == (503, True)
    finally:
        http.close()


def test_metrics_are_exposed_and_unknown_paths_are_not() -> None:
    metrics = Metrics("router")
    metrics.router.requests_total.labels("routed").inc(3)
    with serving([None], metrics) as http:
        assert 'postlane_router_requests_total{outcome="routed"} 3.0' in get(http, "/metrics")[1]
        assert get(http, "/etc/passwd")[0] == 404


def test_a_taken_port_is_a_configuration_error() -> None:
    with serving([None]) as http, pytest.raises(ConfigurationError, match=f"POSTLANE_HTTP_PORT.*{http.port}"):
        ServiceHttp("127.0.0.1", http.port, lambda: None)


def test_silent_clients_do_not_pile_up() -> None:
    with serving([None]) as http:
        silent = [socket.create_connection(("127.0.0.1", http.port)) for _ in range(REQUESTS_AT_ONCE_MAX)]
        try:
            with socket.create_connection(("127.0.0.1", http.port), timeout=10) as extra:
                extra.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
                assert extra.recv(12) == b"HTTP/1.0 200"  # not queued behind the silent ones
            silent[0].settimeout(10)
            assert silent[0].recv(1) == b""  # the oldest went
        finally:
            for connection in silent:
                connection.close()
