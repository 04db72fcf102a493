"""`postlane doctor`: the effective configuration with secrets masked, and every check of what is around it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from postlane.config import Environment
from postlane.core.policy import Config
from postlane.ops.checks import Check
from postlane.ops.doctor_kafka import kafka_checks
from postlane.ops.doctor_local import local_checks
from postlane.ops.doctor_providers import provider_checks

MASK = "********"
_SECRET = re.compile(r"password|secret|key|jaas|token|credential|oauthbearer", re.IGNORECASE)


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
        return any(check.name in ("kafka reachable", "ledger database") for check in self.failed)


def effective(environment: Environment, config: Config) -> dict[str, Any]:
    """What every part would go by, secrets masked: SecretStr masks itself, options and URLs are masked here."""
    told = environment.model_dump(mode="json")
    told["kafka"] = {name: MASK if _SECRET.search(name) else value for name, value in environment.kafka.items()}
    told["database_url"] = masked_url(environment.database_url)
    return {"environment": told, "config": config.model_dump(mode="json", exclude_none=True)}


def masked_url(url: str) -> str:
    """A URL without its password; parameters are left out, as they may hold one too."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""  # raises for a password that stands where the port should
    except ValueError:
        return MASK
    if parts.password is None and not parts.query:
        return url
    user = f"{parts.username or ''}:{MASK}@" if parts.password is not None else ""
    if not user and parts.username:
        user = f"{parts.username}@"
    query = "?…" if parts.query else ""
    return f"{parts.scheme}://{user}{parts.hostname or ''}{port}{parts.path}{query}"


async def examine(environment: Environment, config: Config, variables: Mapping[str, str], *, connect: bool) -> Report:
    """Run every check. `variables` are the process's, to find misspelt ones; `connect`: try the providers' ports."""
    local = await asyncio.to_thread(local_checks, environment, config, variables)
    kafka, providers = await asyncio.gather(kafka_checks(environment, config), provider_checks(config, connect=connect))
    return Report(effective(environment, config), (*local, *providers, *kafka))
