"""Wiring: the environment's words -> a gateway."""

from __future__ import annotations

import os

from postlane.clock import SystemClock
from postlane.publisher import AsyncPublisher, Publisher
from postlane.service import Service, ServiceContext
from postlane_producer.api import Api
from postlane_producer.config import read_settings
from postlane_producer.gateway import Gateway
from postlane_producer.keys import KeyRing

SOURCE = "postlane/gateway"


def build(context: ServiceContext) -> Service:
    """The gateway of this process. Raises ConfigurationError."""
    settings = read_settings(os.environ)
    keys = KeyRing(settings.keys_file)
    publisher = AsyncPublisher(Publisher.from_environment(context.environment, source=SOURCE))
    api = Api(publisher, keys, context.metrics.producer, context.tracer, SystemClock())
    return Gateway(settings, api, keys, publisher)
