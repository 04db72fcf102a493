"""The doctor at a real cluster: what is broken there is told by its name, and everything else stays well."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio

from postlane.config import Environment
from postlane.core.policy import Config
from postlane.eventlog.errors import Retriable
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.ports import Committed, Outgoing, Partition
from postlane.eventlog.topics import DAY_MS, TopicNames, declare
from postlane.local.kafka import KafkaCluster
from postlane.ops import tables
from postlane.ops.doctor import Report, Wish, examine
from postlane.ops.topics import Declared, apply, differences

pytestmark = pytest.mark.kafka
CONFIG = Config.model_validate({"topics": {"partitions": 2, "replication": 1}})
ALWAYS = {  # what a throwaway broker and no service come to
    "broker-count",
    "authorizer",
    "service-running",
    "configuration-file",
    "single-provider",
    "replication-setting",
    "ledger-database",
}


class World:
    """An installation of its own on the session's broker."""

    def __init__(self, kafka: KafkaCluster, folder: Path) -> None:
        self.names = TopicNames(f"d{uuid.uuid4().hex[:8]}.")
        self.environment = Environment(
            bootstrap_servers=kafka.bootstrap_servers,
            topic_prefix=self.names.prefix,
            data_dir=folder,
            instance_id="here",
            database_url=f"sqlite:///{folder}/no.db",
        )
        self.log = KafkaLog(kafka.bootstrap_servers)

    async def make(self, **other: int) -> None:
        """The topics, some with another number of partitions."""
        specs = declare(self.names, tuple(CONFIG.lanes), CONFIG.topics)
        specs = tuple(replace(s, partitions=other.get(s.name.rpartition(".")[2], s.partitions)) for s in specs)
        want = Declared(specs, 1)
        await apply(self.log.admin, want, differences(want, {}))
        await self._warm()

    async def _warm(self) -> None:
        """A cluster's first group makes the brokers create the topic of positions, which takes them a while."""
        for tries_left in reversed(range(10)):
            try:
                somewhere = {Partition(self.names.control, 0): Committed(0, "")}
                await self.log.admin.set_group_offsets(f"{self.names.prefix}warm", somewhere)
                return
            except Retriable:
                if not tries_left:
                    raise

    async def examine(self) -> Report:
        return await examine(self.environment, CONFIG, {}, Wish(connect=False))

    async def troubles(self) -> set[str]:
        return {c.name for c in (await self.examine()).checks if c.verdict in ("warn", "fail")} - ALWAYS


@pytest_asyncio.fixture
async def world(kafka: KafkaCluster, tmp_path: Path) -> AsyncIterator[World]:
    world = World(kafka, tmp_path)
    yield world
    await world.log.close()


async def test_a_cluster_as_it_should_be_and_then_broken_bit_by_bit(world: World) -> None:
    await world.make()
    report = await world.examine()
    told = {c.name: c.verdict for c in report.checks}
    assert {name for name, verdict in told.items() if verdict in ("warn", "fail")} <= ALWAYS
    asked = {"broker-clock", "record-clock", "missing-acl", "offsets-lost", "pause-forgotten", "transaction-timeout"}
    assert {name: told[name] for name in asked} == dict.fromkeys(asked, "ok"), report.checks

    names, admin = world.names, world.log.admin
    await admin.set_topic_config(names.suppressions, {"cleanup.policy": "delete"})
    await admin.set_topic_config(names.seen, {"retention.ms": str(5 * DAY_MS)})
    await admin.set_topic_config(names.requests, {"max.message.bytes": "1000000"})
    await tables.pause(world.log, names, "campaign", "spring", "x", datetime(2026, 1, 1, tzinfo=UTC))
    assert await world.troubles() == {
        "topic-cleanup",
        "seen-retention",
        "topic-retention",
        "topic-message-size",
        "pause-forgotten",
    }
    await admin.set_topic_config(names.suppressions, {"cleanup.policy": "compact"})
    await admin.set_topic_config(names.seen, {"retention.ms": str(8 * DAY_MS)})
    await admin.set_topic_config(names.requests, {"max.message.bytes": "2097152"})
    await tables.resume(world.log, names, "campaign", "spring")

    appender = world.log.appender()
    await appender.append(Outgoing(names.state("bulk"), 1, b"k", b"{}"))
    assert await world.troubles() == {"offsets-lost"}
    await admin.set_group_offsets(names.sender_group("bulk"), {Partition(names.dispatch("bulk"), 1): Committed(0, "")})
    await appender.append(Outgoing(names.dispatch("bulk"), 1, b"k", b"{}"))
    await admin.delete_records({Partition(names.dispatch("bulk"), 1): 1})
    assert await world.troubles() == {"offsets-below-log"}
    await appender.close()


async def test_topics_with_another_number_of_partitions(world: World) -> None:
    await world.make(events=1)
    assert await world.troubles() == {"topic-partitions", "topic-partition-numbers"}


async def test_a_misspelt_prefix(world: World) -> None:
    await world.make()
    world.environment = world.environment.model_copy(update={"topic_prefix": f"x{world.names.prefix}"})
    report = await world.examine()
    assert {c.name for c in report.failed} == {"topic-missing", "topic-prefix"}
    assert repr(world.names.prefix) in next(c.found for c in report.failed if c.name == "topic-prefix")
