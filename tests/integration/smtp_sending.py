"""What the tests of sessions and connections share: a listener that takes notes, mails, and both event loops."""

from __future__ import annotations

import asyncio
import gc
import ssl
import subprocess
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop
from pydantic import SecretStr
from smtp_server import SmtpServer

from postlane.core.policy import Provider
from postlane.core.smtp_events import Closed
from postlane_sender.connection import NOT_YET, Connection, NotYet, Result, SessionLimits
from postlane_sender.session import open_session, tls_context_of

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

    async def closed_or_done(self) -> None:
        """Returns when the connection is over or every mail has its result."""
        waiting = [asyncio.ensure_future(event.wait()) for event in (self.is_closed, self.done)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()

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
