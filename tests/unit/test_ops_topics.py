"""Planning topics: every way to differ is named, growing is refused with the reason, nothing is deleted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import pytest

from postlane.core.policy import Config
from postlane.eventlog.admin import Broker, ClusterState, TopicState
from postlane.eventlog.errors import Retriable
from postlane.eventlog.ports import Partition
from postlane.eventlog.topics import TopicNames, TopicSpec
from postlane.ops.topics import apply, declared, differences, plan

NAMES = TopicNames("x.")
CONFIG = Config()


class FakeAdmin:
    """A cluster in memory."""

    def __init__(self, brokers: int = 3, actual: Mapping[str, TopicState] | None = None) -> None:
        self.brokers = brokers
        self.actual = dict(actual or {})
        self.altered: dict[str, dict[str, str]] = {}
        self.shy = 2  # how often it does not know a new topic yet

    async def cluster(self) -> ClusterState:
        return ClusterState("c", 1, tuple(Broker(i, "h", 1) for i in range(self.brokers)))

    async def topics(self, names: Iterable[str] | None = None) -> Mapping[str, TopicState]:
        return {name: self.actual[name] for name in names or () if name in self.actual}

    async def create_topics(self, specs: Collection[TopicSpec], replication: int) -> None:
        for spec in specs:
            assert spec.name not in self.actual
            self.actual[spec.name] = TopicState(spec.name, spec.partitions, replication, dict(spec.config))

    async def high_watermarks(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        if self.shy:
            self.shy -= 1
            raise Retriable("not leader for partition")
        return dict.fromkeys(partitions, 0)

    async def set_topic_config(self, topic: str, config: Mapping[str, str]) -> None:
        self.altered[topic] = dict(config)
        old = self.actual[topic]
        self.actual[topic] = replace(old, config={**old.config, **config})


@pytest.mark.parametrize(("brokers", "replication", "in_sync"), [(1, 1, None), (2, 2, None), (3, 3, "2"), (5, 3, "2")])
def test_replication_follows_the_brokers(brokers: int, replication: int, in_sync: str | None) -> None:
    want = declared(NAMES, CONFIG, brokers)
    assert want.replication == replication
    assert {spec.config.get("min.insync.replicas") for spec in want.specs} == {in_sync}


def test_replication_may_be_configured() -> None:
    config = Config.model_validate({"topics": {"replication": 2}})
    assert declared(NAMES, config, 5).replication == 2


async def test_apply_makes_it_so_and_then_nothing_differs() -> None:
    admin = FakeAdmin()
    want, found = await plan(admin, NAMES, CONFIG)
    assert {d.action for d in found} == {"create"}
    assert len(found) == len(want.specs)
    assert await apply(admin, want, found) == ()
    assert (await plan(admin, NAMES, CONFIG))[1] == ()
    assert admin.actual["x.mail.requests"].partitions == 12
    assert admin.shy == 0  # it waited until the topics could be used


async def applied(brokers: int = 3) -> FakeAdmin:
    admin = FakeAdmin(brokers)
    want, found = await plan(admin, NAMES, CONFIG)
    await apply(admin, want, found)
    return admin


@pytest.mark.parametrize(("actual", "says"), [(6, "partitions: 6"), (24, "take partitions away")])
async def test_other_partition_numbers_are_refused_with_the_reason(actual: int, says: str) -> None:
    admin = await applied()
    admin.actual["x.mail.events"] = replace(admin.actual["x.mail.events"], partitions=actual)
    want, (difference,) = await plan(admin, NAMES, CONFIG)
    assert (difference.topic, difference.setting, difference.action) == ("x.mail.events", "partitions", "refuse")
    assert says in difference.why
    before = dict(admin.actual)
    assert await apply(admin, want, (difference,)) == (difference,)
    assert admin.actual == before


async def test_options_that_differ_are_altered_and_others_left_alone() -> None:
    admin = await applied()
    old = admin.actual["x.mail.seen"]
    config = {**old.config, "retention.ms": "5", "cleanup.policy": "delete,compact", "compression.type": "zstd"}
    del config["min.insync.replicas"]
    admin.actual["x.mail.seen"] = replace(old, config=config)
    want, found = await plan(admin, NAMES, CONFIG)
    assert {(d.setting, d.actual, d.action) for d in found} == {
        ("retention.ms", "5", "alter"),
        ("min.insync.replicas", None, "alter"),
    }
    await apply(admin, want, found)
    assert admin.altered == {"x.mail.seen": {"retention.ms": "691200000", "min.insync.replicas": "2"}}
    assert admin.actual["x.mail.seen"].config["compression.type"] == "zstd"


async def test_too_few_copies_are_said_and_more_are_fine() -> None:
    admin = await applied(1)
    admin.brokers = 3
    want, found = await plan(admin, NAMES, CONFIG)
    copies = [d for d in found if d.setting == "replication"]
    assert len(copies) == len(want.specs)
    assert {d.action for d in copies} == {"by_hand"}
    assert "reassign" in copies[0].why
    more = {name: replace(state, replication=5) for name, state in (await applied()).actual.items()}
    assert differences(declared(NAMES, CONFIG, 3), more) == ()
