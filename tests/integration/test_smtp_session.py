"""Sessions and connections against a live SMTP server: plain, STARTTLS, implicit TLS, AUTH, every phase cut."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import subprocess
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop
from pydantic import SecretStr
from smtp_server import SmtpServer

from postlane.core.policy import Provider
from postlane.core.replies import Phase
from postlane.core.smtp_envelope import Obstacle
from postlane.core.smtp_events import Accepted, Cause, Closed, InDoubt, NotBegun, Refused, Unsendable
from postlane_sender.connection import NOT_YET, Connection, NotYet, Result, SessionLimits
from postlane_sender.session import ProviderDown, ProviderRefused, limits_of, open_session, tls_context_of

SECRET = "s3cret-w0rd"
QUICK = SessionLimits(open_s=10, tick_s=0.02)
Run = Callable[[Coroutine[Any, Any, None]], None]


def is_of_the_server(problem: dict[str, Any]) -> bool:
    """The test server's conversations are cut off in the middle; only the client has to end without a sound."""
    return any(word in problem["message"] for word in ("client_connected_cb", "StreamReaderProtocol"))


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine on each kind of loop, bounded, and fails on anything the loop had to report."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def go(main: Coroutine[Any, Any, None]) -> None:
        problems: list[dict[str, Any]] = []

        async def bounded() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
            await asyncio.wait_for(main, 30)

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(bounded())
        gc.collect()
        assert not [problem for problem in problems if not is_of_the_server(problem)]

    return go


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A self-made certificate for 127.0.0.1: its file for the client, a context for the server."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context


@dataclass(eq=False)
class Mail:
    """An item as the sender has it."""

    name: str
    body: bytes | None
    recipient: str = ""
    envelope_from: str = "from@x.example"
    size_bytes: int | None = None
    eight_bit: bool | None = None

    def __post_init__(self) -> None:
        self.recipient = self.recipient or f"{self.name}@to.example"


@dataclass
class Sender:
    """A listener that offers its mails in order and notes what it is told."""

    mails: list[Mail]
    results: dict[str, Result] = field(default_factory=dict)
    dots: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    is_closed: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    end: Closed | None = None
    not_yet: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.count = len(self.mails)

    def ready(self, conn: Connection) -> None:
        while self.mails and conn.can_offer:
            mail = self.mails.pop(0)
            unsendable = conn.offer(mail)
            if unsendable is not None:
                self.finished(conn, mail, unsendable)

    def body_wanted(self, conn: Connection, item: Any) -> bytes | NotYet | None:
        self.trace.append(f"body {item.name}")
        if item.name in self.not_yet:
            self.asked.set()
            return NOT_YET
        return item.body

    def dot_sent(self, conn: Connection, item: Any) -> None:
        self.trace.append(f"dot {item.name}")
        self.dots.append(item.name)

    def finished(self, conn: Connection, item: Any, result: Result) -> None:
        assert item.name not in self.results
        assert self.end is None
        assert result.ref is item
        self.results[item.name] = result
        if len(self.results) == self.count:
            self.done.set()

    def closed(self, conn: Connection, closed: Closed) -> None:
        assert self.end is None
        self.end = closed
        self.is_closed.set()


def provider(server: SmtpServer, ca: Path | None = None, username: str | None = None, **more: Any) -> Provider:
    fields: dict[str, Any] = {"name": "p", "host": "127.0.0.1", "port": server.port, "tls": server.tls}
    return Provider(**fields | {"tls_ca_file": ca, "username": username} | more)


async def connect(server: SmtpServer, sender: Sender, limits: SessionLimits = QUICK, **more: Any) -> Connection:
    config = provider(server, **more)
    context = tls_context_of(config)
    password = SecretStr(SECRET) if config.username else None
    return await open_session(config, password, sender, limits=limits, tls_context=context, ehlo_name="me.example")


def mails(count: int) -> list[Mail]:
    return [Mail(f"m{n}", f"Subject: {n}\r\n\r\n.dot\r\n{n}\r\n".encode()) for n in range(count)]


@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "by-command"])
@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
def test_every_mail_arrives_once(
    run: Run, certificate: tuple[Path, ssl.SSLContext], tls: str, pipelining: bool
) -> None:
    async def main() -> None:
        cert, context = certificate
        sent = mails(25)
        sender = Sender(list(sent))
        async with SmtpServer(pipelining=pipelining, tls=tls, tls_context=context, login=("me", SECRET)) as server:
            conn = await connect(server, sender, ca=None if tls == "none" else cert, username="me")
            await sender.done.wait()
            conn.drain()
            await sender.is_closed.wait()
            assert {taken.rcpt_to: taken.body for taken in server.taken} == {m.recipient: m.body for m in sent}
            assert len(server.taken) == 25
            assert server.verbs[-1] == "QUIT"
        assert all(isinstance(result, Accepted) for result in sender.results.values())
        assert sender.dots == [m.name for m in sent]
        assert sender.end is not None
        assert sender.end.cause is Cause.QUIT

    run(main())


