"""A small SMTP server for tests: it shares no code with the sender, keeps what it took, and breaks off on order."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field


@dataclass
class Taken:
    """A mail as the server read it."""

    mail_from: str
    rcpt_to: str
    body: bytes


@dataclass
class SmtpServer:
    """`hooks`: verb → what to answer instead (None: the usual, b"" then drop the connection)."""

    pipelining: bool = True
    tls: str = "none"
    tls_context: ssl.SSLContext | None = None
    login: tuple[str, str] | None = None
    extensions: tuple[str, ...] = ("8BITMIME", "SMTPUTF8", "SIZE 1000000")
    greeting: bytes = b"220 test\r\n"
    hooks: dict[str, Callable[[str], Awaitable[bytes | None]]] = field(default_factory=dict)
    taken: list[Taken] = field(default_factory=list)
    verbs: list[str] = field(default_factory=list)
    read_ahead: list[bool] = field(default_factory=list)  # at each MAIL: whether more had come already
    connections: int = 0
    port: int = 0

    async def __aenter__(self) -> SmtpServer:
        context = self.tls_context if self.tls == "implicit" else None
        self._writers: set[asyncio.StreamWriter] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            await self._converse(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            self._writers.discard(writer)
            if writer.transport is not None:  # None after a failed TLS handshake
                writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mail_from = rcpt_to = None
        secure, known = self.tls == "implicit", self.login is None
        writer.write(self.greeting)
        while True:
            line = await reader.readuntil(b"\r\n")
            text = line[:-2].decode()
            verb = text.split(" ")[0].split(":")[0].upper()
            self.verbs.append(verb)
            if verb == "MAIL":
                self.read_ahead.append(bool(reader._buffer))
            hook = self.hooks.get(verb)
            answer = await hook(text) if hook is not None else None
            if answer is not None:
                writer.write(answer)
                if not answer:
                    return
            elif verb == "EHLO":
                writer.write(self._ehlo(secure))
            elif verb == "STARTTLS" and self.tls_context is not None:
                writer.write(b"220 go\r\n")
                await writer.drain()
                await writer.start_tls(self.tls_context)
                secure = True
            elif verb == "AUTH":
                known = await self._auth(text, reader, writer)
            elif verb == "QUIT":
                writer.write(b"221 bye\r\n")
                await writer.drain()
                return
            elif verb == "RSET":
                mail_from = rcpt_to = None
                writer.write(b"250 ok\r\n")
            elif verb == "MAIL":
                if not known or mail_from is not None:
                    writer.write(b"503 5.5.1 no\r\n")
                else:
                    mail_from = text.split("<")[1].split(">")[0]
                    writer.write(b"250 2.1.0 ok\r\n")
            elif verb == "RCPT":
                rcpt_to = text.split("<")[1].split(">")[0]
                writer.write(b"250 2.1.5 ok\r\n")
            elif verb == "DATA":
                writer.write(b"354 go\r\n")
                raw = await reader.readuntil(b"\r\n.\r\n")
                lines = raw[:-3].split(b"\r\n")
                body = b"\r\n".join(part[1:] if part.startswith(b".") else part for part in lines)
                answer = await self.hooks["."](body.decode()) if "." in self.hooks else None
                if answer == b"":
                    return
                if answer is None:
                    self.taken.append(Taken(mail_from or "", rcpt_to or "", body))
                writer.write(answer or b"250 2.0.0 queued\r\n")
                mail_from = rcpt_to = None
            else:
                writer.write(b"500 what\r\n")

    def _ehlo(self, secure: bool) -> bytes:
        offered = ["test", *self.extensions]
        if self.pipelining:
            offered.append("PIPELINING")
        if self.tls == "starttls" and not secure:
            offered.append("STARTTLS")
        if self.login is not None and (secure or self.tls == "none"):
            offered.append("AUTH PLAIN LOGIN")
        return b"".join(f"250-{word}\r\n".encode() for word in offered[:-1]) + f"250 {offered[-1]}\r\n".encode()

    async def _auth(self, text: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        words = text.split(" ")
        if words[1].upper() == "PLAIN":
            _, user, word = base64.b64decode(words[2]).decode().split("\0")
        else:
            user = base64.b64decode(words[2]).decode()
            writer.write(b"334 UGFzc3dvcmQ6\r\n")
            word = base64.b64decode(await reader.readuntil(b"\r\n")).decode()
        known = (user, word) == self.login
        writer.write(b"235 2.7.0 ok\r\n" if known else b"535 5.7.8 bad credentials\r\n")
        return known
