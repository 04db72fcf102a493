"""Topics as declared against topics as they are: what differs, and making it so. Nothing is ever deleted.

Partitions are never added to a topic that exists: a mail keeps one partition number through requests, dispatch, delay,
state, seen and events, and with another number of partitions the same key would fall elsewhere, away from its books.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from postlane.core.policy import Config
from postlane.eventlog.admin import ClusterState, TopicState
from postlane.eventlog.errors import Retriable, UnknownTopic
from postlane.eventlog.ports import Partition
from postlane.eventlog.topics import TopicNames, TopicSpec, declare

REPLICATION_WANTED = 3
USABLE_TIMEOUT_S = 30.0
USABLE_ASK_AGAIN_S = 0.1
IN_SYNC_MIN = 2  # of three copies: one broker may be lost without losing what was acknowledged

Action = Literal["create", "alter", "refuse", "by_hand"]


class Admin(Protocol):
    """What planning and applying ask of a cluster (KafkaAdmin)."""

    async def topics(self, names: Iterable[str] | None = None) -> Mapping[str, TopicState]: ...

    async def cluster(self) -> ClusterState: ...

    async def create_topics(self, specs: Collection[TopicSpec], replication: int) -> None: ...

    async def set_topic_config(self, topic: str, config: Mapping[str, str]) -> None: ...

    async def high_watermarks(self, partitions: Collection[Partition]) -> Mapping[Partition, int]: ...


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as declared. `setting` is partitions, replication or a topic option; `actual` None: absent.

    `action`: create and alter are what `apply` does; refuse is what nobody should do as asked, by_hand what Kafka
    needs other tools for; `why` says so.
    """

    topic: str
    setting: str
    declared: str
    actual: str | None
    action: Action
    why: str = ""


@dataclass(frozen=True, slots=True)
class Declared:
    """The topics that this installation should have, and how often each is kept."""

    specs: tuple[TopicSpec, ...]
    replication: int

    def spec(self, name: str) -> TopicSpec:
        return next(spec for spec in self.specs if spec.name == name)


def declared(names: TopicNames, config: Config, brokers: int) -> Declared:
    """The declaration for a cluster of that many brokers; replication is three, or as many as there are brokers,
    unless configured, and three copies need two in sync."""
    replication = config.topics.replication or max(1, min(REPLICATION_WANTED, brokers))
    specs = declare(names, tuple(config.lanes), config.topics)
    if replication >= REPLICATION_WANTED:
        in_sync = {"min.insync.replicas": str(IN_SYNC_MIN)}
        specs = tuple(replace(spec, config={**spec.config, **in_sync}) for spec in specs)
    return Declared(specs, replication)


def differences(want: Declared, actual: Mapping[str, TopicState]) -> tuple[Difference, ...]:
    """What differs, topic by topic in the order of the declaration. Options that are not declared are left alone."""
    found: list[Difference] = []
    for spec in want.specs:
        state = actual.get(spec.name)
        if state is None:
            text = f"{spec.partitions} partitions, replication {want.replication}"
            found.append(Difference(spec.name, "topic", text, None, "create"))
        else:
            found += _of_one(spec, state, want.replication)
    return tuple(found)


async def plan(admin: Admin, names: TopicNames, config: Config) -> tuple[Declared, tuple[Difference, ...]]:
    """The declaration for this cluster and what differs from it. Raises Unreachable, Retriable, Fatal."""
    want = declared(names, config, len((await admin.cluster()).brokers))
    return want, differences(want, await admin.topics([spec.name for spec in want.specs]))


async def apply(admin: Admin, want: Declared, found: Sequence[Difference]) -> tuple[Difference, ...]:
    """Create and alter what may be; returns what was left because its action is refuse or by_hand."""
    missing = [want.spec(d.topic) for d in found if d.action == "create"]
    await admin.create_topics(missing, want.replication)
    await _until_usable(admin, missing)
    alterations: dict[str, dict[str, str]] = {}
    for difference in found:
        if difference.action == "alter":
            alterations.setdefault(difference.topic, {})[difference.setting] = difference.declared
    for topic, settings in alterations.items():
        await admin.set_topic_config(topic, settings)
    return tuple(d for d in found if d.action in ("refuse", "by_hand"))


async def _until_usable(admin: Admin, specs: Sequence[TopicSpec]) -> None:
    """Brokers hear of a new topic one after the other; whoever comes next should not meet one that has not yet."""
    partitions = [Partition(spec.name, number) for spec in specs for number in range(spec.partitions)]
    tries = int(USABLE_TIMEOUT_S / USABLE_ASK_AGAIN_S)
    for left in reversed(range(tries)):
        try:
            await admin.high_watermarks(partitions)
            return
        except (UnknownTopic, Retriable):
            if not left:
                raise
        await asyncio.sleep(USABLE_ASK_AGAIN_S)


def _of_one(spec: TopicSpec, state: TopicState, replication: int) -> Iterable[Difference]:
    if state.partitions < spec.partitions:
        why = (
            f"a mail keeps one partition number in every topic; with more partitions its key would fall away from its "
            f"books. Set topics.partitions: {state.partitions} in postlane.yaml, or move to new topics under another "
            "POSTLANE_TOPIC_PREFIX"
        )
        yield _numbers(spec.name, "partitions", spec.partitions, state.partitions, "refuse", why)
    elif state.partitions > spec.partitions:
        why = f"Kafka cannot take partitions away. Set topics.partitions: {state.partitions} in postlane.yaml"
        yield _numbers(spec.name, "partitions", spec.partitions, state.partitions, "refuse", why)
    if state.replication < replication:
        why = "move its replicas with kafka-reassign-partitions.sh (or Cruise Control, or Strimzi)"
        yield _numbers(spec.name, "replication", replication, state.replication, "by_hand", why)
    for option, value in spec.config.items():
        actual = state.config.get(option)
        if not _same(option, value, actual):
            yield Difference(spec.name, option, value, actual, "alter")


def _numbers(topic: str, setting: str, want: int, actual: int, action: Action, why: str) -> Difference:
    return Difference(topic, setting, str(want), str(actual), action, why)


def _same(option: str, value: str, actual: str | None) -> bool:
    if actual is None:
        return False
    if option == "cleanup.policy":  # a set, in whatever order the broker tells it
        return {part.strip() for part in value.split(",")} == {part.strip() for part in actual.split(",")}
    return value == actual
