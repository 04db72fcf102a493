"""Checks of the providers: their secrets, their TLS, whether they answer and take our password."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from postlane.core.events import FANOUT_MAX_BYTES
from postlane.core.policy import Config, Provider
from postlane.ops.doctor.check import Check, fail, ok, warn
from postlane.ops.doctor.smtp_probe import Spoken, probe

EXPIRES_SOON_DAYS = 21
EXPIRES_AT_ONCE_DAYS = 3
PROBES_AT_ONCE_MAX = 8
SECRET_MAX_BYTES = 4096
STOPPING = frozenset(
    {
        "provider-reachable",
        "provider-greeting",
        "provider-starttls",
        "provider-certificate",
        "provider-certificate-name",
        "provider-certificate-expiry",
        "provider-auth",
        "provider-login",
    }
)
_LOOPBACK = ("127.", "::1", "localhost")


async def provider_checks(config: Config, *, connect: bool) -> tuple[Check, ...]:
    """Every provider's checks; `connect`: open a session with each (EHLO, STARTTLS, AUTH) and close it."""
    found = [check for provider in config.providers.values() for check in settings_checks(provider)]
    if connect:
        turn = asyncio.Semaphore(PROBES_AT_ONCE_MAX)
        for checks in await asyncio.gather(*(_probed(p, turn) for p in config.providers.values())):
            found += checks
        found += lane_checks(config, found)
    return tuple(found)


def lane_checks(config: Config, found: Iterable[Check]) -> Iterator[Check]:
    """Lanes whose providers all have something that stops every mail."""
    stopped = {check.about for check in found if check.name in STOPPING and check.verdict in ("warn", "fail")}
    soon = {check.about for check in found if check.name == "provider-certificate-expiry" and check.verdict == "warn"}
    for lane, policy in config.lanes.items():
        if set(policy.providers) <= stopped - soon:
            do = "mend one of them, or add another provider to the lane (docs/runbooks/lane-stopped.md)"
            yield fail("lane-unserved", f"none of {', '.join(policy.providers)} can be used", do, lane)


async def _probed(provider: Provider, turn: asyncio.Semaphore) -> list[Check]:
    async with turn:
        spoken = await probe(provider, _secret(provider))
    return list(session_checks(provider, spoken, datetime.now(UTC)))


def settings_checks(provider: Provider) -> Iterator[Check]:
    """What can be told without asking the provider."""
    yield from _password(provider)
    about = provider.name
    if provider.tls == "none" and not provider.host.startswith(_LOOPBACK):
        do = f"set tls: starttls (or implicit) for {about}"
        if provider.username:
            yield fail("provider-encryption", "user and password would travel unencrypted", do, about)
        else:
            yield warn("provider-encryption", f"mails travel to {provider.host} unencrypted", do, about)
    if provider.tls_ca_file is not None and not os.access(provider.tls_ca_file, os.R_OK):
        do = "correct tls_ca_file, or remove it to trust the system's authorities"
        yield fail("provider-ca-file", f"{provider.tls_ca_file} cannot be read", do, about)


def _password(provider: Provider) -> Iterator[Check]:
    name, about = "provider-password", provider.name
    path = provider.password_file
    if path is None:
        if provider.username and provider.password is None:
            yield fail(name, "a username but no password", "set password_file", about)
        if provider.password is not None:
            do = "move it to a file and name that in password_file"
            yield warn("provider-password-exposed", "it stands in postlane.yaml", do, about)
        return
    if not provider.username:
        yield fail(name, "a password_file but no username", "set username", about)
        return
    try:
        mode = Path(path).stat().st_mode
        secret = _read(path)
    except OSError as error:
        do = "create it, readable by the user that the sender runs as"
        yield fail(name, f"{path}: {error.strerror}", do, about)
        return
    if not secret:
        yield fail(name, f"{path} is empty", "write the password into it", about)
    else:
        yield ok(name, f"{path} is readable", about)
    if stat.S_IMODE(mode) & stat.S_IROTH:
        yield warn("provider-password-exposed", f"{path} can be read by everybody", f"chmod o-rwx {path}", about)


def _read(path: os.PathLike[str]) -> str:
    with Path(path).open("rb") as file:
        return file.read(SECRET_MAX_BYTES).decode("utf-8", "replace").strip()