def test_pipelining_can_be_configured_away(run: Run) -> None:
    async def main() -> None:
        for pipelining in (True, False):
            sender = Sender(mails(3))
            async with SmtpServer() as server:
                conn = await connect(server, sender, pipelining=pipelining)
                await sender.done.wait()
                conn.abort("test")
                assert set(server.read_ahead) == {pipelining}

    run(main())


def drop() -> Callable[[str], Awaitable[bytes | None]]:
    async def hook(_: str) -> bytes | None:
        return b""

    return hook


@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "by-command"])
@pytest.mark.parametrize("at", ["MAIL", "RCPT", "DATA", "."])
def test_dropped_at_each_phase(run: Run, at: str, pipelining: bool) -> None:
    async def main() -> None:
        sender = Sender(mails(2))
        async with SmtpServer(pipelining=pipelining, hooks={at: drop()}) as server:
            await connect(server, sender)
            await sender.is_closed.wait()
        first, second = sender.results["m0"], sender.results["m1"]
        assert isinstance(first, InDoubt if at == "." else NotBegun)
        assert isinstance(second, NotBegun)
        assert sender.dots == (["m0"] if at == "." else [])
        assert sender.end is not None
        assert sender.end.cause is Cause.LOST

    run(main())


@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "by-command"])
@pytest.mark.parametrize("at", ["MAIL", "RCPT", "DATA", "."])
def test_silence_at_each_phase_times_out(run: Run, at: str, pipelining: bool) -> None:
    async def main() -> None:
        async def hang(_: str) -> bytes | None:
            await asyncio.sleep(60)
            return b""

        limits = SessionLimits(mail_s=0.1, rcpt_s=0.1, data_s=0.1, dot_s=0.1, tick_s=0.02)
        sender = Sender(mails(2))
        async with SmtpServer(pipelining=pipelining, hooks={at: hang}) as server:
            await connect(server, sender, limits)
            await sender.is_closed.wait()
        assert isinstance(sender.results["m0"], InDoubt if at == "." else NotBegun)
        assert sender.end is not None
        assert sender.end.reason == f"timed out waiting for {'DOT' if at == '.' else at}"

    run(main())


