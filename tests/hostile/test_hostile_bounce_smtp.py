"""Clients of the bounce listener that mean harm, or are merely odd: no relay, all within bounds, and no bounce lost."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trustme

from postlane.core.dsn import MESSAGE_MAX_BYTES
from postlane.core.errors import ConfigurationError
from postlane_producer import bounce_smtp
from postlane_producer.bounce_smtp import RECIPIENTS_MAX, REPLIES_MAX, BounceListener
from postlane_producer.config import TlsFiles
from postlane_producer.tls import server_context
from tests.unit import dsn_samples as samples
from tests.unit.bounce_gate import NAMES, Gate

HOST = "127.0.0.1"
WAIT_S = 20.0


class Client:
    """A client that says what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def reply(self) -> str:
        """The next reply, its lines joined; "" when the connection is gone."""
        lines = []
        try:
            async with asyncio.timeout(WAIT_S):
                while line := (await self.reader.readline()).decode():
                    lines.append(line.rstrip("\r\n"))
                    if line[3:4] != "-":
                        break
        except ConnectionError:
            pass
        return "\n".join(lines)

    async def say(self, line: str | bytes) -> str:
        """One command, and its reply."""
        self.writer.write((line if isinstance(line, bytes) else line.encode()) + b"\r\n")
        return await self.reply()

    async def begin(self, *recipients: str, sender: str = "") -> list[str]:
        """Up to RCPT; the replies to those."""
        await self.say("EHLO mx.example.com")
        assert (await self.say(f"MAIL FROM:<{sender}>")).startswith("250")
        return [await self.say(f"RCPT TO:<{address}>") for address in recipients]

    async def data(self, message: bytes) -> str:
        assert (await self.say("DATA")).startswith("354")
        self.writer.write(message + b"\r\n.\r\n")
        return await self.reply()

    async def gone(self) -> bytes:
        """All that comes until the connection is closed by the other side."""
        told = b""
        try:
            async with asyncio.timeout(WAIT_S):
                while part := await self.reader.read(65536):
                    told += part
        except ConnectionError:
            pass
        return told


Meet = Callable[[], Awaitable[Client]]


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


@pytest.fixture
async def listener(gate: Gate, tmp_path: Path) -> AsyncIterator[BounceListener]:
    authority = trustme.CA()
    own = authority.issue_cert("mx.example.org")
    own.private_key_pem.write_to_path(tmp_path / "tls.key")
    own.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = server_context(TlsFiles("POSTLANE_BOUNCES_TLS_CERT", tmp_path / "tls.crt", tmp_path / "tls.key"))
    made = BounceListener(HOST, 0, gate.intake, hostname="mx.example.org", tls=tls)
    await made.start()
    yield made
    await made.close()
    assert (made.sessions, made.held_bytes) == (set(), 0)


@pytest.fixture
async def meet(listener: BounceListener) -> AsyncIterator[Meet]:
    clients: list[Client] = []

    async def connected() -> Client:
        client = Client(*await asyncio.open_connection(HOST, listener.port))
        clients.append(client)
        greeting = await client.reply()
        assert greeting.startswith(("220 mx.example.org", "421"))
        return client

    yield connected
    for client in clients:
        client.writer.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - the listener tells nobody
            await asyncio.sleep(0.01)


# ----------------------------------------------------------------------------------------------------- what it is for


@pytest.mark.parametrize("sender", ["", "MAILER-DAEMON@mx.example.com", "postmaster@mail.example.org"])
async def test_a_bounce_is_taken_from_anybody(meet: Meet, gate: Gate, sender: str) -> None:
    client = await meet()
    assert await client.begin(gate.address, sender=sender) == ["250 2.1.5 ok"]
    assert (await client.data(samples.postfix())).startswith("250")
    assert len(await gate.written(NAMES.events)) == 1
    assert gate.counted() == {"suppressed": 1}
    assert (await client.say("QUIT")).startswith("221")


async def test_what_is_no_notification_is_taken_counted_and_dropped(meet: Meet, gate: Gate) -> None:
    client = await meet()
    await client.begin(gate.address)
    assert (await client.data(samples.out_of_office())).startswith("250")
    assert await gate.written(NAMES.events) == []
    assert gate.counted() == {"not_a_report": 1}


async def test_without_kafka_it_is_to_come_again_and_then_it_is_taken(meet: Meet, gate: Gate) -> None:
    gate.faults.at_append = 1
    client = await meet()
    await client.begin(gate.address)
    assert (await client.data(samples.postfix())).startswith("451 4.3.0")
    assert await client.begin(gate.address) == ["250 2.1.5 ok"]
    assert (await client.data(samples.postfix())).startswith("250")
    assert len(await gate.written(NAMES.events)) == 1


