"""A small installation on the log in memory, written by hand, with what a backup asks of a cluster around it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from postlane.core.identity import delivery_id, message_id_from_key
from postlane.core.policy import Config, Topics
from postlane.eventlog.admin import Broker, ClusterState, TopicState
from postlane.eventlog.admin_groups import GroupState
from postlane.eventlog.memory import MemoryCluster, MemoryLog
from postlane.eventlog.ports import Committed, Outgoing, Partition, Received, Transaction
from postlane.eventlog.topics import TopicNames, TopicSpec, declare
from postlane.ops.backup.archive import Archive
from postlane.ops.backup.catalogue import read_catalogue
from postlane.ops.backup.encrypt import Vault
from postlane.ops.backup.pending import Manner
from postlane.ops.backup.restore import Plan, Restorer
from postlane.ops.backup.store import DirectoryStore, Store
from postlane.ops.backup.take import Taken, Taker, Wishes

PARTITIONS = 2
CONFIG = Config(topics=Topics(partitions=PARTITIONS))
NOW = datetime(2026, 2, 1, 12, tzinfo=UTC)
NAMES = TopicNames("a.")
LANE = "transactional"


class MemoryAdmin:
    """Fills what `plan.Watch` and `target.Target` ask for; groups have no members unless `members` says so."""

    def __init__(self, log: MemoryLog, cluster_id: str = "one") -> None:
        self.log = log
        self.cluster_id = cluster_id
        self.positions: dict[str, dict[Partition, Committed]] = {}
        self.members: set[str] = set()

    async def partition_count(self, topic: str) -> int:
        return await self.log.partition_count(topic)

    async def high_watermarks(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        return dict(await self.log.high_watermarks(partitions))

    async def low_watermarks(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        return dict(await self.log.low_watermarks(partitions))

    async def last_stable_offsets(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        return {p: self.log.cluster.log(p).last_stable for p in partitions}

    async def offsets_at(self, partitions: Collection[Partition], unix_ms: int) -> dict[Partition, int]:
        return dict(await self.log.offsets_at(partitions, unix_ms))

    async def group_offsets(
        self, group: str, partitions: Collection[Partition], *, stable: bool = False
    ) -> Mapping[Partition, Committed]:
        return {p: c for p, c in self.positions.get(group, {}).items() if p in partitions}

    async def set_group_offsets(self, group: str, positions: Mapping[Partition, Committed]) -> None:
        self.positions.setdefault(group, {}).update(positions)

    async def groups(self, names: Collection[str]) -> dict[str, GroupState]:
        return {name: GroupState(name, "Stable" if name in self.members else "Empty") for name in names}

    async def topics(self, names: Iterable[str] | None = None) -> dict[str, TopicState]:
        there = self.log.cluster.topics
        wanted = there if names is None else [name for name in names if name in there]
        return {name: TopicState(name, len(there[name]), 1, {}) for name in wanted}

    async def create_topics(self, specs: Collection[TopicSpec], replication: int) -> None:
        self.log.cluster.create_topics(specs)

    async def set_topic_config(self, topic: str, config: Mapping[str, str]) -> None:
        """Nothing here has options."""

    async def cluster(self) -> ClusterState:
        return ClusterState(self.cluster_id, 0, (Broker(0, "h", 1),))


class Installation:
    """Topics with records that a test puts there, positions, backups and restores."""

    def __init__(self, names: TopicNames = NAMES, cluster_id: str = "one", *, made: bool = True) -> None:
        self.names = names
        self.log = MemoryLog(MemoryCluster())
        self.admin = MemoryAdmin(self.log, cluster_id)
        if made:
            self.log.cluster.create_topics(declare(names, tuple(CONFIG.lanes), CONFIG.topics))

    async def put(
        self, topic: str, number: int, *records: tuple[bytes, Any], at: datetime = NOW, ident: str | None = None
    ) -> int:
        """Records of one transaction; the offset of the first."""
        full = f"{self.names.prefix}{topic}"
        first = (await self.log.high_watermarks([Partition(full, number)]))[Partition(full, number)]
        transactor = await self.log.transactor("test")
        made = [
            Outgoing(
                full,
                number,
                key,
                _bytes(value),
                [("ce_id", ident.encode() if ident else key), ("n", b"")],
                int(at.timestamp() * 1000),
            )
            for key, value in records
        ]
        await transactor.commit(Transaction(made, {}, None))
        await transactor.close()
        return first

    def sender(self, number: int, low_water: int, floor: int, lane: str = LANE) -> None:
        topic = Partition(self.names.dispatch(lane), number)
        self.admin.positions.setdefault(self.names.sender_group(lane), {})[topic] = Committed(low_water, f"S1:{floor}")

    def router(self, topic: str, number: int, offset: int) -> None:
        full = Partition(f"{self.names.prefix}{topic}", number)
        self.admin.positions.setdefault(self.names.router_group, {})[full] = Committed(offset, "")

    def records(self, topic: str, number: int) -> list[Received]:
        """What is committed."""
        entries = self.log.cluster.log(Partition(f"{self.names.prefix}{topic}", number)).fetch
        start = self.log.cluster.log(Partition(f"{self.names.prefix}{topic}", number)).start
        return entries(start, 1_000_000, committed=True)[0]

    async def backup(
        self, store: Store, at: datetime = NOW, vault: Vault | None = None, token: str = "t", **wishes: Any
    ) -> Taken:
        taker = Taker(
            self.log,
            self.admin,
            self.names,
            CONFIG,
            self.admin.cluster_id,
            "0",
            store,
            vault or Vault(None),
            token,
            lambda: at,
        )
        return await taker.take(Wishes(**wishes))

    def restorer(self, archive: Archive, log: Any = None) -> Restorer:
        return Restorer(log or self.log, self.admin, self.names, CONFIG, archive)

    async def restore(
        self, archive: Archive, manner: Manner = Manner.UNCERTAIN, at: datetime = NOW + timedelta(hours=1)
    ) -> Plan:
        restorer = self.restorer(archive)
        made = await restorer.look(list(archive.topics), manner, at)
        await restorer.run(made)
        return made


def archive_of(store: Store, vault: Vault | None = None, to: datetime | None = None) -> Archive:
    vault = vault or Vault(None)
    catalogue = read_catalogue(store, vault)
    return Archive(store, vault, catalogue.chain(catalogue.before(to)))


def directory(path: Path) -> DirectoryStore:
    return DirectoryStore(path)


def message(key: str) -> str:
    return message_id_from_key("default", key)


def delivery(key: str, generation: int = 0) -> str:
    return delivery_id(message(key), f"{key}@example.com", generation)


def request(key: str) -> tuple[bytes, Any]:
    ident = message(key)
    body = {
        "message_id": ident,
        "sender": "shop@example.org",
        "to": [f"{key}@example.com"],
        "text": "x",
        "requested_at": NOW.isoformat(),
        "key": key,
    }
    return ident.encode(), body


def ready(key: str, hop: int = 0, lane: str = LANE, due_at: datetime | None = None, **more: Any) -> tuple[bytes, Any]:
    body = {
        "delivery_id": delivery(key),
        "message_id": message(key),
        "recipient": f"{key}@example.com",
        "hop": hop,
        "lane": lane,
        "requested_at": NOW.isoformat(),
        "content": {"sender": "shop@example.org", "to": [f"{key}@example.com"], "text": "x"},
        **more,
    }
    if due_at is not None:
        body["due_at"] = due_at.isoformat()
    return message(key).encode(), body


def state(kind: str, key: str, hop: int = 0, offset: int = 0, **more: Any) -> tuple[bytes, Any]:
    body = {"kind": kind, "delivery_id": delivery(key), "hop": hop, "offset": offset, "at": NOW.isoformat(), **more}
    if kind == "intent":
        body |= {"attempt": 1, "instance": "s-1", "boot": "b1", "ttl_ms": 7000}
    else:
        body |= {"result": more.get("result", "Delivered")}
    return f"{delivery(key)}#{hop}".encode(), body


def event(kind: str, key: str, hop: int = 0, **more: Any) -> tuple[bytes, Any]:
    ids = {"message_id": message(key), "delivery_id": delivery(key), "recipient": f"{key}@example.com"}
    return message(key).encode(), {"type": kind, **ids, "hop": hop, "at": NOW.isoformat(), **more}


def seen(key: str) -> tuple[bytes, Any]:
    return message(key).encode(), {"digest": "ab" * 16, "at": NOW.isoformat()}


def _bytes(value: Any) -> bytes | None:
    return value if value is None or isinstance(value, bytes) else orjson.dumps(value)


def ran(coroutine: Any) -> Any:
    return asyncio.run(coroutine)
