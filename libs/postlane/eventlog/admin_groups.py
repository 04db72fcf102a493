"""What operators ask of consumer groups: members, positions, rights. A group's coordinator answers, not any broker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition

from postlane.eventlog.admin_client import AdminClient
from postlane.eventlog.errors import Retriable, Unreachable
from postlane.eventlog.kafka_config import NO_TIMEOUT_S
from postlane.eventlog.kafka_errors import translate
from postlane.eventlog.ports import Committed, Partition
from postlane.eventlog.positions import Positions

COORDINATOR_TRIES_MAX = 60
COORDINATOR_WAIT_S = 0.5
COORDINATOR_READ_TRIES_MAX = 10  # a new cluster, or a broker that just went: its groups move for some seconds
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class GroupMember:
    member_id: str
    instance_id: str | None
    client_id: str
    host: str
    partitions: frozenset[Partition]


@dataclass(frozen=True, slots=True)
class GroupState:
    """`state` is Kafka's word (Stable, Empty, PreparingRebalance, Dead, ...)."""

    group: str
    state: str
    members: tuple[GroupMember, ...] = ()


class GroupAdmin(AdminClient):
    """Questions to coordinators. Raises Unreachable, Retriable, Fatal.

    The library gets no time-out for them (see NO_TIMEOUT_S); ours lets the question go.
    """

    async def groups(self, names: Collection[str]) -> dict[str, GroupState]:
        if not names:
            return {}
        return await coordinated(lambda: self._groups(names), COORDINATOR_READ_TRIES_MAX)

    async def _groups(self, names: Collection[str]) -> dict[str, GroupState]:
        futures = self._client.describe_consumer_groups(sorted(names), request_timeout=NO_TIMEOUT_S)
        states = {}
        for name, future in futures.items():
            described = (await self._all_of_groups({name: future}, "describe group"))[name]
            states[name] = GroupState(
                name,
                "".join(part.capitalize() for part in described.state.name.split("_")),
                tuple(_group_member(member) for member in described.members),
            )
        return states

    async def group_offsets(
        self, group: str, partitions: Collection[Partition], *, stable: bool = False
    ) -> dict[Partition, Committed]:
        """What a group has committed for these. Never for the books (a member asks `committed`): for lags and reports.

        `stable`: Retriable while a transaction that moves them is open.
        """
        if not partitions:
            return {}
        positions = Positions(self._config, group, stable=stable)
        try:
            ask = partial(positions.committed, sorted(partitions), self._timeout_s)
            return await coordinated(partial(asyncio.to_thread, ask), COORDINATOR_READ_TRIES_MAX)
        finally:
            await asyncio.to_thread(positions.close)

    async def set_group_offsets(self, group: str, positions: Mapping[Partition, Committed]) -> None:
        """Put down positions for a group without members (a restore). Raises Retriable, Fatal (it has members).

        A group that nobody has used yet gets its coordinator with the first question: that is waited for.
        """
        await coordinated(lambda: self._set_group_offsets(group, positions), COORDINATOR_TRIES_MAX, unreachable=True)

    async def _set_group_offsets(self, group: str, positions: Mapping[Partition, Committed]) -> None:
        if not positions:
            return
        wanted = [TopicPartition(p.topic, p.number, c.offset, c.metadata) for p, c in sorted(positions.items())]
        request = [ConsumerGroupTopicPartitions(group, wanted)]
        futures = self._client.alter_consumer_group_offsets(request, request_timeout=NO_TIMEOUT_S)
        for tp in (await self._all_of_groups(futures, "set offsets of group"))[group].topic_partitions:
            if tp.error is not None:
                raise translate(tp.error, f"set offsets of group {group}, {tp.topic}[{tp.partition}]")

    async def group_rights(self, groups: Collection[str]) -> dict[str, frozenset[str]]:
        """What we may do to each consumer group."""
        if not groups:
            return {}
        futures = self._client.describe_consumer_groups(
            sorted(groups), include_authorized_operations=True, request_timeout=NO_TIMEOUT_S
        )
        return await self._rights(self._all_of_groups, futures, "describe group")


async def coordinated(ask: Callable[[], Awaitable[V]], tries_max: int, *, unreachable: bool = False) -> V:
    """Ask a group's coordinator, again while it is moving or loading. Raises what the last try raised.

    `unreachable`: also while no broker answers.
    """
    for _ in range(tries_max - 1):
        try:
            return await ask()
        except Retriable as error:
            if isinstance(error, Unreachable) and not unreachable:
                raise
            await asyncio.sleep(COORDINATOR_WAIT_S)
    return await ask()


def _group_member(member: Any) -> GroupMember:
    owned = member.assignment.topic_partitions if member.assignment is not None else []
    return GroupMember(
        member_id=member.member_id,
        instance_id=member.group_instance_id,
        client_id=member.client_id,
        host=member.host.removeprefix("/"),
        partitions=frozenset(Partition(tp.topic, tp.partition) for tp in owned),
    )
