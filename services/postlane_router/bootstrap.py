"""Wiring: the environment's words -> a router on Kafka, with its store on disk."""

from __future__ import annotations

import os

from postlane.broker_watch import watch_brokers
from postlane.config import ConfigurationError
from postlane.core.rules import rules_without
from postlane.eventlog.errors import OptionRefused
from postlane.eventlog.kafka import KafkaLog
from postlane.service import Service, ServiceContext
from postlane.twin import refuse_twin
from postlane_router.clock import SystemClock
from postlane_router.config import RouterSettings
from postlane_router.loop import Router
from postlane_router.store import RocksStore, StoreTaken


def build(context: ServiceContext) -> Service:
    """The router of this process. Raises ConfigurationError."""
    environment = context.environment
    try:
        rules = rules_without(os.environ.get("POSTLANE_TEST_RULES_OFF", "").split(","))
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    settings = RouterSettings.of(environment, context.config.topics.dedup_days)
    try:
        cluster = KafkaLog(environment.bootstrap_servers, environment.kafka, context.client_id)
    except OptionRefused as error:
        raise ConfigurationError(f"POSTLANE_KAFKA_*: {error}") from None
    try:
        store = RocksStore(settings.store_path, settings.store_cache_bytes, settings.store_write_buffer_bytes)
    except (StoreTaken, OSError) as error:
        raise ConfigurationError(f"POSTLANE_DATA_DIR: {error}") from None
    context.beside.append(watch_brokers(cluster.admin, context.metrics.kafka))
    group = environment.names.router_group
    context.before.append(lambda: refuse_twin(cluster.admin, [group], settings.instance, context.nonce))
    return Router(
        cluster,
        environment.names,
        context.config,
        settings,
        store,
        SystemClock(),
        context.metrics.router,
        rules,
        context.tracer,
    )
