"""What operators ask of a cluster: topics and their options, groups and their members and offsets, brokers."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import (
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka import admin as _untyped

from postlane.eventlog.admin_groups import GroupAdmin
from postlane.eventlog.errors import Retriable, UnknownTopic
from postlane.eventlog.kafka_errors import kafka_error, translate, translated
from postlane.eventlog.ports import Partition
from postlane.eventlog.topics import TopicSpec
from postlane.eventlog.worker import Worker

_api: Any = _untyped  # its names are not exported to type checkers
_GRACE_S = 5.0  # beyond the time-out that the library was given
USABLE_AGAIN_S = 0.02
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as it is; `config` holds only what was set for the topic itself."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str]
    under_replicated: int = 0  # partitions with fewer in-sync replicas than replicas
    offline: int = 0  # partitions without a leader


@dataclass(frozen=True, slots=True)
class Broker:
    id: int
    host: str
    port: int
    rack: str | None = None


@dataclass(frozen=True, slots=True)
class ClusterState:
    cluster_id: str
    controller: int | None
    brokers: tuple[Broker, ...] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class ClusterHealth:
    """What one request for metadata tells; partitions of topics that we may not see are not counted."""

    brokers: int
    under_replicated: int  # partitions with fewer in-sync replicas than replicas
    offline: int  # partitions without a leader


class KafkaAdmin(GroupAdmin):
    """Asks and alters; every call is bounded by `timeout_s` and raises Unreachable, Retriable or Fatal."""

    # -- positions

    async def offsets(
        self, partitions: Collection[Partition], spec: Any, *, committed: bool = False, least: int = 0
    ) -> dict[Partition, int]:
        """list_offsets of each partition; read uncommitted unless told otherwise. Raises UnknownTopic.

        What is below `least` is no answer: a book whose end is taken for -1001 is read to nowhere.
        """
        if not partitions:
            return {}
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        futures = self._client.list_offsets(
            {TopicPartition(p.topic, p.number): spec for p in sorted(partitions)},
            isolation_level=level,
            request_timeout=self._timeout_s,
        )
        try:
            found = await self._all(futures, "list offsets of")
        except Retriable as error:
            self._renew()
            if _is_nowhere(error.__cause__):  # no leader: none now, or no such partition
                await self._exist(partitions)
            raise
        offsets = {Partition(tp.topic, tp.partition): info.offset for tp, info in found.items()}
        for p, offset in offsets.items():
            if offset < least:  # and no error: what the library says where nobody answered while a leader changed
                self._renew()
                raise Retriable(f"list offsets of {p.topic}[{p.number}]: no answer ({offset})")
        return offsets

    async def _exist(self, partitions: Collection[Partition]) -> None:
        """Raises UnknownTopic unless all of them do."""
        for topic in sorted({p.topic for p in partitions}):
            count = await self.partition_count(topic)
            for p in sorted(partitions):
                if p.topic == topic and not 0 <= p.number < count:
                    raise UnknownTopic(f"{topic}[{p.number}]: it has {count} partitions")

    async def high_watermarks(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        return await self.offsets(partitions, _api.OffsetSpec.latest())

    async def last_stable_offsets(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        """Up to where read_committed readers get; below the high watermark while a transaction is open."""
        return await self.offsets(partitions, _api.OffsetSpec.latest(), committed=True)

    async def low_watermarks(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        return await self.offsets(partitions, _api.OffsetSpec.earliest())

    async def offsets_at(self, partitions: Collection[Partition], unix_ms: int) -> dict[Partition, int]:
        found = await self.offsets(partitions, _api.OffsetSpec.for_timestamp(unix_ms), least=-1)  # -1: none so late
        beyond = [p for p, offset in found.items() if offset < 0]
        return {**found, **(await self.high_watermarks(beyond))}

    # -- topics

    async def partition_count(self, topic: str) -> int:
        futures = self._client.describe_topics(TopicCollection([topic]), request_timeout=self._timeout_s)
        described = await self._all(futures, "describe topic")
        return len(described[topic].partitions)

    async def topic_id(self, topic: str) -> str:
        futures = self._client.describe_topics(TopicCollection([topic]), request_timeout=self._timeout_s)
        return str((await self._all(futures, "describe topic"))[topic].topic_id)

    async def topics(self, names: Iterable[str] | None = None) -> dict[str, TopicState]:
        """Topics with their own options; all but internal ones without `names`, else those of them that exist."""
        wanted = sorted(set(names)) if names is not None else await self._names()
        if not wanted:
            return {}
        described = await self._told(wanted)
        configs = await self._topic_configs(list(described))
        return {name: _topic_state(name, found, configs[name]) for name, found in described.items()}

    async def _names(self) -> list[str]:
        worker = Worker("postlane-admin")
        try:
            found = await worker.call(partial(self._metadata, self._client))
        finally:
            worker.stop()
        return sorted(name for name in found.topics if not name.startswith("__"))

    def _metadata(self, client: Any) -> Any:
        """On a thread, with a client that the event loop made: one made here could take the place of another on which
        answers are awaited, and those would never come."""
        try:
            return client.list_topics(timeout=self._timeout_s)
        except KafkaException as error:
            raise translate(error.args[0], "list topics") from error

    async def _topic_configs(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        if not names:
            return {}
        resources = [_api.ConfigResource(_api.ResourceType.TOPIC, name) for name in names]
        found = await self._all(
            self._client.describe_configs(resources, request_timeout=self._timeout_s), "describe options of"
        )
        return {
            resource.name: {
                entry.name: entry.value
                for entry in entries.values()
                if entry.source == _api.ConfigSource.DYNAMIC_TOPIC_CONFIG.value and entry.value is not None
            }
            for resource, entries in found.items()
        }

    async def create_topics(self, specs: Collection[TopicSpec], replication: int) -> None:
        """Create those that do not exist yet, and wait until they can be used: the controller is done before brokers
        have heard of it. Another process may be doing the same. Raises Retriable when that takes too long."""
        if not specs:
            return
        new = [_api.NewTopic(s.name, s.partitions, replication, config=dict(s.config)) for s in specs]
        futures = self._client.create_topics(
            new, operation_timeout=self._timeout_s, request_timeout=2 * self._timeout_s
        )
        for name, future in futures.items():
            try:
                await asyncio.wrap_future(future)
            except KafkaException as error:
                known = kafka_error(error)
                if known is None or known.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise translated(error, f"create topic {name}") from error
        await self._until_usable([spec.name for spec in specs])

    async def _until_usable(self, names: Collection[str]) -> None:
        """A broker tells of them, and the leader of each partition knows that it is one."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        while True:
            told = await self._told(names)
            try:
                if len(told) == len(set(names)):
                    await self.high_watermarks(
                        [Partition(t, p.id) for t, about in told.items() for p in about.partitions]
                    )
                    return
                reason = f"no broker tells of {min(set(names) - set(told))}"
            except (Retriable, UnknownTopic) as error:
                reason = str(error)
            if loop.time() > deadline:
                raise Retriable(f"topics were created, and cannot be used after {self._timeout_s:g} s: {reason}")
            await asyncio.sleep(USABLE_AGAIN_S)

    async def _told(self, names: Collection[str]) -> dict[str, Any]:
        """Those of the topics that the broker which is asked knows."""
        futures = self._client.describe_topics(TopicCollection(sorted(names)), request_timeout=self._timeout_s)
        described = {}
        for name, future in futures.items():
            try:
                described[name] = (await self._all({name: future}, "describe topic"))[name]
            except UnknownTopic:
                continue
        return described

    async def set_topic_config(self, topic: str, config: Mapping[str, str]) -> None:
        """Set these options of a topic and leave the others (incremental)."""
        if not config:
            return
        entries = [
            _api.ConfigEntry(name, value, incremental_operation=_api.AlterConfigOpType.SET)
            for name, value in config.items()
        ]
        resource = _api.ConfigResource(_api.ResourceType.TOPIC, topic, incremental_configs=entries)
        futures = self._client.incremental_alter_configs([resource], request_timeout=self._timeout_s)
        await self._all(futures, "alter options of")

    async def delete_records(self, before: Mapping[Partition, int]) -> None:
        """Give up what lies below these offsets (for tests and drills: retention at once)."""
        futures = self._client.delete_records(
            [TopicPartition(p.topic, p.number, offset) for p, offset in before.items()],
            request_timeout=self._timeout_s,
        )
        await self._all(futures, "delete records of")

    # -- clocks and rights

    async def newest_timestamps(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        """The largest timestamp in each partition, in ms since 1970; partitions without records are left out."""
        futures = self._client.list_offsets(
            {TopicPartition(p.topic, p.number): _api.OffsetSpec.max_timestamp() for p in sorted(partitions)},
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=self._timeout_s,
        )
        found = await self._all(futures, "newest timestamp of")
        return {Partition(tp.topic, tp.partition): info.timestamp for tp, info in found.items() if info.timestamp > 0}

    async def topic_rights(self, topics: Collection[str]) -> dict[str, frozenset[str]]:
        """What we may do to each topic, in Kafka's words ("Read", "DescribeConfigs"); nothing to one that we may not
        even see. Topics that do not exist are left out."""
        if not topics:
            return {}
        futures = self._client.describe_topics(
            TopicCollection(sorted(topics)), include_authorized_operations=True, request_timeout=self._timeout_s
        )
        return await self._rights(self._all, futures, "describe topic")

    # -- brokers

    async def health(self) -> ClusterHealth:
        """Brokers and partitions as they stand now. Raises Unreachable, Retriable."""
        worker = Worker("postlane-admin")
        try:
            found = await worker.call(partial(self._metadata, self._client))
        finally:
            worker.stop()
        partitions = [partition for topic in found.topics.values() for partition in topic.partitions.values()]
        return ClusterHealth(
            brokers=len(found.brokers),
            under_replicated=sum(len(p.isrs) < len(p.replicas) for p in partitions),
            offline=sum(p.leader < 0 for p in partitions),
        )

    async def cluster(self) -> ClusterState:
        future = self._client.describe_cluster(request_timeout=self._timeout_s)
        found = (await self._all({"cluster": future}, "describe"))["cluster"]
        brokers = tuple(sorted((Broker(n.id, n.host, n.port, n.rack) for n in found.nodes), key=lambda b: b.id))
        controller = found.controller.id if found.controller is not None else None
        return ClusterState(found.cluster_id, controller, brokers)

    async def broker_config(self, broker: int, names: Collection[str]) -> dict[str, str]:
        """The named options of a broker, as far as it tells."""
        resource = _api.ConfigResource(_api.ResourceType.BROKER, str(broker))
        found = await self._all(
            self._client.describe_configs([resource], request_timeout=self._timeout_s), "describe options of"
        )
        entries = next(iter(found.values()))
        return {name: entries[name].value for name in names if name in entries and entries[name].value is not None}


def _is_nowhere(error: BaseException | None) -> bool:
    known = kafka_error(error) if error is not None else None
    return known is not None and known.code() == KafkaError._NOENT


def _topic_state(name: str, found: Any, config: Mapping[str, str]) -> TopicState:
    replicas = [len(p.replicas) for p in found.partitions]
    return TopicState(
        name=name,
        partitions=len(found.partitions),
        replication=min(replicas, default=0),
        config=config,
        under_replicated=sum(len(p.isr) < len(p.replicas) for p in found.partitions),
        offline=sum(p.leader is None for p in found.partitions),
    )
