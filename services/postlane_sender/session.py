"""Opens an SMTP session: connect, TLS, EHLO, AUTH by aiosmtplib, then the live transport goes to a `Connection`.

Steps:
1. connect and read the greeting (over TLS at once where `tls` is "implicit"),
2. EHLO; where `tls` is "starttls": STARTTLS, which must succeed, and EHLO again (RFC 3207 4.2),
3. AUTH where a user name is configured,
4. take the transport over. Nothing the server said ahead of time is carried along.

There is no way from a TLS error to plaintext.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import PurePath
from typing import Protocol, cast

import aiosmtplib
from aiosmtplib.protocol import SMTPProtocol
from pydantic import SecretStr

from postlane.core.replies import Phase, Reply, parse_reply
from postlane.core.smtp_wire import Extensions, extensions_from_ehlo
from postlane_sender.connection import Connection, Listener, SessionLimits

# EHLO is not known to this server; HELO is tried where neither TLS nor AUTH needs an answer to EHLO.
EHLO_UNKNOWN_CODES = frozenset({500, 502, 504})


class Provider(Protocol):
    """What is needed of `postlane.core.policy.Provider`."""

    @property
    def name(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def tls(self) -> str:
        """One of "none", "starttls", "implicit"."""

    @property
    def tls_ca_file(self) -> PurePath | None: ...
    @property
    def username(self) -> str | None: ...
    @property
    def pipelining(self) -> bool:
        """False: command by command, whatever the server offers."""


class TimedProvider(Provider, Protocol):
    """A provider with its own time-outs in seconds."""

    @property
    def connect_timeout_s(self) -> float: ...
    @property
    def command_timeout_s(self) -> float: ...
    @property
    def data_timeout_s(self) -> float: ...
    @property
    def dot_timeout_s(self) -> float: ...
    @property
    def idle_close_s(self) -> float: ...
    @property
    def mails_per_connection_max(self) -> int: ...


class ProviderDown(Exception):
    """No session: name resolution, connection, TLS or time-out. Nothing was sent, no attempt is spent."""

    def __init__(self, provider: str, reason: str) -> None:
        super().__init__(f"{provider}: {reason}")
        self.provider = provider
        self.reason = reason


class ProviderRefused(Exception):
    """The server refused the session in answer to `phase` (CONNECT or AUTH). No attempt is spent."""

    def __init__(self, provider: str, reply: Reply, phase: Phase) -> None:
        super().__init__(f"{provider}: {reply}")
        self.provider = provider
        self.reply = reply
        self.phase = phase


def limits_of(provider: TimedProvider) -> SessionLimits:
    """The time-outs and bounds that a provider's configuration asks for."""
    return SessionLimits(
        open_s=provider.connect_timeout_s,
        mail_s=provider.command_timeout_s,
        rcpt_s=provider.command_timeout_s,
        data_s=provider.data_timeout_s,
        dot_s=provider.dot_timeout_s,
        idle_s=provider.idle_close_s,
        mails_max=provider.mails_per_connection_max,
    )


def tls_context_of(provider: Provider) -> ssl.SSLContext | None:
    """A verifying TLS context, None for plaintext. Reads certificate files: build it once, not per session."""
    if provider.tls == "none":
        return None
    return ssl.create_default_context(cafile=None if provider.tls_ca_file is None else str(provider.tls_ca_file))


