"""Wiring: the environment's words -> a health worker."""

from __future__ import annotations

import logging

from postlane.clock import SystemClock
from postlane.config import ConfigurationError
from postlane.eventlog.errors import OptionRefused
from postlane.eventlog.kafka_config import check_options
from postlane.service import Service, ServiceContext
from postlane_health.config import settings_of
from postlane_health.health import HealthService
from postlane_health.measures import Measures


def build(context: ServiceContext) -> Service:
    """The health worker of this process. Raises ConfigurationError."""
    environment = context.environment
    try:
        check_options(environment.kafka)
    except OptionRefused as error:
        raise ConfigurationError(f"POSTLANE_KAFKA_*: {error}") from None
    settings_of(environment.kafka)  # what it cannot do is said before anything is tried
    for name in ("faust", "aiokafka", "mode"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return HealthService(environment, context.config.health, Measures(context.metrics.registry), SystemClock())
