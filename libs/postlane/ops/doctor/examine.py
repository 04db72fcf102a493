"""`postlane doctor` as a whole: asks everything side by side, each question within a time of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from postlane.config import Environment
from postlane.core.policy import Bounces, Config
from postlane.ops.acls import Identity
from postlane.ops.doctor.backups import ask_backups, no_place
from postlane.ops.doctor.books import Told, ask_ledger, domains_of, ledger_checks, utc_now
from postlane.ops.doctor.bounded import in_time
from postlane.ops.doctor.check import Check, fail, skip
from postlane.ops.doctor.cluster import cluster_checks
from postlane.ops.doctor.configuration import configuration_checks
from postlane.ops.doctor.domains import Nameserver, domain_checks
from postlane.ops.doctor.effective import effective
from postlane.ops.doctor.machine import machine_checks
from postlane.ops.doctor.providers import provider_checks
from postlane.ops.doctor.services import ask_service, service_checks

LOCAL_TIMEOUT_S = 5.0
DATABASE_TIMEOUT_S = 12.0
NETWORK_TIMEOUT_S = 12.0
UNREACHABLE = ("kafka-reachable", "ledger-database")


@dataclass(frozen=True, slots=True)
class Wish:
    """What an operator asked for beyond the defaults.

    `connect`: open a session with each provider, and look domains up. `domains`: instead of those that the ledger
    knows as senders. `selectors`: of their DKIM keys. `services`: addresses of services to be asked over HTTP.
    `backup`: where the backups are. `identity`: whose rights whoever runs this should have.
    """

    connect: bool = True
    domains: tuple[str, ...] = ()
    selectors: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    backup: str | None = None
    identity: Identity = "operator"
    nameserver: Nameserver | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """`unreachable`: Kafka or the ledger's database did not answer, so much could not be asked."""

    configuration: dict[str, Any]
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.verdict == "fail")

    @property
    def unreachable(self) -> bool:
        return any(check.name in UNREACHABLE for check in self.failed)


async def examine(
    environment: Environment, config: Config, variables: Mapping[str, str], wish: Wish | None = None
) -> Report:
    """Run every check. `variables` are the process's, to find misspelt ones. Ends within some 30 s, whatever hangs."""
    asked = wish or Wish()
    ledger = _once(lambda: _ledger(environment))
    local, providers, domains, services, backups, cluster, books = await asyncio.gather(
        _local(environment, config, variables),
        _bounded("provider-reachable", provider_checks(config, connect=asked.connect)),
        _bounded("domain-spf", _domains(asked, ledger, config.bounces)),
        _services(asked),
        _backups(asked),
        cluster_checks(environment, config, asked.identity, ledger),
        _books(config, ledger),
    )
    checks = (*local, *providers, *domains, *cluster, *services, *books, *backups)
    return Report(effective(environment, config), checks)


async def _local(environment: Environment, config: Config, variables: Mapping[str, str]) -> tuple[Check, ...]:
    settings = configuration_checks(environment, config, variables)
    try:
        return (*settings, *await in_time(partial(machine_checks, environment, config), LOCAL_TIMEOUT_S))
    except TimeoutError:
        do = "see whether the disk (a network volume?) answers"
        return (*settings, fail("data-folder", f"{environment.data_dir}: no answer within {LOCAL_TIMEOUT_S:g} s", do))


async def _bounded(name: str, checks: Awaitable[tuple[Check, ...]]) -> tuple[Check, ...]:
    try:
        async with asyncio.timeout(NETWORK_TIMEOUT_S + DATABASE_TIMEOUT_S):
            return await checks
    except TimeoutError:
        return (skip(name, f"no answer within {NETWORK_TIMEOUT_S + DATABASE_TIMEOUT_S:g} s"),)


async def _domains(wish: Wish, ledger: Callable[[], Awaitable[Told]], bounces: Bounces | None) -> tuple[Check, ...]:
    if not wish.connect:
        return ()
    domains = domains_of(Told() if wish.domains else await ledger(), wish.domains)
    returns = None if bounces is None else bounces.address.rpartition("@")[2]
    return await domain_checks(domains, wish.selectors, wish.nameserver, returns)


async def _services(wish: Wish) -> tuple[Check, ...]:
    asked = await asyncio.gather(*(in_time(partial(ask_service, url), NETWORK_TIMEOUT_S) for url in wish.services))
    return tuple(service_checks(asked, own_version()))


async def _backups(wish: Wish) -> tuple[Check, ...]:
    if wish.backup is None:
        return tuple(no_place())
    try:
        return (await in_time(partial(ask_backups, wish.backup), NETWORK_TIMEOUT_S),)
    except TimeoutError:
        do = "see whether the disk or the bucket answers"
        return (fail("backup-age", f"no answer within {NETWORK_TIMEOUT_S:g} s", do, wish.backup),)


async def _books(config: Config, ledger: Callable[[], Awaitable[Told]]) -> tuple[Check, ...]:
    return tuple(ledger_checks(await ledger(), config, utc_now()))


async def _ledger(environment: Environment) -> Told:
    try:
        ask = partial(ask_ledger, environment.database_url, environment.names.events)
        return await in_time(ask, DATABASE_TIMEOUT_S)
    except TimeoutError:
        do = "see whether the database is up, and not held by a long transaction"
        return Told(fail("ledger-database", f"no answer within {DATABASE_TIMEOUT_S:g} s", do))


def _once(ask: Callable[[], Awaitable[Told]]) -> Callable[[], Awaitable[Told]]:
    """Several questions need the ledger's answer; it is asked for once."""
    asked: asyncio.Task[Told] | None = None

    async def answer() -> Told:
        return await ask()

    async def told() -> Told:
        nonlocal asked
        if asked is None:
            asked = asyncio.create_task(answer())
        return await asyncio.shield(asked)

    return told


def own_version() -> str:
    """Of this command."""
    try:
        return version("postlane")
    except PackageNotFoundError:
        return "0+unknown"
