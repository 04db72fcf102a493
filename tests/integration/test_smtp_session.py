"""Opening a session: what is refused, what is down, and that nothing secret is ever told."""

from __future__ import annotations

import socket
import ssl
import traceback
from pathlib import Path
from typing import Any

import pytest
from smtp_sending import QUICK, SECRET, Run, Sender, certificate, connect, mails, run
from smtp_server import SmtpServer

from postlane.core.policy import Provider
from postlane.core.replies import Phase
from postlane_sender.connection import SessionLimits
from postlane_sender.session import ProviderDown, ProviderRefused, limits_of, open_session

__all__ = ["certificate", "run"]  # fixtures


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
