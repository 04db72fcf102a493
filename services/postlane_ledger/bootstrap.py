"""Wiring: the environment's words -> a ledger on Kafka with its database."""

from __future__ import annotations

import gc

from postlane.broker_watch import watch_brokers
from postlane.clock import SystemClock
from postlane.config import ConfigurationError, Environment
from postlane.eventlog.errors import OptionRefused
from postlane.eventlog.kafka import KafkaLog
from postlane.ops.books_database import open_database
from postlane.service import Service, ServiceContext
from postlane.twin import refuse_twin
from postlane_ledger.ledger import Ledger, LedgerSettings


def cluster_of(environment: Environment) -> KafkaLog:
    """The cluster of this process. Raises ConfigurationError."""
    try:
        return KafkaLog(environment.bootstrap_servers, environment.kafka, f"postlane-ledger-{environment.instance_id}")
    except OptionRefused as error:
        raise ConfigurationError(f"POSTLANE_KAFKA_*: {error}") from None


def collect_garbage_seldom() -> None:
    """A batch is ten thousand events and their rows: with Python's thresholds the collector walks them over and over, a
    quarter of the CPU of a fold (39 -> 29 µs an event). What makes cycles is the database library, some for each
    batch: the fold takes those away itself (`GARBAGE_MAX`)."""
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


def build(context: ServiceContext) -> Service:
    """The ledger of this process. Raises ConfigurationError."""
    collect_garbage_seldom()
    environment = context.environment
    settings = LedgerSettings(
        topic=environment.names.events,
        group=f"{environment.topic_prefix}ledger",
        instance=environment.instance_id,
        client_id=context.client_id,
        # The timeline is kept as long as the log keeps the events, so that a rebuild loses nothing of it.
        timeline_days=context.config.topics.events_days,
    )
    engine = open_database(environment.database_url)
    cluster = cluster_of(environment)
    context.beside.append(watch_brokers(cluster.admin, context.metrics.kafka))
    context.before.append(lambda: refuse_twin(cluster.admin, [settings.group], settings.instance, context.nonce))
    return Ledger(cluster, engine, settings, context.metrics.ledger, SystemClock())
