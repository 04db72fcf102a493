"""Wiring: the environment's words -> a gateway."""

from __future__ import annotations

import os
import socket
from contextlib import AsyncExitStack

from postlane.bounce_keys import ReturnPaths
from postlane.clock import SystemClock
from postlane.config import ConfigurationError
from postlane.eventlog.errors import OptionRefused
from postlane.eventlog.kafka import KafkaLog
from postlane.publisher import AsyncPublisher, Publisher
from postlane.service import Service, ServiceContext
from postlane_producer.api import Api
from postlane_producer.bounce_smtp import BounceListener
from postlane_producer.bounces import BounceIntake
from postlane_producer.config import GatewaySettings, read_settings
from postlane_producer.gateway import Gateway
from postlane_producer.keys import KeyRing
from postlane_producer.tls import server_context

SOURCE = "postlane/gateway"
PUBLISH_TIMEOUT_S = 20.0  # less than callers and load balancers wait, and a stop with it fits its time


def build(context: ServiceContext) -> Service:
    """The gateway of this process. Raises ConfigurationError."""
    settings = read_settings(os.environ)
    keys = KeyRing(settings.keys_file)
    publisher = AsyncPublisher(
        Publisher.from_environment(context.environment, timeout_s=PUBLISH_TIMEOUT_S, source=SOURCE)
    )
    held = AsyncExitStack()
    intake = _intake(context, held)
    api = Api(publisher, keys, intake, context.metrics.producer, context.tracer, SystemClock())
    return Gateway(settings, api, keys, publisher, _listener(settings, context, intake), held)


def _intake(context: ServiceContext, held: AsyncExitStack) -> BounceIntake:
    environment, bounces, clock = context.environment, context.config.bounces, SystemClock()
    paths = None if bounces is None else ReturnPaths(bounces, clock)
    try:
        log = KafkaLog(environment.bootstrap_servers, environment.kafka, f"postlane-gateway-{environment.instance_id}")
    except OptionRefused as error:
        raise ConfigurationError(f"POSTLANE_KAFKA_*: {error}") from None
    appender = log.appender()
    held.push_async_callback(log.close)
    held.push_async_callback(appender.close)
    return BounceIntake(
        appender,
        environment.names,
        paths,
        suppress=bounces is None or bounces.suppress,
        clock=clock,
        tracer=context.tracer,
        metrics=context.metrics.producer,
    )


def _listener(settings: GatewaySettings, context: ServiceContext, intake: BounceIntake) -> BounceListener | None:
    if settings.bounces is None:
        return None
    if context.config.bounces is None:
        raise ConfigurationError("POSTLANE_BOUNCES_LISTEN: postlane.yaml has no `bounces` (address and key_file)")
    files = settings.bounces_tls
    tls = None if files is None else server_context(files)
    host, port = settings.bounces
    return BounceListener(host, port, intake, hostname=socket.getfqdn(), tls=tls)
