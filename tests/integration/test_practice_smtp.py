"""The practice SMTP server: it speaks SMTP, keeps its word in the ledger, and misbehaves exactly as ordered."""

from __future__ import annotations

import asyncio
import hashlib
import json
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest
import uvloop

from postlane.local.practice import ControlError, PracticeControl, PracticeProcess
from postlane.local.practice.listener import Options
from postlane.local.practice.server import PracticeServer

BODY = b"Message-ID: <m1@practice>\r\nX-Postlane-Delivery: d1\r\nSubject: s\r\n\r\nhello\r\n"


class Raw:
    """A client that sends what it is told and reads reply by reply."""

    def __init__(self, port: int, greet: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.file = self.socket.makefile("rb")
        if greet:
            assert self.reply().startswith(b"220")
            self.say(b"EHLO client\r\n")
            assert self.reply().startswith(b"250")

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> bytes:
        """One whole reply; empty when the server has closed."""
        lines = b""
        while True:
            try:
                line = self.file.readline()
            except ConnectionResetError:
                return b""
            lines += line
            if line[3:4] != b"-":
                return lines

    def replies(self, count: int) -> list[int]:
        return [int(self.reply()[:3] or 0) for _ in range(count)]

    def envelope(self, *rcpts: str) -> list[int]:
        commands = ["MAIL FROM:<a@example.org>", *(f"RCPT TO:<{rcpt}>" for rcpt in rcpts or ("ada@example.com",))]
        self.say("".join(f"{command}\r\n" for command in [*commands, "DATA"]).encode())
        return self.replies(len(commands) + 1)

    def silent(self, seconds: float = 0.3) -> bool:
        self.socket.settimeout(seconds)
        try:
            return self.socket.recv(1, socket.MSG_PEEK) is None
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(10)

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class Threaded:
    """A practice server in a thread of this process: there at once, and otherwise the same."""

    def __init__(self, ledger: Path) -> None:
        self._ledger = ledger
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(20)
        self.control = PracticeControl(self._url)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with PracticeServer(self._ledger, {"primary": 0, "backup": 0}) as server:
            self.smtp_ports, self._url = server.ports, server.url
            self._ready.set()
            await self._stop.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Threaded]:
    server = Threaded(tmp_path / "ledger.ndjson")
    yield server
    server.close()


@pytest.fixture
def connect(server: Threaded) -> Iterator[Callable[..., Raw]]:
    opened: list[Raw] = []

    def connect(name: str = "primary", greet: bool = True) -> Raw:
        opened.append(Raw(server.smtp_ports[name], greet))
        return opened[-1]

    yield connect
    for raw in opened:
        raw.close()


def outcomes(practice: Threaded | PracticeProcess) -> list[str]:
    return [entry.outcome for entry in practice.control.ledger()]


# -- the protocol


def test_a_pipelined_mail_and_the_next_envelope_in_one_write(server: Threaded, connect: Callable[..., Raw]) -> None:
    raw = connect()
    assert raw.envelope() == [250, 250, 354]
    raw.say(BODY + b".\r\nMAIL FROM:<b@example.org>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n")
    assert raw.replies(4) == [250, 250, 250, 354]
    raw.say(b"..dots\r\n.\r\nQUIT\r\n")
    assert raw.replies(2) == [250, 221]
    assert raw.reply() == b""
    first, second = server.control.ledger()
    assert (first.message_id, first.delivery, first.mail_from) == ("<m1@practice>", "d1", "a@example.org")
    assert (first.rcpts, first.size, first.outcome, first.server) == (
        ("ada@example.com",),
        len(BODY),
        "accepted",
        "primary",
    )
    assert first.sha256 == hashlib.sha256(BODY).hexdigest()
    assert second.sha256 == hashlib.sha256(b".dots\r\n").hexdigest()


def test_every_split_of_the_bytes_means_the_same(server: Threaded, connect: Callable[..., Raw]) -> None:
    raw = connect()
    raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    text = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n" + BODY + b".\r\n"
    for at in range(len(text)):
        raw.say(text[at : at + 1])
    assert raw.replies(4) == [250, 250, 354, 250]
    assert server.control.ledger()[0].sha256 == hashlib.sha256(BODY).hexdigest()


def test_an_empty_message_and_a_bare_dot_line_are_told_apart(server: Threaded, connect: Callable[..., Raw]) -> None:
    raw = connect()
    raw.envelope()
    raw.say(b".\r\n")
    raw.replies(1)
    raw.envelope()
    raw.say(b"a\n.\nb\r\n.\r\n")  # bare line feeds end nothing
    raw.replies(1)
    assert [entry.size for entry in server.control.ledger()] == [0, 7]


