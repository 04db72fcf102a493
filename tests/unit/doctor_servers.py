"""What the doctor talks to in its tests: an SMTP server that misbehaves as told, and a name server with a few names."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import dns.flags
import dns.message
import dns.rcode
import dns.rrset


@dataclass
class Manners:
    """How the SMTP server behaves."""

    greeting: str = "220 mx.example ESMTP"
    offers: tuple[str, ...] = ("PIPELINING", "SIZE 20000000", "8BITMIME")
    tls: ssl.SSLContext | None = None
    implicit: bool = False
    starttls: bool = True
    mechanisms: str = "PLAIN LOGIN"
    password: str | None = None
    silent: bool = False


@contextlib.asynccontextmanager
async def smtp_server(manners: Manners) -> AsyncIterator[int]:
    """Its port on 127.0.0.1."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, ssl.SSLError, ValueError, asyncio.CancelledError):
            await _serve(manners, reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=manners.tls if manners.implicit else None)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()


async def _serve(manners: Manners, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    secure = manners.implicit
    if manners.silent:
        await reader.read()
        return
    writer.write(f"{manners.greeting}\r\n".encode())
    while line := (await reader.readline()).decode().strip():
        verb = line.split()[0].upper()
        if verb == "EHLO":
            lines = ["mx.example", *manners.offers]
            if manners.tls and manners.starttls and not secure:
                lines.append("STARTTLS")
            if manners.password is not None and manners.mechanisms and (secure or manners.tls is None):
                lines.append(f"AUTH {manners.mechanisms}")
            writer.write(b"".join(f"250{'-' if x is not lines[-1] else ' '}{x}\r\n".encode() for x in lines))
        elif verb == "STARTTLS" and manners.tls is not None:
            writer.write(b"220 go on\r\n")
            await writer.drain()
            await writer.start_tls(manners.tls)
            secure = True
        elif verb == "AUTH":
            given = base64.b64decode(line.split()[2]).split(b"\0")[2].decode() if "PLAIN" in line else None
            if given is None:
                for _ in range(2):
                    writer.write(b"334 \r\n")
                    given = base64.b64decode(await reader.readline()).decode()
            writer.write(b"235 welcome\r\n" if given == manners.password else f"535 not you, {given}\r\n".encode())
        else:
            writer.write(b"221 bye\r\n")


@contextlib.asynccontextmanager
async def name_server(names: Mapping[tuple[str, str], tuple[str, ...]]) -> AsyncIterator[int]:
    """Its UDP port on 127.0.0.1. `names`: (name, type) -> records; names with something below them exist."""

    class Protocol(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
            query = dns.message.from_wire(data)
            question = query.question[0]
            name = question.name.to_text(omit_final_dot=True).lower()
            answer = dns.message.make_response(query)
            answer.flags |= dns.flags.AA
            kind = dns.rdatatype.to_text(question.rdtype)
            records = names.get((name, kind), ())
            if records:
                answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, *records))
            elif not any(known == name or known.endswith(f".{name}") for known, _ in names):
                answer.set_rcode(dns.rcode.NXDOMAIN)
            self.transport.sendto(answer.to_wire(), address)  # type: ignore[attr-defined]

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Protocol, local_addr=("127.0.0.1", 0))
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()
