"""The overview counts what waits, not what the offsets suggest, and says what is missing instead of failing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from postlane.cli.output import document
from postlane.cli.status import fleet_text
from postlane.config import Environment
from postlane.core.policy import Config
from postlane.eventlog.admin import Broker, ClusterState
from postlane.eventlog.admin_groups import GroupMember, GroupState
from postlane.eventlog.errors import Fatal
from postlane.eventlog.memory import MemoryCluster, MemoryLog
from postlane.eventlog.ports import Committed, Outgoing, Partition, Transaction
from postlane.eventlog.topics import TopicNames, declare
from postlane.ops import fleet, tables

NAMES = TopicNames("f.")
CONFIG = Config()
NOW = datetime(2026, 1, 31, 9, tzinfo=UTC)


class FakeAdmin:
    """Groups and their positions, as told."""

    def __init__(self) -> None:
        self.positions: dict[str, dict[Partition, Committed]] = {}
        self.members: dict[str, tuple[GroupMember, ...]] = {}

    async def cluster(self) -> ClusterState:
        return ClusterState("c", 1, (Broker(1, "h", 1),))

    async def groups(self, names: Any) -> Mapping[str, GroupState]:
        return {name: GroupState(name, "Stable", self.members.get(name, ())) for name in names}

    async def group_offsets(self, group: str, partitions: Any) -> Mapping[Partition, Committed]:
        if group not in self.positions:
            raise Fatal("no such group")
        return self.positions[group]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(topic_prefix=NAMES.prefix, database_url=f"sqlite:///{tmp_path}/none.db")


@pytest.fixture
def log() -> MemoryLog:
    cluster = MemoryCluster()
    cluster.create_topics(declare(NAMES, tuple(CONFIG.lanes), CONFIG.topics))
    return MemoryLog(cluster)


async def fill(log: MemoryLog, partition: Partition, count: int) -> None:
    """`count` records, each in a transaction of its own, so that as many control records stand between them."""
    transactor = await log.transactor("filler")
    for number in range(count):
        record = Outgoing(partition.topic, partition.number, b"%d" % number, b"{}")
        await transactor.commit(Transaction([record], {}, None))
    await transactor.close()


async def test_control_records_do_not_wait(log: MemoryLog, environment: Environment) -> None:
    admin = FakeAdmin()
    bulk = NAMES.dispatch("bulk")
    await fill(log, Partition(bulk, 3), 4)
    await fill(log, Partition(bulk, 5), 2)
    end = (await log.high_watermarks([Partition(bulk, 5)]))[Partition(bulk, 5)]
    assert end == 4
    # In partition 5 all is settled but the last control record.
    admin.positions[NAMES.sender_group("bulk")] = {Partition(bulk, 5): Committed(end - 1, "1:0")}
    owned = frozenset({Partition(bulk, 3)})
    admin.members[NAMES.sender_group("bulk")] = (GroupMember("m", "sender-0", "c", "h", owned),)
    told = await fleet.overview(log, admin, environment, CONFIG, log.cluster.now_ms() + 5_000)
    lane = told["lanes"]["bulk"]
    assert (lane["waiting"], lane["owned"], lane["partitions"], lane["senders"]) == (4, 1, 12, ["sender-0"])
    assert lane["oldest_age_s"] >= 5
    by_number = {p["partition"]: p for p in told["partitions"] if p["lane"] == "bulk"}
    assert (by_number[3]["waiting"], by_number[3]["owner"], by_number[5]["waiting"]) == (4, "sender-0", 0)
    assert told["lanes"]["transactional"]["waiting"] == 0
    assert "bulk" in fleet_text(told)
    assert document(told)


async def test_a_control_record_at_the_end_of_a_delay_is_no_mail_that_waits(
    log: MemoryLog, environment: Environment
) -> None:
    admin = FakeAdmin()
    second = NAMES.delay("1s")
    for number, count in ((0, 1), (1, 1), (2, 3)):
        await fill(log, Partition(second, number), count)
    settled = {Partition(second, 0): Committed(1, ""), Partition(second, 1): Committed(0, "")}
    admin.positions[NAMES.router_group] = settled
    told = await fleet.overview(log, admin, environment, CONFIG, 0)
    assert told["delayed"]["1s"] == 0 + 1 + 6  # many are told by their offsets: a bound from above
    assert told["delayed"]["1m"] == 0


async def test_orders_and_what_is_missing_are_said(log: MemoryLog, environment: Environment) -> None:
    await tables.pause(log, NAMES, "lane", "bulk", "too fast", NOW)
    told = await fleet.overview(log, FakeAdmin(), environment, CONFIG, 0)
    assert [(o["action"], o["name"]) for o in told["orders"]] == [("pause", "bulk")]
    assert "no ledger" in told["ledger"]["error"]
    assert "pause      lane bulk too fast" in fleet_text(told)
    empty = MemoryLog(MemoryCluster())
    told = await fleet.overview(empty, FakeAdmin(), environment, CONFIG, 0)
    assert {NAMES.requests, NAMES.events, NAMES.control, NAMES.dispatch("bulk")} <= set(told["kafka"]["missing_topics"])
    assert "postlane topics apply" in fleet_text(told)
