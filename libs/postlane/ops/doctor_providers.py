"""Checks of the providers: their secrets, their TLS, whether they answer."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from postlane.core.policy import Config, Provider
from postlane.ops.checks import Check, fail, ok, warn

CONNECT_TIMEOUT_S = 3.0
_LOOPBACK = ("127.", "::1", "localhost")


async def provider_checks(config: Config, *, connect: bool) -> tuple[Check, ...]:
    """Every provider's checks; `connect`: open a TCP connection to each, and close it without a word."""
    found = [check for provider in config.providers.values() for check in settings_checks(provider)]
    if connect:
        found += await asyncio.gather(*(_answers(provider) for provider in config.providers.values()))
    return tuple(found)


def settings_checks(provider: Provider) -> Iterator[Check]:
    """What can be told without asking the provider."""
    yield _secret(provider)
    if provider.tls == "none" and not provider.host.startswith(_LOOPBACK):
        do = f"set tls: starttls (or implicit) for {provider.name}"
        if provider.username:
            yield fail(f"provider {provider.name}: TLS", "user and password would travel unencrypted", do)
        else:
            yield warn(f"provider {provider.name}: TLS", f"mails travel to {provider.host} unencrypted", do)
    if provider.tls_ca_file is not None and not os.access(provider.tls_ca_file, os.R_OK):
        do = "correct tls_ca_file, or remove it to trust the system's authorities"
        yield fail(f"provider {provider.name}: TLS", f"{provider.tls_ca_file} cannot be read", do)


def _secret(provider: Provider) -> Check:
    name = f"provider {provider.name}: password"
    path = provider.password_file
    if path is None:
        if provider.username and provider.password is None:
            return fail(name, "a username but no password", "set password_file")
        if provider.password is not None:
            return warn(name, "stands in postlane.yaml", "move it to a file and name that in password_file")
        return ok(name, "none asked for")
    if not provider.username:
        return fail(name, "a password_file but no username", "set username")
    try:
        file_path = Path(path)
        mode = file_path.stat().st_mode
        with file_path.open("rb") as file:
            secret = file.read(4096).strip()
    except OSError as error:
        return fail(name, f"{path}: {error.strerror}", "create it, readable by the user that the sender runs as")
    if not secret:
        return fail(name, f"{path} is empty", "write the password into it")
    if stat.S_IMODE(mode) & stat.S_IROTH:
        return warn(name, f"{path} can be read by everybody", f"chmod o-rwx {path}")
    return ok(name, f"{path} is readable")


async def _answers(provider: Provider) -> Check:
    name = f"provider {provider.name}: reachable"
    where = f"{provider.host}:{provider.port}"
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(provider.host, provider.port)
    except TimeoutError:
        return warn(name, f"{where} did not answer within {CONNECT_TIMEOUT_S:g} s", "check network, firewall and port")
    except socket.gaierror:
        return warn(name, f"the name {provider.host} does not resolve", "correct host, or the DNS of this machine")
    except OSError as error:
        return warn(name, f"{where}: {error.strerror or error}", "start it, or correct host and port")
    writer.close()
    return ok(name, f"{where} takes connections")
