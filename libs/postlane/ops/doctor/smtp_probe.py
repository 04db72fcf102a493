"""One look at an SMTP server: what it greets with, offers and says to our password. No mail is begun.

Written by hand rather than with a client library: each step must be told apart, and the whole must end in time.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from postlane.core.policy import Provider

PROBE_TIMEOUT_S = 6.0
LINES_MAX = 100
LINE_MAX_BYTES = 4096
# Of OpenSSL's X509_V_ERR codes.
EXPIRED, NAME_MISMATCH, ADDRESS_MISMATCH = 10, 62, 64
Fault = Literal["", "unreachable", "name", "timeout", "tls", "certificate", "certificate-name", "certificate-expired"]
_UNVERIFIED: dict[int, Fault] = {
    EXPIRED: "certificate-expired",
    NAME_MISMATCH: "certificate-name",
    ADDRESS_MISMATCH: "certificate-name",
}
Login = Literal["not asked", "accepted", "refused", "no mechanism"]


@dataclass(slots=True)
class Spoken:
    """What came of it, as far as it got; `fault` is why it went no further, `said` in whose words."""

    fault: Fault = ""
    said: str = ""
    greeting: tuple[int, str] = (0, "")
    offers: dict[str, str] = field(default_factory=dict)  # of the last EHLO: keyword -> parameters
    starttls_offered: bool | None = None  # None: not asked for
    certificate_ends: datetime | None = None
    login: Login = "not asked"
    login_reply: tuple[int, str] = (0, "")


class _Broken(Exception):
    """The server did not speak SMTP."""


async def probe(provider: Provider, password: str | None) -> Spoken:
    """Connect as the sender would, and close. Never raises for what the server or the network does."""
    spoken = Spoken()
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            await _speak(provider, password, spoken)
    except TimeoutError:
        spoken.fault, spoken.said = "timeout", f"no answer within {PROBE_TIMEOUT_S:g} s"
    except ssl.SSLCertVerificationError as error:
        spoken.fault, spoken.said = _UNVERIFIED.get(error.verify_code, "certificate"), error.verify_message
    except ssl.SSLError as error:
        spoken.fault, spoken.said = "tls", error.reason or str(error)
    except (OSError, _Broken, UnicodeError) as error:
        named = type(error).__name__ == "gaierror"
        spoken.fault = "name" if named else "unreachable"
        code = getattr(error, "errno", None)
        spoken.said = os.strerror(code) if code and not named else getattr(error, "strerror", None) or str(error)
    return spoken


async def _speak(provider: Provider, password: str | None, spoken: Spoken) -> None:
    context = _context(provider)
    implicit = provider.tls == "implicit"
    reader, writer = await asyncio.open_connection(
        provider.host,
        provider.port,
        limit=LINE_MAX_BYTES,
        ssl=context if implicit else None,
        server_hostname=provider.host if implicit else None,
    )
    try:
        spoken.greeting = await _reply(reader)
        if spoken.greeting[0] != 220:
            return
        spoken.offers = await _ehlo(reader, writer)
        if provider.tls == "starttls":
            spoken.starttls_offered = "STARTTLS" in spoken.offers
            if not spoken.starttls_offered:
                return
            code, text = await _ask(reader, writer, "STARTTLS")
            if code != 220:
                raise _Broken(f"STARTTLS was answered with {code} {text}")
            await writer.start_tls(context, server_hostname=provider.host)
            spoken.offers = await _ehlo(reader, writer)
        spoken.certificate_ends = _ends(writer)
        if provider.username and password is not None:
            await _login(reader, writer, provider.username, password, spoken)
        await _ask(reader, writer, "QUIT")
    finally:
        writer.transport.abort()


def _context(provider: Provider) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(provider.tls_ca_file) if provider.tls_ca_file else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _ends(writer: asyncio.StreamWriter) -> datetime | None:
    told = writer.get_extra_info("peercert") or {}
    ends = told.get("notAfter")
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(ends), UTC) if isinstance(ends, str) else None


async def _ehlo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, str]:
    code, text = await _ask(reader, writer, "EHLO doctor.invalid")
    if code != 250:
        raise _Broken(f"EHLO was answered with {code} {text}")
    lines = text.split("\n")[1:]
    return {line.partition(" ")[0].upper(): line.partition(" ")[2].upper() for line in lines}


async def _login(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, user: str, password: str, spoken: Spoken
) -> None:
    """PLAIN where it is offered, else LOGIN (RFC 4954)."""
    mechanisms = spoken.offers.get("AUTH", "").split()
    if "PLAIN" in mechanisms:
        reply = await _ask(reader, writer, f"AUTH PLAIN {_base64(f'{chr(0)}{user}{chr(0)}{password}')}")
    elif "LOGIN" in mechanisms:
        reply = await _ask(reader, writer, "AUTH LOGIN")
        for part in (user, password):
            if reply[0] == 334:
                reply = await _ask(reader, writer, _base64(part))
    else:
        spoken.login = "no mechanism"
        return
    spoken.login = "accepted" if reply[0] == 235 else "refused"
    spoken.login_reply = (reply[0], reply[1].replace(password, "********") if password else reply[1])


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode("ascii")


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, command: str) -> tuple[int, str]:
    writer.write(command.encode() + b"\r\n")
    await writer.drain()
    return await _reply(reader)


async def _reply(reader: asyncio.StreamReader) -> tuple[int, str]:
    """(code, lines of text joined). Raises _Broken."""
    texts = []
    for _ in range(LINES_MAX):
        try:
            line = (await reader.readline()).decode("utf-8", "replace")
        except ValueError:  # a line beyond the limit
            raise _Broken("the server sends lines that are too long") from None
        if not line:
            raise _Broken("the server closed the connection")
        found = re.match(r"([2-5]\d\d)([ -]?)(.*)", line.rstrip("\r\n"))
        if found is None:
            raise _Broken(f"this is no SMTP server: {line[:60]!a}")
        texts.append(found[3])
        if found[2] != "-":
            return int(found[1]), "\n".join(texts)
    raise _Broken("a reply without an end")