async def open_session(
    provider: Provider,
    password: SecretStr | None,
    listener: Listener,
    *,
    limits: SessionLimits,
    tls_context: ssl.SSLContext | None = None,
    ehlo_name: str | None = None,
    certificate_ends: Callable[[float], None] | None = None,
) -> Connection:
    """Opens one session and hands it over; the listener's `ready` is called before this returns.

    `tls_context`: from `tls_context_of`, needed unless `tls` is "none". `ehlo_name`: None is this host's name.
    `certificate_ends` is told when the server's certificate ends (unix seconds).
    Raises ProviderDown or ProviderRefused; neither carries the password, nor a traceback through code that had it.
    """
    if provider.tls != "none" and tls_context is None:
        raise ValueError(f"{provider.name}: tls is {provider.tls!r} and no TLS context was given")
    client = aiosmtplib.SMTP(
        hostname=provider.host,
        port=provider.port,
        timeout=limits.open_s,
        use_tls=provider.tls == "implicit",
        start_tls=False,
        tls_context=tls_context,
        local_hostname=ehlo_name,
    )
    failure: ProviderDown | ProviderRefused | None = None
    try:
        async with asyncio.timeout(limits.open_s):
            await _open(client, provider, password)
            if certificate_ends is not None and client.transport is not None:
                _tell_end(client.transport, certificate_ends)
            extensions = extensions_from_ehlo(client.esmtp_extensions)
            if not provider.pipelining:
                extensions = extensions._replace(pipelining=False)
            connection = _take_over(client, extensions, listener, limits, provider)
    except ProviderDown as error:
        failure = error
    except aiosmtplib.SMTPResponseException as error:
        failure = _refused(provider, error)
    except TimeoutError:
        failure = ProviderDown(provider.name, f"no session within {limits.open_s:g} s")
    except (aiosmtplib.SMTPException, OSError) as error:
        failure = ProviderDown(provider.name, str(error) or type(error).__name__)
    finally:
        client.close()
    # Raised out here: an exception's context holds the frames, and with them the password, of what it came from.
    if failure is not None:
        raise failure
    connection.start()
    return connection


async def _open(client: aiosmtplib.SMTP, provider: Provider, password: SecretStr | None) -> None:
    await client.connect()
    try:
        await client.ehlo()
    except aiosmtplib.SMTPHeloError as error:
        if error.code not in EHLO_UNKNOWN_CODES or provider.tls == "starttls" or provider.username is not None:
            raise
        await client.helo()
    if provider.tls == "starttls":
        if not client.supports_extension("starttls"):
            raise ProviderDown(provider.name, "STARTTLS is required and not offered")
        await client.starttls()
        await client.ehlo()
    if provider.username is not None:
        if password is None:
            raise ProviderDown(provider.name, "a user name is configured and no password")
        await client.login(provider.username, password.get_secret_value())


def _tell_end(transport: asyncio.BaseTransport, certificate_ends: Callable[[float], None]) -> None:
    certificate = transport.get_extra_info("peercert") or {}
    if "notAfter" in certificate:
        certificate_ends(ssl.cert_time_to_seconds(certificate["notAfter"]))


def _refused(provider: Provider, error: aiosmtplib.SMTPResponseException) -> ProviderDown | ProviderRefused:
    if not 200 <= error.code <= 599:
        return ProviderDown(provider.name, "the server's reply could not be read")
    phase = Phase.AUTH if isinstance(error, aiosmtplib.SMTPAuthenticationError) else Phase.CONNECT
    return ProviderRefused(provider.name, parse_reply(error.code, error.message), phase)


def _take_over(
    client: aiosmtplib.SMTP, extensions: Extensions, listener: Listener, limits: SessionLimits, provider: Provider
) -> Connection:
    protocol, transport = client.protocol, client.transport
    if protocol is None or transport is None or transport.is_closing():
        raise ProviderDown(provider.name, "connection lost")
    if _unread(protocol):
        raise ProviderDown(provider.name, "the server said more than it was asked")
    # From here on the client and its protocol must not touch the transport: they forget it.
    client.protocol = client.transport = protocol.transport = None
    return Connection(cast(asyncio.Transport, transport), extensions, listener, limits, provider.name)


def _unread(protocol: SMTPProtocol) -> bytes:
    # Bytes that came in one read behind the last reply. aiosmtplib itself drops what comes between commands.
    return bytes(protocol._buffer)
