"""The SMTP listener for bounces: takes mail for return paths that we signed, and for nobody else.

No relay: a recipient that is none of our return paths is refused (550 5.1.1), whoever asks. The dot is answered with
250 once Kafka has acknowledged what came of the message, and with 451 when it has not: the server there tries again, so
no bounce is lost. What is no notification (an out-of-office reply) is taken, counted and dropped: a refusal would only
make a bounce of it.

aiosmtpd speaks the protocol. What it leaves open is bounded here: sessions, what one may say and how long it may take,
and the bytes that all of them hold. AUTH is neither offered nor known.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Any, cast

from aiosmtpd.smtp import SMTP, Envelope, Session

from postlane.core.dsn import MESSAGE_MAX_BYTES
from postlane.eventlog.errors import LogError
from postlane_producer.bounces import BounceIntake
from postlane_producer.config import Place, cannot_listen

RECIPIENTS_MAX = 1  # of one message: each is read for each, and a notification goes to one return path
SESSIONS_MAX = 100
SESSION_MAX_S = 600.0
COMMAND_TIMEOUT_S = 300.0  # RFC 5321 4.5.3.2.7
COMMANDS_MAX = 50  # of one name, in one session
REPLIES_MAX = 400  # lines of ours in one session, whatever was said
LINE_MAX_BYTES = 8_192  # RFC 5321 4.5.3.1.6 has 1000; some returned mails have longer ones
HELD_MAX_BYTES = 64 * 1024 * 1024  # of messages that are coming in, over all sessions
CLOSE_TIMEOUT_S = 22.0  # longer than an acknowledgement is waited for
NAME = "Postlane"

log = logging.getLogger("postlane.bounces")


class BounceListener:
    """Listens at `host`:`port` (0: any free one) for what goes to `intake`; with `tls`, STARTTLS is offered."""

    def __init__(
        self,
        host: str,
        port: int,
        intake: BounceIntake,
        *,
        hostname: str = "localhost",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`hostname` is what the listener calls itself: the MX's name."""
        self.host = host
        self.port = port
        self.hostname = hostname
        self.tls = tls
        self.taking = _Taking(intake)
        self.sessions: set[_Conversation] = set()
        self.held_bytes = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises ConfigurationError when the place is taken or may not be had."""
        logging.getLogger("mail.log").setLevel(logging.CRITICAL)  # the library tells each command, with addresses
        try:
            self._server = await asyncio.get_running_loop().create_server(self._protocol, self.host, self.port)
        except (OSError, UnicodeError) as error:
            raise cannot_listen("POSTLANE_BOUNCES_LISTEN", Place(self.host, self.port), error) from None
        self.port = self._server.sockets[0].getsockname()[1]
        log.info("bounces are taken", extra={"smtp": f"{self.host}:{self.port}", "tls": self.tls is not None})

    async def close(self) -> None:
        """No new sessions; messages whose end has come are answered, within CLOSE_TIMEOUT_S; the others come again."""
        if self._server is None:
            return
        self._server.close()
        for session in tuple(self.sessions):
            if not session.deciding:
                session.cut_off()
        deadline = asyncio.get_running_loop().time() + CLOSE_TIMEOUT_S
        while self.sessions and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
            for session in tuple(self.sessions):
                if not session.deciding:
                    session.cut_off()
        for session in tuple(self.sessions):
            session.cut_off()

    def _protocol(self) -> asyncio.BaseProtocol:
        return _TooMany() if len(self.sessions) >= SESSIONS_MAX else _Conversation(self)


class _TooMany(asyncio.Protocol):
    """One session too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        wire = cast(asyncio.Transport, transport)  # another loop's transports are none by type
        wire.write(b"421 4.3.2 too many sessions; try again later\r\n")
        wire.close()


class _Conversation(SMTP):
    """One session, bounded."""

    line_length_limit = LINE_MAX_BYTES

    def __init__(self, house: BounceListener) -> None:
        super().__init__(
            house.taking,
            data_size_limit=MESSAGE_MAX_BYTES,
            hostname=house.hostname,
            ident=NAME,
            enable_SMTPUTF8=True,  # notifications about such mails may need it themselves (RFC 6533)
            tls_context=house.tls,
            timeout=COMMAND_TIMEOUT_S,
            auth_exclude_mechanism=("LOGIN", "PLAIN"),
            command_call_limit=COMMANDS_MAX,
            loop=asyncio.get_running_loop(),
        )
        self.deciding = False  # the dot was read, and is not answered yet
        self._house = house
        self._wire: asyncio.Transport | None = None
        self._end: asyncio.TimerHandle | None = None
        self._replies = 0
        self._receiving = False
        self._held_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._wire is None:  # and not again after STARTTLS
            self._wire = cast(asyncio.Transport, transport)
            self._house.sessions.add(self)
            self._end = self.loop.call_later(SESSION_MAX_S, self.cut_off)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._house.sessions.discard(self)
        self._let_go()
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if self._receiving:
            self._held_bytes += len(data)
            self._house.held_bytes += len(data)
            if self._held_bytes > 2 * MESSAGE_MAX_BYTES or self._house.held_bytes > HELD_MAX_BYTES:
                self.cut_off()
                return
        super().data_received(data)

    def cut_off(self) -> None:
        """End it now, whatever is unsaid."""
        if self._wire is not None:
            self._wire.abort()

    async def push(self, status: Any) -> None:
        self._replies += 1
        if self._replies > REPLIES_MAX:
            self.cut_off()
            return
        await super().push(status)

    async def smtp_DATA(self, arg: str) -> None:
        self._receiving = True
        try:
            await super().smtp_DATA(arg)
        finally:
            self._let_go()

    async def smtp_AUTH(self, arg: str) -> None:
        await self.push("502 5.5.1 not known here")

    smtp_HELP = smtp_VRFY = smtp_EXPN = smtp_AUTH

    def _let_go(self) -> None:
        self._house.held_bytes -= self._held_bytes
        self._held_bytes = 0
        self._receiving = self.deciding = False


class _Taking:
    """What aiosmtpd asks; the names of the methods are the library's."""

    def __init__(self, intake: BounceIntake) -> None:
        self._intake = intake

    async def handle_EHLO(
        self, server: _Conversation, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        told = [line for line in responses if not line[4:].startswith(("AUTH", "HELP"))]
        return [f"250-{line[4:]}" for line in told[:-1]] + [f"250 {told[-1][4:]}"]

    async def handle_RCPT(
        self, server: _Conversation, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self._intake.delivery_of(address) is None:
            return "550 5.1.1 no such address here"
        if len(envelope.rcpt_tos) >= RECIPIENTS_MAX:
            return "452 4.5.3 too many recipients"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server: _Conversation, session: Session, envelope: Envelope) -> str:
        raw = envelope.original_content or b""
        server.deciding = True
        try:
            for address in envelope.rcpt_tos:
                await self._intake.take(raw, address, trusted=False)
        except LogError as error:
            log.warning("a bounce could not be written; its server will try again", extra={"reason": str(error)})
            return "451 4.3.0 it could not be kept; try again later"
        except Exception:  # a bug that one message meets must not lose it
            log.exception("a bounce could not be taken")
            return "451 4.3.0 it could not be looked at; try again later"
        return "250 2.0.0 taken"

    async def handle_exception(self, error: Exception) -> str:
        """What a command met; its text may be the client's own words."""
        log.debug("a session met an error", extra={"error": type(error).__name__})
        return "451 4.3.0 that did not work; try again later"
