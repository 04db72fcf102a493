"""Apache Kafka as a `ports.Log`. With its siblings the only importer of confluent_kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Protocol

from postlane.eventlog.admin import KafkaAdmin
from postlane.eventlog.appender import KafkaAppender
from postlane.eventlog.consumer import KafkaMember
from postlane.eventlog.kafka_config import ClientConfig, check_options
from postlane.eventlog.leave import remove_static_member
from postlane.eventlog.ports import CLOSE_TIMEOUT_S, Listener, Partition, Received
from postlane.eventlog.producer import KafkaTransactor
from postlane.eventlog.reader import Readers
from postlane.eventlog.tail import KafkaTail


class _Closable(Protocol):
    async def close(self) -> None: ...


class KafkaLog:
    """A cluster.

    `options` are librdkafka's, by their own names; they win over the built-in figures, and those that the protocol
    of the books depends on are refused. Raises OptionRefused. Must be used from one event loop.
    """

    def __init__(
        self, bootstrap_servers: str, options: Mapping[str, str] | None = None, client_id: str = "postlane"
    ) -> None:
        self._config = ClientConfig(bootstrap_servers, check_options(options or {}), client_id)
        self.admin = KafkaAdmin(self._config)
        self._readers = Readers(self._config)
        self._opened: list[_Closable] = []

    async def partition_count(self, topic: str) -> int:
        return await self.admin.partition_count(topic)

    async def topic_id(self, topic: str) -> str:
        return await self.admin.topic_id(topic)

    async def high_watermarks(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        return await self.admin.high_watermarks(partitions)

    async def low_watermarks(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        return await self.admin.low_watermarks(partitions)

    async def offsets_at(self, partitions: Collection[Partition], unix_ms: int) -> Mapping[Partition, int]:
        return await self.admin.offsets_at(partitions, unix_ms)

    def read(
        self, partition: Partition, start: int, end: int, *, deadline_s: float, committed: bool = True
    ) -> AsyncIterator[Sequence[Received]]:
        return self._readers.read(partition, start, end, deadline_s=deadline_s, committed=committed)

    async def member(
        self,
        group: str,
        topics: Sequence[str],
        listener: Listener,
        *,
        instance_id: str | None = None,
        client_id: str | None = None,
    ) -> KafkaMember:
        leave = partial(remove_static_member, self._config.bootstrap_servers, self._config.options)
        member = KafkaMember(self._config.member(group, instance_id, client_id), topics, listener, leave)
        self._opened.append(member)
        return member

    async def transactor(self, transactional_id: str) -> KafkaTransactor:
        transactor = KafkaTransactor(self._config.transactor(transactional_id))
        await transactor.begin()
        self._opened.append(transactor)
        return transactor

    def appender(self, *, close_timeout_s: float = CLOSE_TIMEOUT_S) -> KafkaAppender:
        appender = KafkaAppender(self._config.appender(), close_timeout_s)
        self._opened.append(appender)
        return appender

    def tail(self, topic: str, apply: Callable[[Received], None]) -> KafkaTail:
        async def ends() -> Mapping[Partition, int]:
            count = await self.partition_count(topic)
            return await self.high_watermarks([Partition(topic, n) for n in range(count)])

        tail = KafkaTail(self._config.tail(), topic, ends, apply)
        self._opened.append(tail)
        return tail

    async def close(self) -> None:
        """Close what is still open: members first, because letting go may still commit."""
        opened, self._opened = self._opened[::-1], []
        opened.sort(key=lambda it: not isinstance(it, KafkaMember))
        results = [await _closed(it) for it in opened]
        await self._readers.close()
        for error in results:
            if error is not None:
                raise error


async def _closed(it: _Closable) -> Exception | None:
    try:
        await it.close()
    except asyncio.CancelledError:
        raise
    except Exception as error:  # the others are closed first, then the first error is raised
        return error
    return None
