"""The gateway process: the API's server, its publisher, its key file.

The server listens once Kafka answered, so that a caller is never told to wait by a process that cannot say for what.
A stop takes no new connection, and answers every request that was begun.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Protocol

from aiohttp import web

from postlane.errors import PublishError
from postlane.eventlog.errors import Retriable
from postlane.publisher import AsyncPublisher
from postlane_producer.api import Api
from postlane_producer.config import GatewaySettings, cannot_listen
from postlane_producer.keys import KeyRing
from postlane_producer.tls import server_context

CONNECTIONS_MAX = 1_000
IDLE_S = 20.0  # a connection on which no whole request head comes
LOOK_EVERY_S = 1.0  # at the key file, and for brokers that were lost
STOP_TIMEOUT_S = 22.0  # longer than a publish may take; with the longest linger and the closing less than a stop
CLOSE_TIMEOUT_S = 5.0
HEADERS_MAX_BYTES = 16_384
HANDSHAKE_TIMEOUT_S = 10.0

log = logging.getLogger("postlane.producer")
# What is no HTTP the library answers with 400 and would log with its headers, an API key among them.
_WIRE_LOG = logging.getLogger("postlane.producer.wire")
_WIRE_LOG.setLevel(logging.CRITICAL + 1)


class Listener(Protocol):
    """Another way in."""

    async def start(self) -> None:
        """Raises ConfigurationError when the place is taken."""

    async def close(self) -> None:
        """Answer what was begun, within bounds."""


class Gateway:
    """A gateway process (postlane.service.Service)."""

    def __init__(
        self,
        settings: GatewaySettings,
        api: Api,
        keys: KeyRing,
        publisher: AsyncPublisher,
        smtp: Listener | None = None,
        held: AsyncExitStack | None = None,
    ) -> None:
        """`smtp` takes bounces; `held` is let go of at the end. Raises ConfigurationError when the certificate cannot
        be used."""
        self._settings = settings
        self._api = api
        self._keys = keys
        self._publisher = publisher
        self._smtp = smtp
        self._held = held
        self._tls = None if settings.tls is None else server_context(settings.tls)
        self._server: asyncio.Server | None = None
        self._runner: web.AppRunner | None = None
        self._stopping = asyncio.Event()
        self.port = 0

    async def start(self) -> None:
        """Reach Kafka, then listen. Raises Retriable, ConfigurationError."""
        try:
            await self._publisher.connect()
        except PublishError as error:
            raise Retriable(str(error)) from None
        if self._smtp is not None:
            await self._smtp.start()
        self._runner = web.AppRunner(
            self._api.application(),
            access_log=None,
            handle_signals=False,
            keepalive_timeout=IDLE_S,
            max_field_size=HEADERS_MAX_BYTES,
            max_line_size=HEADERS_MAX_BYTES,
            shutdown_timeout=CLOSE_TIMEOUT_S,
            auto_decompress=False,
            logger=_WIRE_LOG,
        )
        await self._runner.setup()
        host, port = self._settings.listen
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._protocol,
                host,
                port,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else HANDSHAKE_TIMEOUT_S,
            )
        except (OSError, UnicodeError) as error:
            await self._runner.cleanup()
            raise cannot_listen("POSTLANE_GATEWAY_LISTEN", self._settings.listen, error) from None
        self.port = self._server.sockets[0].getsockname()[1]
        log.info("the API listens", extra={"api": f"{host}:{self.port}", "tls": self._tls is not None})

    async def run(self) -> None:
        """Look after keys and brokers until `stop`."""
        while not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), LOOK_EVERY_S)
            except TimeoutError:
                self._keys.refresh()
                await self._look()

    async def stop(self) -> None:
        """No new connections (but for `linger_s`); what was begun is answered; what was handed over is acknowledged or
        failed."""
        self._stopping.set()
        self._api.closing.set()
        if self._server is not None:
            await asyncio.sleep(self._settings.linger_s)
            self._server.close()
        await asyncio.gather(self._api.drain(STOP_TIMEOUT_S), *([self._smtp.close()] if self._smtp else []))
        if self._runner is not None:
            await self._runner.cleanup()  # only now: a server that is told to shut down reads no more of a body
        await asyncio.gather(self._close_publisher(), *([self._held.aclose()] if self._held else []))

    def not_ready(self) -> str | None:
        """Why nothing can be published."""
        return self._api.trouble

    async def _close_publisher(self) -> None:
        try:
            await self._publisher.close(CLOSE_TIMEOUT_S)
        except PublishError as error:
            log.warning("closed before all was acknowledged", extra={"reason": str(error)})

    async def _look(self) -> None:
        """Whether a broker answers; asks only where all of them were lost."""
        try:
            await self._publisher.connect()
        except PublishError as error:
            self._api.trouble = str(error)
        else:
            self._api.trouble = None

    def _protocol(self) -> asyncio.BaseProtocol:
        assert self._runner is not None
        server = self._runner.server
        if server is None or len(server.connections) >= CONNECTIONS_MAX:
            return _Full()
        return server()


class _Full(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
