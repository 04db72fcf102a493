"""SMTP servers that mean harm: endless, binary, early, slow. The session ends in time and memory that are bounded, no
mail is taken for accepted that was not handed over, and nothing else of the process is touched."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest

from postlane.core.smtp_events import Accepted
from postlane.local.ports import HOST
from postlane_sender.connection import SessionLimits
from postlane_sender.session import ProviderDown, ProviderRefused
from tests.hostile.sending import Item, Listener, send

LIMITS = SessionLimits(open_s=1.5, mail_s=1.5, rcpt_s=1.5, data_s=1.5, dot_s=1.5, tick_s=0.02)
EXTRA_MAX_BYTES = 8_000_000  # that the client may hold while endless replies come in
Server = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
EHLO = b"250-me\r\n250-PIPELINING\r\n250 8BITMIME\r\n"

pytestmark = pytest.mark.timeout(120)


def says(*answers: bytes, then: bytes = b"", greeting: bytes = b"220 hi\r\n") -> Server:
    """Answers each line with the next of `answers`; afterwards `then`, again and again."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        for answer in answers:
            await reader.readline()
            writer.write(answer)
            await writer.drain()
        if then:
            while True:
                writer.write(then)
                await writer.drain()
        await reader.read()

    return serve


async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A greeting that never ends, a byte at a time."""
    while True:
        writer.write(b"2")
        await writer.drain()
        await asyncio.sleep(0.05)


ALL_AT_ONCE = b"250 ok\r\n250 ok\r\n354 go\r\n250 queued\r\n"
SERVERS: dict[str, Server] = {
    "endless greeting": says(greeting=b"", then=b"220-x\r\n" * 1000),
    "a line without end": says(greeting=b"", then=b"2" * 65536),
    "a greeting that drips": drips,
    "binary": says(greeting=bytes(range(256)) * 100),
    "NUL": says(greeting=b"220 \x00\r\n", then=b"\x00" * 65536),
    "greeting and replies in one": says(greeting=b"220 hi\r\n" + EHLO + ALL_AT_ONCE),
    "endless EHLO": says(then=b"250-SIZE 1\r\n" * 1000),
    "EHLO of bare line ends": says(b"250-a\r250 b\n250 c\r\n"),
    "a size that is none": says(b"250-me\r\n250 SIZE " + b"9" * 5000 + b"\r\n", then=b""),
    "EHLO, then all the replies": says(EHLO + ALL_AT_ONCE),
    "endless reply to MAIL": says(EHLO, then=b"250-x\r\n" * 1000),
    "a code that is none": says(EHLO, b"999 what\r\n"),
    "a reply that splits": says(EHLO, b"250-ok\r\n550 no\r\n"),
    "bare CR in a reply": says(EHLO, b"250 ok\r250 ok\r\n"),
    "the dot's reply before the body": says(EHLO, ALL_AT_ONCE),
    "silence": says(EHLO),
    "354 to everything": says(EHLO, b"354 go\r\n354 go\r\n354 go\r\n"),
    "an escape to the terminal": says(EHLO, b"550 \x1b]0;owned\x07\r\n"),
}


async def _tried(server: Server) -> Listener | ProviderDown | ProviderRefused:
    serving: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.ensure_future(_cut_off(server(reader, writer))))

    listening = await asyncio.start_server(connected, HOST, 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        return await send(port, [Item("a@b.example", b"Subject: x\r\n\r\nhello\r\n")], limits=LIMITS)
    except (ProviderDown, ProviderRefused) as refused:
        return refused
    finally:
        listening.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


async def _cut_off(serving: Awaitable[None]) -> None:
    try:
        await serving
    except ConnectionError:
        pass


def test_no_server_takes_more_than_its_time_and_no_mail_is_accepted_unsent() -> None:
    async def main() -> dict[str, Listener | ProviderDown | ProviderRefused]:
        found = await asyncio.gather(*(_tried(server) for server in SERVERS.values()))
        return dict(zip(SERVERS, found, strict=True))

    tracemalloc.start()
    try:
        found = asyncio.run(asyncio.wait_for(main(), 60))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert set(found) == set(SERVERS)
    for name, outcome in found.items():
        if isinstance(outcome, Listener):
            accepted = [result for result in outcome.results.values() if isinstance(result, Accepted)]
            assert not accepted, name
            assert all(str(result).isprintable() for result in outcome.results.values()), name
        else:
            assert str(outcome).isprintable(), name
            assert len(str(outcome)) < 2000, name
    assert peak < EXTRA_MAX_BYTES * len(SERVERS)
