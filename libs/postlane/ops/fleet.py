"""The whole fleet at a glance: what waits where, for how long, who serves it, how many stand in which state.

Backlogs come from Kafka, states from the ledger's database; either may be missing, and the answer says so. Small
backlogs are counted record by record: topics written in transactions hold control records, which no offset tells
apart from mails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from postlane.config import ConfigurationError, Environment
from postlane.core.events import Control
from postlane.core.policy import Config
from postlane.eventlog.admin import ClusterState
from postlane.eventlog.admin_groups import GroupState
from postlane.eventlog.errors import LogError, UnknownTopic
from postlane.eventlog.ports import Committed, Log, Partition
from postlane.ops import tables
from postlane.ops.health import fleet_health

COUNTED_MAX = 500  # records of a partition that are counted one by one
CONTROLS_MAX = 2  # where ages are not asked for: so few may be control records alone
READ_DEADLINE_S = 3.0

Document = dict[str, Any]


class Admin(Protocol):
    """What the overview asks of a cluster (KafkaAdmin)."""

    async def cluster(self) -> ClusterState: ...

    async def groups(self, names: Any) -> Mapping[str, GroupState]: ...

    async def group_offsets(self, group: str, partitions: Collection[Partition]) -> Mapping[Partition, Committed]: ...


@dataclass(frozen=True, slots=True)
class Waiting:
    """What of one partition a group has not settled: `records`, and the age of the first in seconds."""

    partition: Partition
    committed: int | None
    end: int
    records: int
    oldest_age_s: float | None
    owner: str | None = None


async def overview(log: Log, admin: Admin, environment: Environment, config: Config, now_ms: int) -> Document:
    """Everything. Raises Unreachable when no broker answers; topics that are missing are named instead."""
    names = environment.names
    cluster = await admin.cluster()
    groups = await admin.groups([names.router_group, *(names.sender_group(lane) for lane in config.lanes)])
    missing: list[str] = []
    lanes: Document = {}
    partitions: list[Document] = []
    for lane in config.lanes:
        group = groups.get(names.sender_group(lane))
        found = await _backlog(log, admin, names.dispatch(lane), names.sender_group(lane), group, now_ms, missing)
        lanes[lane] = {**_summed(found), "senders": _members(group)}
        partitions += [_partition(lane, waiting) for waiting in found]
    router_group = groups.get(names.router_group)
    requests = await _backlog(log, admin, names.requests, names.router_group, router_group, now_ms, missing)
    delayed = {}
    for topic in names.delays:
        found = await _backlog(log, admin, topic, names.router_group, router_group, now_ms, missing, aged=False)
        delayed[topic.rpartition(".")[2]] = sum(waiting.records for waiting in found)
    ledger = await _ledger(log, environment, missing, now_ms)
    orders = await _orders(log, environment, missing)
    health = await _health(log, environment, config, missing, now_ms)
    standing = _standing(ledger.pop("tallies", []))
    return {
        "kafka": {
            "bootstrap_servers": environment.bootstrap_servers,
            "brokers": len(cluster.brokers),
            "missing_topics": sorted(set(missing)),
        },
        "router": {**_summed(requests), "routers": _members(router_group)},
        "lanes": {lane: {**told, "states": standing["lanes"].get(lane, {})} for lane, told in lanes.items()},
        "delayed": delayed,
        "states": standing["states"],
        "providers": {
            name: standing["providers"].get(name, {}) for name in sorted({*config.providers, *standing["providers"]})
        },
        "health": health,
        "orders": [_order(order) for order in orders],
        "ledger": ledger,
        "partitions": partitions,
    }


# ------------------------------------------------------------------------------------------------------------- Kafka


async def _backlog(
    log: Log,
    admin: Admin,
    topic: str,
    group: str,
    state: GroupState | None,
    now_ms: int,
    missing: list[str],
    *,
    aged: bool = True,
) -> list[Waiting]:
    try:
        partitions = [Partition(topic, number) for number in range(await log.partition_count(topic))]
    except UnknownTopic:
        missing.append(topic)
        return []
    ends, begins = await asyncio.gather(log.high_watermarks(partitions), log.low_watermarks(partitions))
    committed = await _committed(admin, group, partitions)
    owners = _owners(state)
    found = []
    for partition in partitions:
        position = committed.get(partition)
        start = max(begins[partition], position.offset if position is not None else 0)
        records, age_s = max(0, ends[partition] - start), None
        if records and (aged or records <= CONTROLS_MAX):
            records, age_s = await _look(log, partition, start, ends[partition], now_ms)
        at = None if position is None else position.offset
        found.append(Waiting(partition, at, ends[partition], records, age_s, owners.get(partition)))
    return found


async def _committed(admin: Admin, group: str, partitions: Collection[Partition]) -> Mapping[Partition, Committed]:
    try:
        return await admin.group_offsets(group, partitions)
    except LogError:  # a group that has never been there has committed nothing
        return {}


async def _look(log: Log, partition: Partition, start: int, end: int, now_ms: int) -> tuple[int, float | None]:
    """(records, age of the first in seconds): read one by one where there are few, else from the offsets."""
    first_ms: int | None = None
    seen = 0
    try:
        async for records in log.read(partition, start, min(end, start + COUNTED_MAX), deadline_s=READ_DEADLINE_S):
            seen += len(records)
            if first_ms is None and records:
                first_ms = records[0].timestamp_ms
    except LogError:  # an open transaction, say: what the offsets tell is still true
        return end - start, None if first_ms is None else _age_s(first_ms, now_ms)
    count = seen if end - start <= COUNTED_MAX else end - start
    return count, None if first_ms is None else _age_s(first_ms, now_ms)


def _age_s(then_ms: int, now_ms: int) -> float:
    return max(0.0, round((now_ms - then_ms) / 1000, 1))


def _owners(state: GroupState | None) -> dict[Partition, str]:
    if state is None:
        return {}
    return {p: member.instance_id or member.client_id for member in state.members for p in member.partitions}


def _members(state: GroupState | None) -> list[str]:
    return [] if state is None else sorted(member.instance_id or member.client_id for member in state.members)


def _summed(found: list[Waiting]) -> Document:
    ages = [waiting.oldest_age_s for waiting in found if waiting.oldest_age_s is not None]
    return {
        "waiting": sum(waiting.records for waiting in found),
        "oldest_age_s": max(ages, default=None),
        "partitions": len(found),
        "owned": sum(waiting.owner is not None for waiting in found),
    }


def _partition(lane: str, waiting: Waiting) -> Document:
    return {
        "lane": lane,
        "partition": waiting.partition.number,
        "committed": waiting.committed,
        "end": waiting.end,
        "waiting": waiting.records,
        "oldest_age_s": waiting.oldest_age_s,
        "owner": waiting.owner,
    }


async def _orders(log: Log, environment: Environment, missing: list[str]) -> list[Control]:
    try:
        return await tables.orders(log, environment.names)
    except UnknownTopic:
        missing.append(environment.names.control)
        return []


async def _health(log: Log, environment: Environment, config: Config, missing: list[str], now_ms: int) -> Document:
    """Provider -> what the fleet says of it (`postlane providers` says more)."""
    now, believed_s = datetime.fromtimestamp(now_ms / 1000, UTC), config.health.hint_s or 15.0
    try:
        told = await fleet_health(log, environment.names, config.providers, now, believed_s)
    except UnknownTopic:
        missing.append(environment.names.health)
        return {}
    except LogError:  # advisory: the rest of the overview does not depend on it
        return {}
    return {one["provider"]: {name: one[name] for name in ("state", "reason", "age_s")} for one in told}


def _order(order: Control) -> Document:
    return {"action": order.action, "scope": order.scope, "name": order.name, "at": order.at, "reason": order.reason}


# ------------------------------------------------------------------------------------------------------------ ledger


async def _ledger(log: Log, environment: Environment, missing: list[str], now_ms: int) -> Document:
    """How far the fold is, with the tallies of every lane, provider and state; or why it cannot be told."""
    topic = environment.names.events
    told = await asyncio.to_thread(_ask_ledger, environment.database_url, topic)
    folded: Mapping[int, int] = told.pop("offsets", {})
    try:
        partitions = [Partition(topic, number) for number in range(await log.partition_count(topic))]
        ends, begins = await asyncio.gather(log.high_watermarks(partitions), log.low_watermarks(partitions))
    except UnknownTopic:
        missing.append(topic)
        return told
    if "error" not in told:
        behind = 0
        for partition in partitions:
            start = max(begins[partition], folded.get(partition.number, 0))
            if start < ends[partition]:
                behind += (await _look(log, partition, start, ends[partition], now_ms))[0]
        told["behind"] = behind
    return told


def _ask_ledger(url: str, topic: str) -> Document:
    try:
        from postlane.ops import books
    except ModuleNotFoundError as error:
        return {"error": f"{error.name} is not installed: pip install 'postlane[ledger]'"}
    from postlane.ops.books_database import DatabaseRefused, DatabaseUnavailable

    try:
        return {
            "behind": 0,
            "mails": sum(row["n"] for row in books.mails(url)),
            "oldest_open": {row["lane"]: row["requested_at"] for row in books.oldest_open(url)},
            "tallies": books.counts(url, ("lane", "provider", "state")),
            "offsets": books.offsets(url, topic),
        }
    except (ConfigurationError, DatabaseUnavailable, DatabaseRefused) as error:
        return {"error": str(error)}


def _standing(tallies: list[Document]) -> Document:
    """The tallies by state, by lane and state, by provider and state."""
    told: Document = {"states": {}, "lanes": {}, "providers": {}}
    for row in tallies:
        state, count = row["state"], row["n"]
        told["states"][state] = told["states"].get(state, 0) + count
        for kind, name in (("lanes", row["lane"]), ("providers", row["provider"])):
            if name:
                of_one = told[kind].setdefault(name, {})
                of_one[state] = of_one.get(state, 0) + count
    return told