@pytest.mark.parametrize(
    ("said", "codes"),
    [
        (b"MAIL FROM:<a@b>\r\nMAIL FROM:<a@b>\r\n", [250, 503]),
        (b"RCPT TO:<a@b>\r\n", [503]),
        (b"DATA\r\n", [503]),
        (b"MAIL FROM:<a@b>\r\nDATA\r\n", [250, 503]),
        (b"MAIL FROM:<a@b>\r\nRSET\r\nRCPT TO:<a@b>\r\n", [250, 250, 503]),
        (b"MAIL FROM: a@b\r\n", [501]),
        (b"MAIL FROM:<a@b> SIZE=999999999999\r\n", [552]),
        (b"MAIL FROM:<\xc3\xa4@b>\r\n", [553]),
        (b"MAIL FROM:<\xc3\xa4@b> SMTPUTF8\r\nRCPT TO:<\xc3\xb6@b>\r\n", [250, 250]),
        (b"MAIL FROM:<> BODY=8BITMIME\r\n", [250]),
        (b"NONSENSE\r\nNOOP\r\nSTARTTLS\r\nAUTH PLAIN\r\n", [500, 250, 503, 503]),
        (b"x" * 5000, [500, 0]),
    ],
)
def test_commands_out_of_order_or_out_of_shape(connect: Callable[..., Raw], said: bytes, codes: list[int]) -> None:
    raw = connect()
    raw.say(said)
    assert raw.replies(len(codes)) == codes


async def test_options_no_pipelining_small_size_and_data_always(tmp_path: Path) -> None:
    options = Options(pipelining=False, size_max_bytes=1000, data_always=True, record_rejected=True)
    async with (
        PracticeServer(tmp_path / "ledger.ndjson", options=options) as server,
        aiosmtplib.SMTP(hostname="127.0.0.1", port=server.ports["primary"], start_tls=False) as client,
    ):
        await client.ehlo()
        assert not client.supports_extension("pipelining")
        assert client.supports_extension("smtputf8")
        await client.mail("a@example.org")
        await client.rcpt("b@example.com")
        with pytest.raises(aiosmtplib.SMTPDataError) as caught:
            await client.data(b"x" * 5000)
        assert caught.value.code == 552
        await server.add_fault({"action": "reply", "phase": "rcpt", "code": 550})
        await client.mail("a@example.org")
        with pytest.raises(aiosmtplib.SMTPRecipientRefused):
            await client.rcpt("b@example.com")
        with pytest.raises(aiosmtplib.SMTPDataError) as caught:
            await client.data(b"nobody")
        assert caught.value.code == 554
        assert server.ledger.records == 0


# -- TLS and AUTH


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=practice"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return cert, key