def test_a_server_that_reads_nothing_times_out_in_doubt(run: Run) -> None:
    async def main() -> None:
        async def greet_and_stop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 hi\r\n")
            await reader.readuntil(b"\r\n")
            writer.write(b"250 hi\r\n")
            for answer in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
                await reader.readuntil(b"\r\n")
                writer.write(answer)
            writer.transport.pause_reading()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

        listening = await asyncio.start_server(greet_and_stop, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        sender = Sender([Mail("big", b"x" * 70 + b"\r\n" + (b"y" * 998 + b"\r\n") * 30_000)])
        config = Provider(name="p", host="127.0.0.1", port=port, tls="none")
        limits = SessionLimits(dot_s=1000, block_s=0.2, tick_s=0.02)
        await open_session(config, None, sender, limits=limits, ehlo_name="me.example")
        await sender.is_closed.wait()
        assert isinstance(sender.results["big"], InDoubt)
        listening.close()

    run(main())


@pytest.mark.parametrize("at", ["DATA", "."])
def test_refused_at_each_phase_and_the_next_mail_arrives(run: Run, at: str) -> None:
    async def main() -> None:
        refused: list[str] = []

        async def once(_: str) -> bytes | None:
            if refused:
                return None
            refused.append(at)
            return b"550 5.1.1 no such user\r\n"

        sender = Sender(mails(3))
        async with SmtpServer(hooks={at: once}) as server:
            conn = await connect(server, sender)
            await sender.done.wait()
            conn.drain()
            await sender.is_closed.wait()
            assert [taken.rcpt_to for taken in server.taken] == ["m1@to.example", "m2@to.example"]
        result = sender.results["m0"]
        assert isinstance(result, Refused)
        assert result.phase == {"DATA": "data", ".": "dot"}[at]

    run(main())


def test_not_yet_and_then_ready(run: Run) -> None:
    async def main() -> None:
        sent = mails(3)
        sender = Sender(list(sent), not_yet={"m1"})
        async with SmtpServer() as server:
            conn = await connect(server, sender)
            await sender.asked.wait()
            conn.body_ready(sent[0])  # not the one that waits: of no effect
            assert "dot m1" not in sender.trace
            sender.not_yet.clear()
            conn.body_ready(sent[1])
            assert sender.trace[-1] == "dot m1"
            await sender.done.wait()
            assert [taken.rcpt_to for taken in server.taken] == [m.recipient for m in sent]
            conn.abort("test")
        assert sender.trace.count("body m1") == 2

    run(main())


def test_a_body_that_never_becomes_ready(run: Run) -> None:
    async def main() -> None:
        sender = Sender(mails(2), not_yet={"m0"})
        async with SmtpServer() as server:
            await connect(server, sender, SessionLimits(body_wait_s=0.1, tick_s=0.02))
            await sender.is_closed.wait()
            assert not server.taken
        assert isinstance(sender.results["m0"], NotBegun)
        assert isinstance(sender.results["m1"], NotBegun)

    run(main())


def test_a_mail_that_may_no_longer_be_sent_closes_the_connection(run: Run) -> None:
    async def main() -> None:
        sent = mails(3)
        sent[1].body = None
        sender = Sender(sent)
        async with SmtpServer() as server:
            await connect(server, sender)
            await sender.is_closed.wait()
            assert [taken.rcpt_to for taken in server.taken] == ["m0@to.example"]
        assert isinstance(sender.results["m1"], NotBegun)
        assert isinstance(sender.results["m2"], NotBegun)
        assert sender.end is not None
        assert sender.end.cause is Cause.WITHDRAWN

    run(main())


def test_withdrawn_ahead_of_its_turn(run: Run) -> None:
    async def main() -> None:
        sent = mails(3)
        sender = Sender(list(sent), not_yet={"m0"})
        async with SmtpServer() as server:
            conn = await connect(server, sender)
            await sender.asked.wait()
            conn.withdraw(sent[1])
            sender.not_yet.clear()
            conn.body_ready(sent[0])
            await sender.done.wait()
            assert [taken.rcpt_to for taken in server.taken] == ["m0@to.example", "m2@to.example"]
            conn.abort("test")
        assert isinstance(sender.results["m1"], NotBegun)

    run(main())


@pytest.mark.parametrize("body", [b"a\nb\r\n", b"a\r\n.\n"])
def test_a_smuggling_body_is_unsendable(run: Run, body: bytes) -> None:
    async def main() -> None:
        sender = Sender([Mail("evil", body), *mails(1)])
        async with SmtpServer() as server:
            await connect(server, sender)
            await sender.is_closed.wait()
            assert not server.taken
        result = sender.results["evil"]
        assert isinstance(result, Unsendable)
        assert result.obstacle is Obstacle.BODY
        assert isinstance(sender.results["m0"], NotBegun)

    run(main())


def test_unsendable_mails_do_not_stand_in_the_way(run: Run) -> None:
    async def main() -> None:
        hostile = Mail("hostile", b"x\r\n", recipient="a@b.example>\r\nRCPT TO:<c@d.example")
        foreign = Mail("foreign", b"x\r\n", recipient="ü@b.example")
        sender = Sender([hostile, foreign, *mails(1)])
        async with SmtpServer(extensions=()) as server:
            conn = await connect(server, sender)
            await sender.done.wait()
            assert [taken.rcpt_to for taken in server.taken] == ["m0@to.example"]
            conn.abort("test")
        obstacles = [getattr(sender.results[name], "obstacle", None) for name in ("hostile", "foreign")]
        assert obstacles == [Obstacle.ADDRESS, Obstacle.SMTPUTF8]

    run(main())


def test_idle_connection_quits(run: Run) -> None:
    async def main() -> None:
        sender = Sender(mails(1))
        async with SmtpServer() as server:
            await connect(server, sender, SessionLimits(idle_s=0.1, tick_s=0.02))
            await sender.is_closed.wait()
            assert server.verbs[-1] == "QUIT"
        assert isinstance(sender.results["m0"], Accepted)
        assert sender.end is not None
        assert sender.end.cause is Cause.QUIT

    run(main())


def test_mails_per_connection_are_bounded(run: Run) -> None:
    async def main() -> None:
        sender = Sender(mails(5))
        async with SmtpServer() as server:
            await connect(server, sender, SessionLimits(mails_max=3))
            await sender.is_closed.wait()
            assert len(server.taken) == 3
            assert server.verbs[-1] == "QUIT"
        assert list(sender.results) == ["m0", "m1", "m2"]

    run(main())


def test_quit_is_bounded(run: Run) -> None:
    async def main() -> None:
        async def hang(_: str) -> bytes | None:
            await asyncio.sleep(60)
            return b""

        sender = Sender([])
        async with SmtpServer(hooks={"QUIT": hang}) as server:
            conn = await connect(server, sender, SessionLimits(quit_s=0.1, tick_s=0.02))
            conn.drain()
            await sender.is_closed.wait()
        assert conn.is_closed

    run(main())


def test_421_while_idle(run: Run) -> None:
    async def main() -> None:
        async def say_421(_: str) -> bytes | None:
            return b"250 2.0.0 queued\r\n421 4.4.2 going down\r\n"

        sender = Sender(mails(1))
        async with SmtpServer(hooks={".": say_421}) as server:
            await connect(server, sender)
            await sender.is_closed.wait()
        assert isinstance(sender.results["m0"], Accepted)
        assert sender.end is not None
        assert sender.end.cause is Cause.SERVER_CLOSING
        assert sender.end.reply is not None
        assert sender.end.reply.code == 421

    run(main())


# Opening


async def opening_fails(server: SmtpServer, **more: Any) -> Exception:
    sender = Sender([])
    with pytest.raises((ProviderDown, ProviderRefused)) as caught:
        await connect(server, sender, SessionLimits(open_s=1.0), **more)
    return caught.value


def test_a_wrong_password_is_a_refusal_and_never_shown(run: Run) -> None:
    async def main() -> None:
        async with SmtpServer(login=("me", "another")) as server:
            error = await opening_fails(server, username="me")
        assert isinstance(error, ProviderRefused)
        assert (error.reply.code, error.reply.enhanced, error.phase) == (535, "5.7.8", Phase.AUTH)
        told = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
        assert SECRET not in told
        assert SECRET not in repr(error)
        assert error.__context__ is None
        assert error.__cause__ is None

    run(main())


@pytest.mark.parametrize("greeting", [b"421 4.3.2 busy\r\n", b"554 5.7.1 go away\r\n"])
def test_a_refusing_greeting(run: Run, greeting: bytes) -> None:
    async def main() -> None:
        async with SmtpServer(greeting=greeting) as server:
            error = await opening_fails(server)
        assert isinstance(error, ProviderRefused)
        assert error.reply.code == int(greeting[:3])
        assert error.phase is Phase.CONNECT

    run(main())


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH\r\n", b"\xff\xff\r\n"])
def test_no_smtp_server_at_all(run: Run, greeting: bytes) -> None:
    async def main() -> None:
        async with SmtpServer(greeting=greeting) as server:
            assert isinstance(await opening_fails(server), ProviderDown)

    run(main())


def test_nobody_listens_or_no_such_name(run: Run) -> None:
    async def main() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            server = SmtpServer(port=taken.getsockname()[1])
            assert isinstance(await opening_fails(server), ProviderDown)
            assert isinstance(await opening_fails(server, host="no.such.host.invalid"), ProviderDown)

    run(main())


def test_starttls_required_and_not_offered_stays_unused(run: Run, certificate: tuple[Path, ssl.SSLContext]) -> None:
    async def main() -> None:
        async with SmtpServer(login=("me", SECRET)) as server:
            error = await opening_fails(server, tls="starttls", ca=certificate[0], username="me")
            assert isinstance(error, ProviderDown)
            assert "AUTH" not in server.verbs
            assert "MAIL" not in server.verbs

    run(main())


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_an_untrusted_certificate_never_falls_back(
    run: Run, certificate: tuple[Path, ssl.SSLContext], tls: str
) -> None:
    async def main() -> None:
        async with SmtpServer(tls=tls, tls_context=certificate[1], login=("me", SECRET)) as server:
            error = await opening_fails(server, username="me")
            assert isinstance(error, ProviderDown)
            assert "AUTH" not in server.verbs
            assert server.connections <= 1

    run(main())


def test_bytes_injected_behind_starttls_or_ehlo(run: Run, certificate: tuple[Path, ssl.SSLContext]) -> None:
    async def main() -> None:
        async def inject(_: str) -> bytes | None:
            return b"250 test\r\n250 2.0.0 injected\r\n"

        async with SmtpServer(hooks={"EHLO": inject}) as server:
            error = await opening_fails(server)
        assert isinstance(error, ProviderDown)

    run(main())


def test_tls_needs_a_context(run: Run) -> None:
    async def main() -> None:
        config = Provider(name="p", host="127.0.0.1", port=1, tls="starttls")
        with pytest.raises(ValueError, match="no TLS context"):
            await open_session(config, None, Sender([]), limits=QUICK)

    run(main())


def test_the_transport_is_ours_alone(run: Run) -> None:
    """TCP_NODELAY is set, and aiosmtplib's protocol hears nothing any more."""

    async def main() -> None:
        sender = Sender(mails(1))
        async with SmtpServer() as server:
            conn = await connect(server, sender)
            await sender.done.wait()
            assert conn._transport.get_protocol() is conn
            sock = conn._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            conn.abort("test")

    run(main())


def test_limits_come_from_the_provider() -> None:
    limits = limits_of(Provider(host="h", dot_timeout_s=7, mails_per_connection_max=3))
    assert (limits.dot_s, limits.mails_max) == (7, 3)
