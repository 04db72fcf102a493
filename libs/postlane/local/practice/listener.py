"""One SMTP port of the practice server: its options, its live connections, its way up and down."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from postlane.local.practice.connection import Connection
from postlane.local.practice.faults import Faults
from postlane.local.practice.ledger import Ledger
from postlane.local.practice.session import Session

BACKLOG = 1024
SIZE_MAX_BYTES = 25 * 1024 * 1024
IDLE_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Options:
    """How the server behaves without faults.

    `users` (name to password) makes AUTH necessary, offered only under TLS unless there is no TLS at all.
    `data_always` answers 354 even when every recipient was refused, which RFC 2920 allows.
    """

    pipelining: bool = True
    tls: ssl.SSLContext | None = None
    implicit_tls: bool = False
    users: dict[str, str] = field(default_factory=dict)
    size_max_bytes: int = SIZE_MAX_BYTES
    data_always: bool = False
    record_rejected: bool = False


class Listener:
    """A named port; sessions ask it for everything that they share."""

    def __init__(self, name: str, host: str, port: int, options: Options, faults: Faults, ledger: Ledger) -> None:
        self.name = name
        self.host = host
        self.port = port
        self.options = options
        self.faults = faults
        self.ledger = ledger
        self.counters: Counter[str] = Counter()
        self.sessions: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._upgrades: set[asyncio.Task[None]] = set()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that everything here runs on."""
        return asyncio.get_running_loop()

    @property
    def is_open(self) -> bool:
        """Whether it takes connections."""
        return self._server is not None

    async def open(self) -> None:
        """Listen. OSError when the port is taken. With port 0 the kernel chooses, once."""
        if self._server is not None:
            return
        door = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind((self.host, self.port))
            door.setblocking(False)
            self.port = door.getsockname()[1]
            self._server = await self.loop.create_server(
                lambda: Session(self),
                sock=door,
                backlog=BACKLOG,
                ssl=self.options.tls if self.options.implicit_tls else None,
            )
        except BaseException:
            door.close()
            raise

    async def shut(self) -> None:
        """Stop listening and reset every connection, as an outage does."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for session in list(self.sessions):
            session.abort()
        await asyncio.sleep(0)  # the loop closes the sockets in its next turn
        await asyncio.sleep(0)

    def sweep(self) -> None:
        """Close connections on which nothing has come for IDLE_TIMEOUT_S."""
        stale = self.loop.time() - IDLE_TIMEOUT_S
        for session in list(self.sessions):
            if session.active_at < stale and not session.hanging:
                session.close(b"421 4.4.2 Idle for too long")

    def expire(self, users: Collection[str]) -> None:
        """End the sessions of these users."""
        for session in list(self.sessions):
            if session.user in users:
                session.close(b"421 4.7.0 Credentials are no longer valid")

    # -- what sessions ask

    def admit(self, session: Connection) -> bool:
        """Count the connection in; False when a `max_connections` rule says that it is one too many."""
        self.sessions.add(session)
        self.counters["connections"] += 1
        for rule in self.faults.standing("max_connections", self.name):
            if len(self.sessions) > (rule.limit or 0):
                rule.hits += 1
                return False
        return True

    def leave(self, session: Connection) -> None:
        """Count the connection out."""
        self.sessions.discard(session)

    def bytes_per_s(self) -> int | None:
        """How fast a connection may be read; None: as fast as it comes."""
        rates = [rule.bytes_per_s for rule in self.faults.standing("slow_read", self.name) if rule.bytes_per_s]
        return min(rates, default=None)

    def auth_offered(self, secure: bool) -> bool:
        """Whether AUTH may be used on this connection."""
        return bool(self.options.users) and (secure or self.options.tls is None)

    def extensions(self, secure: bool) -> list[bytes]:
        """The EHLO keywords."""
        words = [b"PIPELINING"] if self.options.pipelining else []
        words += [b"8BITMIME", b"SMTPUTF8", b"SIZE %d" % self.options.size_max_bytes, b"ENHANCEDSTATUSCODES"]
        if self.options.tls is not None and not secure:
            words.append(b"STARTTLS")
        if self.auth_offered(secure):
            words.append(b"AUTH PLAIN LOGIN")
        return words

    def upgrade(self, session: Session) -> None:
        """Start the TLS handshake; the session hears of its end through `secured`."""
        task = self.loop.create_task(self._handshake(session))
        self._upgrades.add(task)
        task.add_done_callback(self._upgrades.discard)

    async def _handshake(self, session: Session) -> None:
        transport = None
        if self.options.tls is not None and session.transport is not None:
            with contextlib.suppress(OSError, ConnectionError, ssl.SSLError):
                transport = await self.loop.start_tls(session.transport, session, self.options.tls, server_side=True)
        session.secured(transport)