@pytest.fixture
def secured(tmp_path: Path, certificate: tuple[Path, Path]) -> Iterator[PracticeProcess]:
    users = tmp_path / "users"
    users.write_text("shop:pass:word\nother:x\n")
    extra = ["--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1]), "--auth-file", str(users)]
    with PracticeProcess(tmp_path / "practice", extra=extra) as server:
        yield server


def test_starttls_then_auth_then_mail(secured: PracticeProcess, certificate: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(cafile=str(certificate[0]))
    for method in ("auth_plain", "auth_login"):
        with smtplib.SMTP("127.0.0.1", secured.smtp_port, timeout=10) as client:
            client.ehlo()
            assert client.has_extn("starttls")
            assert not client.has_extn("auth")
            assert client.docmd("AUTH PLAIN AHNob3AAcGFzczp3b3Jk")[0] == 503
            client.starttls(context=context)
            client.ehlo()
            assert not client.has_extn("starttls")
            assert client.has_extn("auth")
            assert client.mail("a@example.org")[0] == 530
            client.user, client.password = "shop", "wrong"
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.auth(method.removeprefix("auth_"), getattr(client, method))
            client.password = "pass:word"
            assert client.auth(method.removeprefix("auth_"), getattr(client, method))[0] == 235
            client.sendmail("a@example.org", ["b@example.com"], BODY)
    assert outcomes(secured) == ["accepted", "accepted"]


def test_what_came_before_the_handshake_does_not_count_after_it(
    secured: PracticeProcess, certificate: tuple[Path, Path]
) -> None:
    raw = Raw(secured.smtp_port)
    raw.say(b"STARTTLS\r\nNOOP\r\nNOOP\r\n")
    assert raw.reply().startswith(b"220")
    raw.file.close()
    with ssl.create_default_context(cafile=str(certificate[0])).wrap_socket(
        raw.socket, server_hostname="127.0.0.1"
    ) as tls:
        tls.sendall(b"EHLO again\r\n")
        assert tls.recv(1000).startswith(b"250-practice")


def test_implicit_tls(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    extra = ["--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1]), "--implicit-tls"]
    context = ssl.create_default_context(cafile=str(certificate[0]))
    with (
        PracticeProcess(tmp_path / "practice", extra=extra) as server,
        smtplib.SMTP_SSL("127.0.0.1", server.smtp_port, context=context, timeout=10) as client,
    ):
        client.sendmail("a@example.org", ["b@example.com"], BODY)
        assert outcomes(server) == ["accepted"]


# -- faults, each where it was ordered


@pytest.mark.parametrize("phase", ["connect", "ehlo", "mail", "rcpt", "data", "dot"])
@pytest.mark.parametrize("code", [451, 554, 421])
def test_a_reply_at_each_phase(server: Threaded, connect: Callable[..., Raw], phase: str, code: int) -> None:
    server.control.add_fault("reply", phase, code=code, text="9.9.9 on order")
    raw = connect(greet=False)
    steps = [("connect", b""), ("ehlo", b"EHLO x\r\n"), ("mail", b"MAIL FROM:<a@b>\r\n")]
    steps += [("rcpt", b"RCPT TO:<a@b>\r\n"), ("data", b"DATA\r\n"), ("dot", BODY + b".\r\n")]
    for step, said in steps:
        raw.say(said)
        reply = raw.reply()
        if step == phase:
            assert reply == f"{code} 9.9.9 on order\r\n".encode()
            break
        assert reply[:1] in b"23"
    raw.say(b"NOOP\r\n")
    assert raw.replies(1) == [0 if code == 421 or phase == "connect" else 250]
    assert server.control.ledger() == []


@pytest.mark.parametrize("phase", ["connect", "ehlo", "mail", "rcpt", "data", "body", "dot"])
@pytest.mark.parametrize("action", ["drop", "hang"])
def test_a_drop_or_a_hang_at_each_phase(server: Threaded, connect: Callable[..., Raw], phase: str, action: str) -> None:
    server.control.add_fault(action, phase, count=1)
    raw = connect(greet=False)
    heard = {"connect": 0, "ehlo": 1, "mail": 2, "rcpt": 3, "data": 4, "body": 5, "dot": 5}[phase]
    commands = b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\nDATA\r\n"
    try:
        raw.say(commands)
        expected = [220, 250, 250, 250, 354][:heard]
        assert raw.replies(heard) == expected
        if heard == 5:
            raw.say(BODY + b".\r\n")
    except (BrokenPipeError, ConnectionResetError):
        assert action == "drop"
    if action == "drop":
        assert raw.reply() == b""
    else:
        assert raw.silent()
    assert server.control.ledger() == []
    assert server.control.faults()[0]["hits"] == 1
    assert connect().envelope() == [250, 250, 354]  # others are served


def test_recipient_patterns_refuse_one_of_two(server: Threaded, connect: Callable[..., Raw]) -> None:
    server.control.add_fault("reply", "rcpt", code=550, text="5.1.1 No such user", recipient="*@gone.example")
    raw = connect()
    assert raw.envelope("a@here.example", "b@gone.example", "c@here.example") == [250, 250, 550, 250, 354]
    raw.say(BODY + b".\r\n")
    assert raw.replies(1) == [250]
    assert server.control.ledger()[0].rcpts == ("a@here.example", "c@here.example")


def test_accepted_then_dropped_is_in_the_ledger(server: Threaded, connect: Callable[..., Raw]) -> None:
    server.control.add_fault("accept_drop", delivery="d1", count=1)
    raw = connect()
    raw.envelope()
    raw.say(BODY + b".\r\n")
    assert raw.reply() == b""
    raw = connect()
    raw.envelope()
    raw.say(BODY + b".\r\n")
    assert raw.replies(1) == [250]
    assert [(entry.delivery, entry.outcome, entry.accepted) for entry in server.control.ledger()] == [
        ("d1", "accepted_dropped", True),
        ("d1", "accepted", True),
    ]
    summary = server.control.summary()
    assert (summary["deliveries"], summary["repeated"], summary["copies_extra"]) == (1, ["d1"], 1)


def test_accepted_then_late_or_never_answered(server: Threaded, connect: Callable[..., Raw]) -> None:
    server.control.add_fault("accept_hang", count=1, delay_s=0.2)
    server.control.add_fault("accept_hang", count=1)
    late, never = connect(), connect()
    late.envelope()
    late.say(BODY + b".\r\n")
    assert late.replies(1) == [250]
    never.envelope()
    never.say(BODY + b".\r\n")
    assert never.silent()
    assert outcomes(server) == ["accepted_dropped", "accepted_dropped"]


def test_who_hangs_up_during_a_delay_at_the_dot_has_not_been_promised_anything(
    server: Threaded, connect: Callable[..., Raw]
) -> None:
    server.control.add_fault("delay", "dot", delay_s=0.3, count=1)
    raw = connect()
    raw.envelope()
    raw.say(BODY + b".\r\n")
    raw.close()
    other = connect()
    other.envelope()
    other.say(BODY.replace(b"d1", b"d2") + b".\r\n")
    assert other.replies(1) == [250]
    server.control.add_fault("delay", "dot", delay_s=0.3)
    other.envelope()
    other.say(BODY.replace(b"d1", b"d3") + b".\r\n")
    assert other.replies(1) == [250]  # begun after the first would have ended
    assert [entry.delivery for entry in server.control.ledger()] == ["d2", "d3"]


def test_latency_delays_the_replies_and_keeps_their_order(server: Threaded, connect: Callable[..., Raw]) -> None:
    raw = connect()
    server.control.set_faults(
        [
            {"action": "delay", "phase": "mail", "delay_s": 0.1},
            {"action": "delay", "phase": "rcpt", "delay_s": 0.1, "recipient": "slow@*"},
            {"action": "reply", "phase": "rcpt", "code": 450, "recipient": "slow@*"},
        ]
    )
    began = time.monotonic()
    assert raw.envelope("slow@example.com", "quick@example.com") == [250, 450, 250, 354]
    assert time.monotonic() - began > 0.15  # two delays of 0.1 s; a loop's timer may end a millisecond early


def test_probability_by_seed_is_the_same_in_every_run(server: Threaded, connect: Callable[..., Raw]) -> None:
    def run() -> list[int]:
        server.control.set_faults([{"action": "reply", "phase": "mail", "code": 451, "probability": 0.5, "seed": 11}])
        raw = connect()
        raw.say(b"MAIL FROM:<a@b>\r\nRSET\r\n" * 40)
        return raw.replies(80)[::2]

    first = run()
    assert set(first) == {250, 451}
    assert run() == first


def test_an_outage_of_one_listener_resets_refuses_and_ends(server: Threaded, connect: Callable[..., Raw]) -> None:
    live, other = connect(), connect("backup")
    live.envelope()
    server.control.outage("primary")
    assert live.reply() == b""
    with pytest.raises(ConnectionRefusedError):
        connect()
    assert other.envelope() == [250, 250, 354]
    assert server.control.health()["smtp"]["primary"]["open"] is False
    server.control.recover("primary")
    assert connect().envelope() == [250, 250, 354]
    server.control.outage()
    assert other.reply() == b""
    server.control.clear()
    assert connect("backup").envelope() == [250, 250, 354]
    assert server.control.ledger() == []


def test_slow_reading_holds_the_sender_back_and_loses_nothing(server: Threaded, connect: Callable[..., Raw]) -> None:
    raw = connect()
    server.control.add_fault("slow_read", bytes_per_s=4000)
    big = BODY + b"x" * 1000 + b"\r\n"
    began = time.monotonic()
    raw.envelope()
    raw.say(big + b".\r\n")
    assert raw.replies(1) == [250]
    assert time.monotonic() - began > 0.15
    server.control.clear()
    raw.envelope()
    raw.say(big * 100 + b".\r\n")
    assert raw.replies(1) == [250]
    assert [entry.size for entry in server.control.ledger()] == [len(big), 100 * len(big)]


def test_slow_reading_fills_the_senders_buffers(server: Threaded, connect: Callable[..., Raw]) -> None:
    raw = connect()
    raw.envelope()
    server.control.add_fault("slow_read", bytes_per_s=1000)
    raw.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):
        raw.say(b"x" * 64 * 1024 * 1024)


def test_connections_beyond_the_limit_hear_421(server: Threaded, connect: Callable[..., Raw]) -> None:
    server.control.add_fault("max_connections", limit=2)
    first, _second = connect(), connect()
    third = connect(greet=False)
    assert third.reply() == b"421 4.7.0 Too many connections\r\n"
    assert third.reply() == b""
    first.say(b"QUIT\r\n")
    assert first.replies(2) == [221, 0]
    first.close()
    third.close()
    deadline = time.monotonic() + 10
    while server.control.health()["smtp"]["primary"]["connections_open"] > 1:
        assert time.monotonic() < deadline
    assert connect().envelope() == [250, 250, 354]


def test_the_last_reply_is_heard_even_while_the_client_still_sends(
    server: Threaded, connect: Callable[..., Raw]
) -> None:
    server.control.add_fault("reply", "mail", code=421)
    raw = connect()
    raw.say(b"MAIL FROM:<a@b>\r\n" + b"NOOP\r\n" * 20_000)
    raw.say(b"NOOP\r\n")
    assert raw.reply().startswith(b"421")


# -- the ledger, and the interface


def test_accepted_mails_outlive_sigkill(practice: PracticeProcess) -> None:
    def send(worker: int) -> list[str]:
        raw, acknowledged = Raw(practice.smtp_port), []
        for i in range(2000):
            name = f"w{worker}-{i}"
            try:
                if raw.envelope()[-1] != 354:
                    break
                raw.say(BODY.replace(b"d1", name.encode()) + b".\r\n")
                if not raw.reply().startswith(b"250"):
                    break
            except (BrokenPipeError, ConnectionResetError):
                break
            acknowledged.append(name)
        raw.close()
        return acknowledged

    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(send, worker) for worker in range(3)]
        while practice.control.health()["records"] < 300:
            assert not all(worker.done() for worker in workers)
        practice.kill()
        acknowledged = {name for worker in workers for name in worker.result(timeout=30)}
    practice.start()
    kept = practice.control.ledger()
    assert acknowledged <= {entry.delivery for entry in kept}
    assert len(acknowledged) >= 290
    assert [entry.seq for entry in kept] == list(range(len(kept)))


def test_a_ledger_longer_than_a_page_is_read_whole(practice: PracticeProcess) -> None:
    practice.stop()
    line = {"at": 1.0, "server": "primary", "peer": "p", "mail_from": "a", "rcpts": ["b"], "message_id": None}
    line |= {"sha256": "", "size": 1, "outcome": "accepted"}
    with practice.ledger_path.open("w") as file:
        for i in range(10_001):
            file.write(json.dumps({"seq": i, "delivery": f"d{i}", **line}) + "\n")
    practice.start()
    assert [entry.seq for entry in practice.control.ledger()] == list(range(10_001))
    assert [entry.delivery for entry in practice.control.ledger(since=10_000)] == ["d10000"]


def ask(server: Threaded, method: str, path: str, body: Any = None) -> tuple[int, str]:
    request = urllib.request.Request(server.control.base_url + path, method=method, data=body)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", None, 404),
        ("GET", "/ledger?since=x", None, 400),
        ("POST", "/faults", b"{", 400),
        ("POST", "/faults", b'{"action": "explode"}', 400),
        ("PUT", "/faults", b"{}", 400),
        ("DELETE", "/faults/none", None, 404),
        ("POST", "/health", b"{}", 405),
    ],
)
def test_wrong_requests_are_told_why(server: Threaded, method: str, path: str, body: bytes | None, status: int) -> None:
    code, text = ask(server, method, path, body)
    assert code == status
    assert json.loads(text)["error"]


def test_counters(server: Threaded, connect: Callable[..., Raw]) -> None:
    raw = connect()
    raw.envelope()
    raw.say(BODY + b".\r\n")
    raw.replies(1)
    status, text = ask(server, "GET", "/metrics")
    assert status == 200
    assert 'postlane_practice_mails_accepted_total{server="primary"} 1\n' in text
    with pytest.raises(ControlError, match="unknown field 'colour'"):
        server.control.add_fault("drop", colour="red")


def test_a_taken_port_and_wrong_use_end_the_process_with_a_sentence(tmp_path: Path, practice: PracticeProcess) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "postlane.local.practice", "--http-port", "0", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stderr

    code, said = run("--smtp-port", str(practice.smtp_port), "--ledger", str(tmp_path / "l"))
    assert (code, said.count("\n")) == (1, 1)
    code, said = run("--smtp-port", "0", "--ledger", str(practice.ledger_path))
    assert (code, said.count("\n")) == (1, 1)
    assert "another practice server" in said
    assert run("--ledger", str(tmp_path / "l"))[0] == 2