async def test_a_message_that_our_own_code_breaks_on_is_to_come_again(
    meet: Meet, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ValueError("<victim@example.com>")

    monkeypatch.setattr(gate.intake, "take", broken)
    client = await meet()
    await client.begin(gate.address)
    told = await client.data(samples.postfix())
    assert told.startswith("451")
    assert "victim" not in told


# ------------------------------------------------------------------------------------------------------------ no relay


async def test_nobody_else_gets_mail_through_it(meet: Meet, gate: Gate) -> None:
    client = await meet()
    token = gate.address.partition("@")[0]
    forged = gate.address.replace(gate.address[20], "a" if gate.address[20] != "a" else "b")
    strangers = [
        "ada@example.com",
        "bounces@mail.example.org",
        "postmaster@mail.example.org",
        "postmaster",
        forged,
        f"{token}@other.example",
        f"{token}%other.example@mail.example.org",
        f"ada%example.com@{token}",
        f"@mail.example.org:{gate.address}@relay.example",
        f'"{gate.address}"@mail.example.org',
        f"{gate.address},ada@example.com",
        f"{gate.address}> <ada@example.com",
        "",
        "\udcff".encode("utf-8", "surrogatepass").decode("latin-1"),
    ]
    for told in await client.begin(*strangers):
        assert told[:1] == "5", told
    assert (await client.say("DATA")).startswith("503")
    assert await client.begin(forged, gate.address) == ["550 5.1.1 no such address here", "250 2.1.5 ok"]
    await client.data(samples.postfix())
    assert [record.topic for record in await gate.written(NAMES.requests)] == []


async def test_neither_auth_nor_anything_that_tells_of_addresses_is_known(meet: Meet, gate: Gate) -> None:
    client = await meet()
    offered = await client.say("EHLO mx.example.com")
    assert "STARTTLS" in offered
    assert not {"AUTH", "VRFY", "HELP", "EXPN"} & set(offered.replace("-", " ").split())
    for command in ("AUTH PLAIN AGEAYg==", f"VRFY {gate.address}", "EXPN list", "HELP", "ETRN example.com", "TURN"):
        assert (await client.say(command))[:2] == "50"


# -------------------------------------------------------------------------------------------------------------- bounds


async def test_five_recipients_and_no_more(meet: Meet, gate: Gate) -> None:
    client = await meet()
    told = await client.begin(*[gate.address] * (RECIPIENTS_MAX + 1))
    assert [reply[:3] for reply in told] == ["250"] * RECIPIENTS_MAX + ["452"]


async def test_four_megabytes_and_no_more(meet: Meet, gate: Gate) -> None:
    client = await meet()
    await client.say("EHLO x")
    assert (await client.say(f"MAIL FROM:<> SIZE={MESSAGE_MAX_BYTES + 1}")).startswith("552")
    await client.begin(gate.address)
    line = b"x" * 998 + b"\r\n"
    assert (await client.data(line * (MESSAGE_MAX_BYTES // 1000 + 100))).startswith("552")
    assert await client.begin(gate.address) == ["250 2.1.5 ok"]  # and the session goes on
    large = samples.postfix(message=samples.mail() + line * 4000)
    assert (await client.data(large)).startswith("250")
    assert gate.counted() == {"suppressed": 1}


@pytest.mark.parametrize("piece", [b"x" * 65536, b"x" * 998 + b"\r\n"])
async def test_a_message_without_end_is_cut_off(meet: Meet, gate: Gate, listener: BounceListener, piece: bytes) -> None:
    client = await meet()
    await client.begin(gate.address)
    await client.say("DATA")
    most = 0

    async def send() -> None:
        nonlocal most
        for _ in range(20 * MESSAGE_MAX_BYTES // len(piece)):
            client.writer.write(piece)
            await client.writer.drain()
            most = max(most, listener.held_bytes)
            assert most < 3 * MESSAGE_MAX_BYTES

    with pytest.raises(ConnectionError):
        await send()
    await until(lambda: listener.held_bytes == 0)
    assert most > MESSAGE_MAX_BYTES


async def test_what_all_sessions_hold_is_bounded(
    meet: Meet, gate: Gate, listener: BounceListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounce_smtp, "HELD_MAX_BYTES", 1_000_000)
    clients = [await meet() for _ in range(5)]
    for client in clients:
        await client.begin(gate.address)
        await client.say("DATA")
        client.writer.write(b"x" * 70 + b"\r\n" + (b"y" * 998 + b"\r\n") * 300)
        await asyncio.sleep(0.1)
    await until(lambda: len(listener.sessions) < 5)
    assert listener.held_bytes <= 1_000_000
    late = await meet()
    for client in clients:
        client.writer.close()
    await until(lambda: listener.held_bytes == 0)
    await late.begin(gate.address)
    assert (await late.data(samples.postfix())).startswith("250")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\r\n" * 100_000,
        b"NOOP\r\n" * 100_000,
        b"EHLO x\r\n" * 100_000,
        b"XYZZY\r\n" * 100_000,
        bytes(range(256)) * 4000,
        b"\xff\r\n" * 100_000,
        b"x" * 5_000_000,
        (b"y" * 20_000 + b"\r\n") * 1000,
        b"RCPT TO:<ada@example.com>\r\n" * 50_000,
        b"MAIL FROM:<" + b"(" * 400 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 50_000,
    ],
)
async def test_pipelined_garbage_ends_and_others_are_served(
    meet: Meet, gate: Gate, listener: BounceListener, garbage: bytes
) -> None:
    client = await meet()

    async def send() -> None:
        try:
            client.writer.write(garbage + b"QUIT\r\n")
            await client.writer.drain()
            client.writer.write_eof()
        except (ConnectionError, OSError, RuntimeError):
            pass

    _, told = await asyncio.gather(send(), client.gone())
    assert told.count(b"\r\n") <= REPLIES_MAX + 1
    assert b"250 2.1.5" not in told
    await until(lambda: not listener.sessions)
    other = await meet()
    await other.begin(gate.address)
    assert (await other.data(samples.postfix())).startswith("250")


async def test_a_session_has_a_time_in_all_and_a_time_for_each_command(
    meet: Meet, listener: BounceListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounce_smtp, "SESSION_MAX_S", 0.6)
    busy = await meet()
    monkeypatch.setattr(bounce_smtp, "SESSION_MAX_S", 600.0)
    monkeypatch.setattr(bounce_smtp, "COMMAND_TIMEOUT_S", 0.6)
    idle = await meet()
    told = []
    while reply := await busy.say("NOOP"):
        told.append(reply[:3])
        await asyncio.sleep(0.05)
    assert set(told) == {"250"}  # it was no bound of commands that ended it
    assert await idle.gone() == b""
    await until(lambda: not listener.sessions)


async def test_one_session_too_many_is_told_so(
    meet: Meet, listener: BounceListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounce_smtp, "SESSIONS_MAX", 3)
    clients = [await meet() for _ in range(3)]
    more = Client(*await asyncio.open_connection(HOST, listener.port))
    assert (await more.reply()).startswith("421 4.3.2")
    assert await more.gone() == b""
    await clients[0].say("QUIT")
    await until(lambda: len(listener.sessions) == 2)
    assert (await (await meet()).say("NOOP")).startswith("250")


async def test_only_crlf_dot_crlf_ends_a_message(meet: Meet, gate: Gate) -> None:
    """Otherwise a returned mail could smuggle a second message in (CVE-2023-51764 and kin)."""
    client = await meet()
    await client.begin(gate.address)
    second = f"MAIL FROM:<>\r\nRCPT TO:<{gate.address}>\r\nDATA\r\n".encode() + samples.postfix()
    inside = samples.out_of_office() + b"\n.\n" + second + b"\n.\r\n" + second + b"\r.\r" + second
    assert (await client.data(inside)).startswith("250")
    assert gate.counted() == {"not_a_report": 1}


# ----------------------------------------------------------------------------------------------------------------- TLS


async def test_starttls_and_what_was_injected_before_it(meet: Meet, gate: Gate, tmp_path: Path) -> None:
    client = await meet()
    await client.say("EHLO mx.example.com")
    client.writer.write(b"STARTTLS\r\nMAIL FROM:<eve@example.net>\r\n")  # the second line is not encrypted
    assert (await client.reply()).startswith("220")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    await client.writer.start_tls(trusting, server_hostname="mx.example.org")
    assert (await client.say("RCPT TO:<x@y.example>")).startswith("503")
    offered = await client.say("EHLO mx.example.com")
    assert "AUTH" not in offered
    assert "STARTTLS" not in offered
    assert (await client.say("AUTH PLAIN AGEAYg==")).startswith("502")
    assert await client.begin(gate.address) == ["250 2.1.5 ok"]
    assert (await client.data(samples.postfix())).startswith("250")


def test_a_certificate_that_cannot_be_used_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("no certificate")
    for names in (("a", "a"), ("a", "nowhere")):
        with pytest.raises(ConfigurationError, match="POSTLANE_BOUNCES_TLS_CERT"):
            server_context(TlsFiles("POSTLANE_BOUNCES_TLS_CERT", tmp_path / names[0], tmp_path / names[1]))


# ------------------------------------------------------------------------------------------------------------- stopping


async def test_a_stop_answers_the_dot_that_was_read_and_cuts_off_the_others(
    meet: Meet, gate: Gate, listener: BounceListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, take = asyncio.Event(), asyncio.Event(), gate.intake.take

    async def slow(raw: bytes, envelope_to: str | None, trusted: bool) -> object:
        begun.set()
        await go_on.wait()
        return await take(raw, envelope_to, trusted)

    monkeypatch.setattr(gate.intake, "take", slow)
    client, idle = await meet(), await meet()
    await client.begin(gate.address)
    answered = asyncio.create_task(client.data(samples.postfix()))
    await begun.wait()
    closing = asyncio.create_task(listener.close())
    assert await idle.gone() == b""
    assert not closing.done()
    go_on.set()
    assert (await answered).startswith("250")
    await closing
    assert len(await gate.written(NAMES.events)) == 1
