"""The HTTP gateway on a real Kafka: what an answer stands for, what callers may, and what is bounded."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
import trustme
from tests.integration.test_publish_kafka import Installation
from tests.observability.names import used
from tests.observability.otlp import Receiver

from postlane.core.events import MailRequested
from postlane.core.identity import message_id_from_key
from postlane.eventlog.codec import decode, header
from postlane.eventlog.ports import Received
from postlane.local import ports
from postlane.local.kafka import KafkaCluster
from postlane.mail import Mail

pytestmark = pytest.mark.kafka
TIMEOUT_S = 60.0
JSON, LINES = "application/json", "application/x-ndjson"
BODY = {"sender": "shop@example.org", "to": "ada@example.com", "subject": "Order", "text": "On its way."}


class Gateway:
    """`python -m postlane_producer`, with keys made by the command that makes them."""

    def __init__(self, installation: Installation, folder: Path, **more: str) -> None:
        self.installation = installation
        self.keys_file = folder / "keys.yaml"
        self.log = folder / "gateway.log"
        self.port, self.probe = ports.free_port(), ports.free_port()
        self.keys: dict[str, str] = {}
        self._more = more
        self._process: subprocess.Popen[bytes] | None = None

    def key(self, name: str, *options: str) -> str:
        (told,) = self.installation.told("gateway", "new-key", name, "--file", str(self.keys_file), *options)
        self.keys[name] = told["key"]
        return str(told["key"])

    def start(self) -> None:
        env = {
            **self.installation.environ,
            "POSTLANE_GATEWAY_LISTEN": f"127.0.0.1:{self.port}",
            "POSTLANE_GATEWAY_KEYS_FILE": str(self.keys_file),
            "POSTLANE_HTTP_PORT": str(self.probe),
            "POSTLANE_DATA_DIR": str(self.keys_file.parent / "data"),
            "POSTLANE_INSTANCE_ID": f"gateway-{self.port}",
            **self._more,
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([sys.executable, "-m", "postlane_producer"], env=env, stderr=log)
        self.until(lambda: self.ready()[0] == 200, "ready")

    def until(self, holds: Any, what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not holds():
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < deadline, f"not {what}: {self.log.read_text()[-2000:]}"
            time.sleep(0.05)

    def ready(self) -> tuple[int, str]:
        return self._probed("/readyz")

    def metrics(self) -> str:
        return self._probed("/metrics")[1]

    def _probed(self, path: str) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", self.probe, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def post(
        self, body: Any, caller: str | None = "shop", path: str = "/v1/mails", kind: str = JSON, **headers: str
    ) -> tuple[int, Any, HTTPResponse]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        own = {"Content-Type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if caller is not None:
            own["Authorization"] = f"Bearer {self.keys.get(caller, caller)}"
        try:
            connection.request("POST", path, raw, own)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.headers["Content-Type"].startswith(LINES):
            return answer.status, [orjson.loads(line) for line in text.splitlines()], answer
        return answer.status, orjson.loads(text), answer

    def reap(self) -> None:
        """It was killed."""
        assert self._process is not None
        self._process.wait(10)

    def stop(self, asked: bool = False) -> int:
        """Its exit code; `asked`: it was told to stop before, and a second signal would cut that short."""
        process, self._process = self._process, None
        if process is None:
            return 0
        if not asked:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(60)
        finally:
            process.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid


@pytest.fixture(scope="module")
def installation(kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    made = Installation(kafka.bootstrap_servers, tmp_path_factory.mktemp("installation"))
    made.told("topics", "apply")
    return made


@pytest.fixture(scope="module")
def otlp() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def gateway(installation: Installation, otlp: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    on = {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    made = Gateway(installation, tmp_path_factory.mktemp("gateway"), **on)
    made.key("shop")
    made.key("narrow", "--tenant", "acme", "--lane", "bulk", "--sender", "@acme.example", "--sender", "ceo@x.example")
    made.key("slow", "--rate", "0.5")
    made.key("bouncer", "--may", "bounces")
    made.start()
    yield made
    assert made.stop() == 0


def requests_of(gateway: Gateway, message_id: str) -> list[Received]:
    return [r for r in gateway.installation.requests() if r.key == message_id.encode()]


# ------------------------------------------------------------------------------------------------- what an answer is


def test_202_stands_for_a_record_where_the_receipt_says(gateway: Gateway) -> None:
    status, receipt, answer = gateway.post(BODY, Idempotency_Key='"order-1"')
    assert (status, answer.headers["Server"]) == (202, "postlane")
    assert receipt["message_id"] == message_id_from_key("default", "order-1")
    (record,) = requests_of(gateway, receipt["message_id"])
    assert (record.partition, record.offset) == (receipt["partition"], receipt["offset"])
    request = decode(MailRequested, record.value)
    assert (request.to, request.key, request.tenant) == (("ada@example.com",), "order-1", "default")
    assert header(record.headers, "ce_source") == b"postlane/gateway"


def test_a_key_names_one_mail_however_it_is_given(gateway: Gateway) -> None:
    ways = [
        gateway.post(BODY, Idempotency_Key='"o\\"2"'),
        gateway.post(BODY, Idempotency_Key='o"2'),
        gateway.post({**BODY, "key": 'o"2'}),
        gateway.post({**BODY, "key": 'o"2'}, Idempotency_Key='"o\\"2"'),
    ]
    assert [status for status, _, _ in ways] == [202] * 4
    assert len({told["message_id"] for _, told, _ in ways}) == 1
    unkeyed = [gateway.post(BODY)[1]["message_id"] for _ in range(2)]
    assert unkeyed[0] != unkeyed[1]


def test_a_keys_tenant_lanes_and_senders(gateway: Gateway) -> None:
    bulk = {**BODY, "lane": "bulk", "sender": "News <news@ACME.example>"}
    status, told, _ = gateway.post(bulk, "narrow", Idempotency_Key="n1")
    assert (status, told["message_id"]) == (202, message_id_from_key("acme", "n1"))
    (record,) = requests_of(gateway, told["message_id"])
    assert decode(MailRequested, record.value).tenant == "acme"
    assert gateway.post({**bulk, "sender": "ceo@x.example", "tenant": "acme"}, "narrow")[0] == 202
    for change in (
        {"tenant": "default"},
        {"lane": "transactional"},
        {"sender": "news@acme.example.org"},
        {"sender": "eve@x.example"},
        {"sender": '"news@acme.example"@evil.example'},
    ):
        status, problem, _ = gateway.post({**bulk, **change}, "narrow")
        assert (status, problem["type"]) == (403, "urn:postlane:problem:not-allowed"), change


MISTAKES: dict[str, tuple[int, dict[str, Any]]] = {
    "no key": (401, {"body": BODY, "caller": None}),
    "another's key": (401, {"body": BODY, "caller": "plk_" + "A" * 43}),
    "half a key": (401, {"body": BODY, "caller": "plk_"}),
    "a key that may not publish": (403, {"body": BODY, "caller": "bouncer"}),
    "no JSON": (400, {"body": b"{"}),
    "no object": (400, {"body": b"[]"}),
    "not UTF-8": (400, {"body": b'{"sender": "\xff"}'}),
    "nested without end": (400, {"body": b"[" * 100_000}),
    "an unknown field": (422, {"body": {**BODY, "too": "a@b.example"}}),
    "nobody to send to": (422, {"body": {**BODY, "to": []}}),
    "a header smuggled in": (422, {"body": {**BODY, "subject": "a\r\nBcc: eve@evil.example"}}),
    "a command smuggled in": (422, {"body": {**BODY, "to": "a@b.example>\r\nRCPT TO:<eve@evil.example"}}),
    "a generation of a replay": (422, {"body": {**BODY, "generation": 1, "replay_forced": True}}),
    "two keys": (422, {"body": {**BODY, "key": "a"}, "Idempotency_Key": "b"}),
    "a key that is none": (422, {"body": {**BODY, "key": 7}}),
    "a key that is empty": (422, {"body": {**BODY, "key": ""}}),
    "a key without end": (422, {"body": {**BODY, "key": "k" * 513}}),
    "a template with what JSON cannot say": (422, {"body": {**BODY, "text": None, "template": {"id": 7}}}),
    "a mail too large": (413, {"body": {**BODY, "text": "x" * 1_000_000}}),
    "too many bytes of recipients": (413, {"body": {**BODY, "to": [f"u{n}@e.example" for n in range(100)],
                                                   "text": "x" * 200_000}}),
    "a body too large": (413, {"body": b" " * 4_000_001}),
    "another media type": (415, {"body": BODY, "kind": "text/plain"}),
    "a compressed body": (415, {"body": BODY, "Content_Encoding": "gzip"}),
    "more files than a mail has": (422, {"body": {**BODY, "attachments": [{"filename": "a", "content": ""}] * 5_000}}),
    "another path": (404, {"body": BODY, "path": "/v2/mails"}),
    "another verb": (405, {"body": BODY, "path": "/v1/openapi.json"}),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_and_publishes_nothing(gateway: Gateway, name: str) -> None:
    expected, call = MISTAKES[name]
    before = len(gateway.installation.requests())
    status, problem, answer = gateway.post(**call)
    assert (status, problem["status"], answer.headers["Content-Type"]) == (
        expected,
        expected,
        "application/problem+json",
    ), problem
    assert problem["type"].startswith("urn:postlane:problem:")
    if expected == 422:
        assert all(set(one) == {"field", "problem"} for one in problem["errors"])
    if expected == 401:
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert len(gateway.installation.requests()) == before


def test_a_batch_is_answered_line_by_line_in_order(gateway: Gateway) -> None:
    lines = [{**BODY, "key": f"batch-{n}"} for n in range(200)]
    raw = [orjson.dumps(line) for line in lines]
    raw[50], raw[100] = b"nope", orjson.dumps({**BODY, "to": "nobody"})
    status, told, _ = gateway.post(b"\n".join(raw), path="/v1/mails/batch", kind=LINES)
    assert status == 200
    assert [one["status"] for one in told] == [400 if n == 50 else 422 if n == 100 else 202 for n in range(200)]
    for n, one in enumerate(told):
        if n not in (50, 100):
            assert one["message_id"] == message_id_from_key("default", f"batch-{n}")
    there = {(r.key or b"").decode(): (r.partition, r.offset) for r in gateway.installation.requests()}
    assert all(there[one["message_id"]] == (one["partition"], one["offset"]) for one in told if one["status"] == 202)
    assert gateway.post(b"{}\n" * 1001, path="/v1/mails/batch", kind=LINES)[0] == 413


def test_too_fast_is_told_with_how_long_to_wait(gateway: Gateway) -> None:
    answers = [gateway.post(BODY, "slow") for _ in range(6)]
    assert {status for status, _, _ in answers} == {202, 429}
    refused = [answer for status, _, answer in answers if status == 429]
    assert all(1 <= int(answer.headers["Retry-After"]) <= 2 for answer in refused)
    time.sleep(2.1)
    assert gateway.post(BODY, "slow")[0] == 202


def test_what_was_done_is_counted(gateway: Gateway) -> None:
    gateway.post(BODY)
    gateway.post(BODY, None)
    text = gateway.metrics()
    assert 'postlane_producer_accepted_total{way="http"}' in text
    assert 'postlane_producer_refused_total{reason="unknown-key",way="http"}' in text
    assert 'postlane_ready{service="producer"} 1.0' in text
    named = {name for name in used() if name.startswith("postlane_producer_")}
    assert named
    assert {name for name in named if f"\n{name}" not in text} == set()


def test_the_document_describes_what_is_taken(gateway: Gateway) -> None:
    connection = HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    connection.request("GET", "/v1/openapi.json")
    document = json.loads(connection.getresponse().read())
    connection.close()
    schema = {**document["components"]["schemas"]["Mail"], "components": document["components"]}
    jsonschema.Draft202012Validator.check_schema(schema)
    taken = [
        BODY,
        {**BODY, "key": "k", "to": ["a@b.example", "c@d.example"], "send_at": "2027-01-01T00:00:00Z"},
        {**BODY, "attachments": [{"filename": "a.txt", "content": "YQ=="}]},
        {"sender": "a@b.example", "to": "c@d.example", "template": {"id": "welcome", "data": {"n": 1}}},
    ]
    for mail in taken:
        jsonschema.validate(mail, schema)
        Mail.model_validate({name: value for name, value in mail.items() if name != "key"})
    for wrong in ({**BODY, "too": "x"}, {"to": "a@b.example"}, {**BODY, "to": 7}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    receipt = gateway.post(BODY)[1]
    jsonschema.validate(receipt, document["components"]["schemas"]["Receipt"])
    problem = gateway.post({**BODY, "too": 1})[1]
    jsonschema.validate(problem, document["components"]["schemas"]["Problem"])


def test_the_callers_trace_goes_on(gateway: Gateway, otlp: Receiver) -> None:
    trace, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    receipt = gateway.post(BODY, traceparent=f"00-{trace}-{caller}-01")[1]
    otlp.until(lambda spans: any(s.trace_id == trace for s in spans))
    (span,) = [s for s in otlp.spans() if s.trace_id == trace]
    assert (span.service, span.name, span.parent_id) == ("postlane-producer", "POST /v1/mails", caller)
    assert span.attributes["http.route"] == "/v1/mails"
    assert not any("@" in text for text in span.texts)
    (record,) = requests_of(gateway, receipt["message_id"])
    assert header(record.headers, "traceparent") == f"00-{trace}-{span.span_id}-01".encode()
    unsampled = gateway.post(BODY, traceparent=f"00-{trace[::-1]}-{caller}-00")[1]
    assert unsampled["message_id"]
    for bad in ("nonsense", "00-" + "0" * 32 + f"-{caller}-01", "x" * 600):
        assert gateway.post(BODY, traceparent=bad)[0] == 202


# ----------------------------------------------------------------------------------------------------- keys at work


def test_the_key_file_is_read_again_and_a_broken_one_changes_nothing(gateway: Gateway) -> None:
    assert gateway.post(BODY, "plk_" + "B" * 43)[0] == 401
    gateway.key("late")
    gateway.until(lambda: gateway.post(BODY, "late")[0] == 202, "taken up")
    whole = gateway.keys_file.read_text()
    gateway.keys_file.write_text("keys: [{name: shop, sha256: nope}]\n")
    gateway.until(lambda: "a file stays as it was" in gateway.log.read_text(), "told")
    assert gateway.post(BODY, "late")[0] == 202
    gateway.keys_file.write_text("".join(line for line in whole.splitlines(keepends=True) if "late" not in line))
    gateway.until(lambda: gateway.post(BODY, "late")[0] == 401, "taken back")
    assert gateway.post(BODY)[0] == 202


def test_no_key_stands_anywhere_but_where_it_was_shown(gateway: Gateway) -> None:
    planted = "plk_" + "Z" * 43
    gateway.post(BODY, planted)
    for broken in (b"\r\r\n\r\n", b"\x01\r\n\r\n", b"\n\n\x00"):  # a key file with the line ends of Windows, say
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as raw:
            raw.sendall(b"POST /v1/mails HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + planted.encode() + broken)
            assert not raw.recv(100).startswith(b"HTTP/1.1 2")
    gateway.post({**BODY, "to": "nobody"})
    written = gateway.log.read_text() + gateway.metrics() + gateway.keys_file.read_text()
    assert [key for key in (planted, *gateway.keys.values()) if key in written] == []
    assert gateway.keys_file.stat().st_mode & 0o077 == 0


# --------------------------------------------------------------------------------------------------------- bounds


def head(gateway: Gateway, length: int) -> bytes:
    return (
        f"POST /v1/mails HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.keys['shop']}\r\n"
        f"Content-Type: {JSON}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def refuses(gateway: Gateway) -> bool:
    try:
        socket.create_connection(("127.0.0.1", gateway.port), timeout=5).close()
    except OSError:
        return True
    return False


def test_a_stop_answers_what_was_begun(installation: Installation, tmp_path: Path) -> None:
    gateway = Gateway(installation, tmp_path)
    gateway.key("shop")
    gateway.start()
    body = orjson.dumps({**BODY, "key": "begun"})
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as begun:
        begun.sendall(head(gateway, len(body)) + body[:10])
        time.sleep(0.3)
        os.kill(gateway.pid, signal.SIGTERM)
        gateway.until(lambda: gateway.ready()[0] == 503, "unready")
        gateway.until(lambda: refuses(gateway), "refusing")
        begun.sendall(body[10:])
        said = begun.recv(4096)
    assert said.startswith(b"HTTP/1.1 202 "), said
    assert gateway.stop(asked=True) == 0
    assert len(requests_of(gateway, message_id_from_key("default", "begun"))) == 1


@pytest.mark.slow
def test_gateways_that_are_killed_lose_nothing_that_they_accepted(installation: Installation, tmp_path: Path) -> None:
    """Two of them, killed in turn under load; callers send again with the same key, to the other one."""
    pair = []
    for n in range(2):
        (tmp_path / str(n)).mkdir()
        pair.append(Gateway(installation, tmp_path / str(n)))
        pair[n].key("shop")
        pair[n].start()
    accepted: dict[str, dict[str, Any]] = {}
    again = 0

    def publish(numbers: range) -> None:
        nonlocal again
        for n in numbers:
            key = f"killed-{n}"
            for attempt in range(200):
                try:
                    status, told, _ = pair[(n + attempt) % 2].post(BODY, Idempotency_Key=key)
                except (OSError, HTTPException):
                    again += 1
                    time.sleep(0.05)
                    continue
                assert status == 202, told
                accepted[key] = told
                break

    with ThreadPoolExecutor(4) as callers:
        work = [callers.submit(publish, range(first, 600, 4)) for first in range(4)]
        for kill in range(4):
            wanted = 100 * (kill + 1)
            pair[kill % 2].until(lambda wanted=wanted: len(accepted) >= wanted, "accepting")
            os.kill(pair[kill % 2].pid, signal.SIGKILL)
            pair[kill % 2].reap()
            pair[kill % 2].start()
        for one in work:
            one.result(TIMEOUT_S)
    assert [gateway.stop() for gateway in pair] == [0, 0]
    assert again > 0, "no kill met a request"
    assert len(accepted) == 600
    records = installation.requests()
    there = {(r.key or b"").decode(): (r.partition, r.offset) for r in records}
    assert len({told["message_id"] for told in accepted.values()}) == 600
    assert all(told["message_id"] in there for told in accepted.values())
    places = {(r.partition, r.offset): (r.key or b"").decode() for r in records}
    assert all(places[told["partition"], told["offset"]] == told["message_id"] for told in accepted.values())


@pytest.mark.slow
def test_brokers_that_are_lost_and_come_back(tmp_path: Path) -> None:
    cluster = KafkaCluster(tmp_path / "kafka", brokers=1, port=0, tied=True)
    cluster.start()
    try:
        installation = Installation(cluster.bootstrap_servers, tmp_path)
        installation.told("topics", "apply")
        gateway = Gateway(installation, tmp_path)
        gateway.key("shop")
        gateway.start()
        assert gateway.post(BODY, Idempotency_Key="before")[0] == 202
        cluster.stop()
        gateway.until(lambda: gateway.ready()[0] == 503, "unready without a broker")
        status, problem, answer = gateway.post(BODY, Idempotency_Key="during")
        assert (status, problem["type"]) == (503, "urn:postlane:problem:unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        assert "127.0.0.1" not in json.dumps(problem)  # where Kafka is, is not the caller's business
        cluster.start()
        gateway.until(lambda: gateway.ready()[0] == 200, "ready again")
        status, receipt, _ = gateway.post(BODY, Idempotency_Key="during")
        assert status == 202
        assert len(requests_of(gateway, receipt["message_id"])) == 1
        assert gateway.stop() == 0
    finally:
        cluster.stop()


def test_what_it_cannot_start_with_is_one_sentence(installation: Installation, tmp_path: Path) -> None:
    good = tmp_path / "keys.yaml"
    good.write_text("keys: []\n")
    taken = socket.create_server(("127.0.0.1", 0))
    cases = {
        "POSTLANE_GATEWAY_KEYS_FILE: name the file": {},
        "cannot be read": {"POSTLANE_GATEWAY_KEYS_FILE": str(tmp_path / "none.yaml")},
        "no place to listen at": {"POSTLANE_GATEWAY_KEYS_FILE": str(good), "POSTLANE_GATEWAY_LISTEN": "8080"},
        "give both, or neither": {"POSTLANE_GATEWAY_KEYS_FILE": str(good), "POSTLANE_GATEWAY_TLS_CERT": "c.pem"},
        "cannot be used": {
            "POSTLANE_GATEWAY_KEYS_FILE": str(good),
            "POSTLANE_GATEWAY_TLS_CERT": str(good),
            "POSTLANE_GATEWAY_TLS_KEY": str(good),
        },
        "give another port": {
            "POSTLANE_GATEWAY_KEYS_FILE": str(good),
            "POSTLANE_GATEWAY_LISTEN": f"127.0.0.1:{taken.getsockname()[1]}",
        },
    }
    running = {
        says: subprocess.Popen(
            [sys.executable, "-m", "postlane_producer"],
            env={
                **installation.environ,
                "POSTLANE_HTTP_PORT": "0",
                "POSTLANE_INSTANCE_ID": f"wrong-{n}",
                "POSTLANE_DATA_DIR": str(tmp_path / "data"),
                **variables,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for n, (says, variables) in enumerate(cases.items())
    }
    for says, process in running.items():
        error = process.communicate(timeout=TIMEOUT_S)[1]
        assert process.returncode == 2, error
        last = error.strip().splitlines()[-1]
        assert last.startswith("postlane producer: "), error
        assert says in last, error
        assert "Traceback" not in error
    taken.close()


def test_tls_with_a_certificate_of_ones_own(installation: Installation, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for n, part in enumerate(issued.cert_chain_pems):
        part.write_to_path(str(tmp_path / "cert.pem"), append=n > 0)
    files = {f"POSTLANE_GATEWAY_TLS_{name.upper()}": str(tmp_path / f"{name}.pem") for name in ("cert", "key")}
    gateway = Gateway(installation, tmp_path, **files)
    gateway.key("shop")
    gateway.start()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    connection = HTTPSConnection("127.0.0.1", gateway.port, timeout=30, context=context)
    bearer = {"Authorization": f"Bearer {gateway.keys['shop']}", "Content-Type": JSON}
    connection.request("POST", "/v1/mails", orjson.dumps(BODY), bearer)
    assert connection.getresponse().status == 202
    connection.close()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as plain:
        plain.sendall(head(gateway, 2) + b"{}")
        assert not plain.recv(100).startswith(b"HTTP/1.1 2")
    assert gateway.stop() == 0


async def test_what_is_read_at_once_is_bounded(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, so that the bounds can be small."""
    from postlane.clock import SystemClock
    from postlane.eventlog.kafka import KafkaLog
    from postlane.publisher import AsyncPublisher, Publisher
    from postlane.telemetry.metrics import Metrics
    from postlane.telemetry.tracing import OFF
    from postlane_producer import api, bounces, config, gateway, keys

    monkeypatch.setattr(api, "BODY_TIMEOUT_S", 3.0)
    monkeypatch.setattr(gateway, "IDLE_S", 6.0)
    monkeypatch.setattr(gateway, "CONNECTIONS_MAX", 3)
    made = Gateway(installation, tmp_path)
    await asyncio.to_thread(made.key, "shop")
    ring = keys.KeyRing(made.keys_file)
    publisher = AsyncPublisher(Publisher.from_env(installation.environ))
    metrics = Metrics("producer").producer
    log = KafkaLog(installation.environ["POSTLANE_BOOTSTRAP_SERVERS"])
    appender = log.appender()
    intake = bounces.BounceIntake(
        appender, installation.names, None, suppress=True, clock=SystemClock(), tracer=OFF, metrics=metrics
    )
    handlers = api.Api(publisher, ring, intake, metrics, OFF, SystemClock())
    handlers._room = api.Room(requests=1, bytes=1_000)
    place = config.GatewaySettings(listen=config.Place("127.0.0.1", 0), keys_file=made.keys_file)
    service = gateway.Gateway(place, handlers, ring, publisher)
    await service.start()
    made.port = service.port
    try:
        body = orjson.dumps(BODY)
        slow, to_slow = await asyncio.open_connection("127.0.0.1", service.port)
        to_slow.write(head(made, len(body)) + body[:5])
        await to_slow.drain()
        await asyncio.sleep(0.2)
        status, problem, answer = await asyncio.to_thread(made.post, BODY)  # one is under way already
        assert (status, problem["type"]) == (503, "urn:postlane:problem:busy")
        assert answer.headers["Retry-After"] == "1"
        assert (await slow.readline()).startswith(b"HTTP/1.1 408 ")  # the rest did not come
        to_slow.close()
        assert (await asyncio.to_thread(made.post, BODY))[0] == 202
        large = {**BODY, "text": "x" * 2_000}  # more than the room for bytes
        assert (await asyncio.to_thread(made.post, large))[0] == 503
        silent, to_silent = await asyncio.open_connection("127.0.0.1", service.port)
        to_silent.write(b"POST /v1/mails HTTP/1.1\r\nX: ")
        assert await asyncio.wait_for(silent.read(), 20) == b""  # a head that does not end
        to_silent.close()
        others = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(3)]
        fourth, to_fourth = await asyncio.open_connection("127.0.0.1", service.port)
        assert await asyncio.wait_for(fourth.read(), 4) == b""  # at once, and not as an idle one
        for _, to_other in (*others, (fourth, to_fourth)):
            to_other.close()
    finally:
        await service.stop()
        await appender.close()
        await log.close()
