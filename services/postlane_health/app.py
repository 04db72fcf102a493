"""The Faust app: one plain agent on `mail.observations`, no tables, no group_by, nothing of its own in Kafka.

An exception in a Faust agent is logged and its event acknowledged, so what a record may do wrong is caught where it
happens. Offsets are committed by Faust; a window that was lost with its worker is not read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import faust

from postlane.config import Environment
from postlane.eventlog.ports import Received
from postlane_health.config import broker_urls, settings_of

MAX_POLL_RECORDS = 1000


class FaustApp:
    """What is used of Faust: the agent, who owns what, the topic to write to, start and stop."""

    def __init__(
        self,
        environment: Environment,
        receive: Callable[[Received], None],
        assigned: Callable[[Iterable[int]], None],
    ) -> None:
        """`receive` gets every record, `assigned` the partitions that are owned, whenever that changes. Raises
        ConfigurationError. Needs the running event loop."""
        names = environment.names
        self._topic = names.observations
        self.app = app = faust.App(
            f"{names.prefix}health",
            broker=broker_urls(environment.bootstrap_servers),
            loop=asyncio.get_running_loop(),
            broker_client_id=f"postlane-health-{environment.instance_id}",
            broker_max_poll_records=MAX_POLL_RECORDS,
            consumer_auto_offset_reset="latest",
            datadir=str(Path(environment.data_dir) / "faust"),
            store="memory://",
            autodiscover=False,
            producer_linger=0.0,
            stream_wait_empty=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            web_enabled=False,
            **settings_of(environment.kafka),
        )
        self._out = app.topic(names.health, key_serializer="raw", value_serializer="raw")
        source = app.topic(self._topic, key_serializer="raw", value_serializer="raw", allow_empty=True)

        async def merge(stream: Any) -> None:
            async for event in stream.events():
                receive(_received(event.message))

        app.agent(source, name="postlane_health.merge")(merge)

        def on_assigned(_: Any, /, *arguments: Any, **named: Any) -> None:
            assigned(sorted(tp.partition for tp in arguments[0] if tp.topic == self._topic))

        self._on_assigned = on_assigned  # a signal holds it weakly
        app.on_partitions_assigned.connect(on_assigned)

    async def start(self) -> None:
        """Join the group."""
        await self.app.start()

    async def send(self, partition: int, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> None:
        """Write to `mail.health`; returns once acknowledged."""
        sent = await self._out.send(key=key, value=value, partition=partition, headers=headers)
        await sent

    def broken(self) -> BaseException | None:
        """What ended the app, if something did."""
        reason: BaseException | None = self.app.crash_reason
        return reason if self.app.crashed else None

    async def stop(self) -> None:
        """Leave the group."""
        await self.app.stop()


def _received(message: Any) -> Received:
    headers = message.headers or []
    pairs = headers.items() if isinstance(headers, dict) else headers
    return Received(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        timestamp_ms=int((message.timestamp or 0) * 1000),
        key=message.key,
        value=message.value,
        headers=[(name, value) for name, value in pairs],
    )