def _secret(provider: Provider) -> str | None:
    if provider.password_file is None:
        return None if provider.password is None else provider.password.get_secret_value()
    try:
        return _read(provider.password_file) or None
    except OSError:
        return None


def session_checks(provider: Provider, spoken: Spoken, now: datetime) -> Iterator[Check]:
    """What a session with the provider showed."""
    about, where = provider.name, f"{provider.host}:{provider.port}"
    if spoken.fault in ("unreachable", "name", "timeout"):
        do = {
            "name": f"correct host of {about}, or the DNS of this machine",
            "timeout": "check network, firewall and port; a port for TLS from the first byte wants tls: implicit",
            "unreachable": "check that it runs, and host, port and firewall",
        }[spoken.fault]
        yield warn("provider-reachable", f"{where}: {spoken.said}", do, about)
        return
    yield ok("provider-reachable", f"{where} answers", about)
    if spoken.fault:
        yield _tls_fault(provider, spoken)
        return
    code, text = spoken.greeting
    if code != 220:
        do = "ask the provider: this address may be blocked, or over its limit of connections"
        yield fail("provider-greeting", f"{code} {text.splitlines()[0] if text else ''}", do, about)
        return
    if spoken.starttls_offered is False:
        do = f"use the port for submission (587), or tls: implicit with port 465; {where} offers no STARTTLS"
        yield fail("provider-starttls", f"{where} offers no STARTTLS", do, about)
        return
    if spoken.certificate_ends is not None:
        yield _expiry(provider, spoken.certificate_ends, now)
    yield from _auth(provider, spoken)
    yield from _offers(provider, spoken)


def _tls_fault(provider: Provider, spoken: Spoken) -> Check:
    about = provider.name
    if spoken.fault == "certificate-name":
        do = f"set host to a name that the certificate carries; {provider.host} is none of them"
        return fail("provider-certificate-name", spoken.said, do, about)
    if spoken.fault == "certificate-expired":
        return fail("provider-certificate-expiry", spoken.said, "the provider must renew it; pause it meanwhile", about)
    if spoken.fault == "tls":
        do = "check tls: starttls speaks in clear first (587), implicit encrypts at once (465)"
        return fail("provider-certificate", f"TLS failed: {spoken.said}", do, about)
    do = "name the authority that signed it in tls_ca_file, or have it signed by a public one"
    return fail("provider-certificate", spoken.said, do, about)


def _expiry(provider: Provider, ends: datetime, now: datetime) -> Check:
    name, days = "provider-certificate-expiry", (ends - now).total_seconds() / 86_400
    found = f"ends {ends:%Y-%m-%d}, in {days:.0f} days"
    do = "see that the provider renews it; have a second provider in the lane"
    if days < EXPIRES_AT_ONCE_DAYS:
        return fail(name, found, do, provider.name)
    if days < EXPIRES_SOON_DAYS:
        return warn(name, found, do, provider.name)
    return ok(name, found, provider.name)


def _auth(provider: Provider, spoken: Spoken) -> Iterator[Check]:
    about = provider.name
    if spoken.login == "no mechanism":
        offered = spoken.offers.get("AUTH", "")
        found = f"it offers AUTH {offered}; PLAIN or LOGIN is needed" if offered else "it offers no AUTH"
        do = (
            "remove username if none is wanted; else set tls (AUTH is often offered under TLS only) or ask the provider"
        )
        yield fail("provider-auth", found, do, about)
    elif spoken.login == "refused":
        code, text = spoken.login_reply
        do = "put the right password into password_file; the sender reads it at its next session"
        yield fail("provider-login", f"{code} {text.splitlines()[0] if text else ''}", do, about)
    elif spoken.login == "accepted":
        yield ok("provider-login", f"{provider.username} is accepted", about)


def _offers(provider: Provider, spoken: Spoken) -> Iterator[Check]:
    if provider.pipelining and "PIPELINING" not in spoken.offers:
        do = "ask the provider, or raise connections to make up for it"
        yield warn("provider-pipelining", "it offers none", do, provider.name)
    size = spoken.offers.get("SIZE", "")
    if size.isdigit() and 0 < int(size) < FANOUT_MAX_BYTES:
        found = f"it takes {int(size):,} bytes, a mail may have {FANOUT_MAX_BYTES:,}"
        yield warn(
            "provider-size", found, "tell publishers, or send large mails through another provider", provider.name
        )
