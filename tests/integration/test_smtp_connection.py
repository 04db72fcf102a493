"""A connection against a live SMTP server: every mail once, every phase cut, silent or refused, on both loops."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from smtp_sending import SECRET, Mail, Run, Sender, certificate, connect, mails, run
from smtp_server import SmtpServer

from postlane.core.policy import Provider
from postlane.core.smtp_envelope import Obstacle
from postlane.core.smtp_events import Accepted, Cause, InDoubt, NotBegun, Refused, Unsendable
from postlane_sender.connection import SessionLimits
from postlane_sender.session import open_session

__all__ = ["certificate", "run"]  # fixtures


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
