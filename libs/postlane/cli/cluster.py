"""The environment, read once for a command, and the cluster that it names."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from postlane.cli.local_stack import with_local_stack
from postlane.config import Environment, read_config, read_environment
from postlane.core.policy import Config

if TYPE_CHECKING:
    from postlane.eventlog.kafka import KafkaLog

T = TypeVar("T")


class Settings(NamedTuple):
    """What the variables and postlane.yaml say."""

    environment: Environment
    config: Config


def settings() -> Settings:
    """Read both; what is not set is that of the stack which is up here. Raises ConfigurationError (exit code 2)."""
    environment = read_environment(with_local_stack(os.environ))
    return Settings(environment, read_config(environment.config_file))


def quiet() -> None:
    """Keep what the Kafka library says about its connections out of a person's terminal: errors say it better."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="postlane: %(message)s")
    logging.getLogger("postlane.eventlog.librdkafka").setLevel(logging.CRITICAL)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run the work of a command to its end."""
    quiet()
    return asyncio.run(work)


@asynccontextmanager
async def log_of(environment: Environment) -> AsyncIterator[KafkaLog]:
    """The cluster, closed afterwards. Raises OptionRefused (exit code 2)."""
    from postlane.eventlog.kafka import KafkaLog

    log = KafkaLog(environment.bootstrap_servers, environment.kafka, "postlane-cli")
    try:
        yield log
    finally:
        await log.close()
