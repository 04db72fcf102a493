"""Whether a cluster may be restored into: its topics, its groups, what is in it. Nothing is written here."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from postlane.core.policy import Config
from postlane.eventlog.admin import ClusterState, TopicState
from postlane.eventlog.admin_groups import GroupState
from postlane.eventlog.errors import Retriable
from postlane.eventlog.ports import Committed, Partition
from postlane.eventlog.topics import TopicNames, TopicSpec
from postlane.ops.backup.archive import Archive
from postlane.ops.backup.errors import Foreign, Refused
from postlane.ops.topics import Admin

GROUPS_TRIES_MAX = 40
GROUPS_WAIT_S = 0.5
AT_REST = frozenset({"Empty", "Dead", "Unknown"})
TABLES = ("mail.suppressions", "mail.templates", "mail.control")
ALONE = (*TABLES, "mail.events", "mail.dead-letters")  # what may be restored by itself: no position speaks of it


class Groups(Protocol):
    """Who is at work (KafkaAdmin)."""

    async def groups(self, names: Collection[str]) -> dict[str, GroupState]: ...

    async def cluster(self) -> ClusterState: ...


class Target(Admin, Groups, Protocol):
    """What a restore asks of a cluster (KafkaAdmin)."""

    async def low_watermarks(self, partitions: Collection[Partition]) -> Mapping[Partition, int]: ...

    async def set_group_offsets(self, group: str, positions: Mapping[Partition, Committed]) -> None: ...

    async def create_topics(self, specs: Collection[TopicSpec], replication: int) -> None: ...


def check_backup_fits(archive: Archive, names: TopicNames, config: Config, from_prefix: str | None) -> None:
    """Raises Foreign unless this backup is of an installation like the one that the configuration here describes."""
    manifest = archive.newest
    if manifest.prefix != (names.prefix if from_prefix is None else from_prefix):
        raise Foreign(
            f"backup {manifest.ident} is of the installation with the prefix {manifest.prefix!r}, not "
            f"{names.prefix if from_prefix is None else from_prefix!r}; to restore it under another one, say "
            f"--from-prefix {manifest.prefix!r}"
        )
    missing = sorted(set(manifest.lanes) - set(config.lanes))
    if missing:
        raise Foreign(f"backup {manifest.ident} has lanes that postlane.yaml here has not: {', '.join(missing)}")
    counts = {count for topic, count in archive.topics.items() if topic not in ("mail.templates", "mail.control")}
    if counts != {config.topics.partitions}:
        raise Foreign(
            f"backup {manifest.ident} has {'/'.join(map(str, sorted(counts)))} partitions, postlane.yaml here declares "
            f"{config.topics.partitions}; a mail keeps its partition number: set topics.partitions accordingly"
        )


def check_alone(topics: Sequence[str]) -> None:
    """Raises Refused for topics that cannot be restored by themselves."""
    for topic in topics:
        if topic not in ALONE:
            raise Refused(
                f"--topic {topic}: positions and books speak of each other, so it is restored with everything or not "
                f"at all; by themselves: {', '.join(ALONE)}"
            )


async def check_at_rest(admin: Groups, names: TopicNames, config: Config) -> None:
    """Raises Refused while routers or senders are members of their groups."""
    groups = [names.router_group, *(names.sender_group(lane) for lane in config.lanes)]
    for group, state in (await _asked(admin, groups)).items():
        if state.members or state.state not in AT_REST:
            who = ", ".join(sorted(member.client_id for member in state.members)) or state.state
            raise Refused(
                f"group {group} is at work ({who}): stop routers and senders first (a group knows its "
                "members for up to 10 s after they ended)"
            )


async def _asked(admin: Groups, groups: Collection[str]) -> dict[str, GroupState]:
    """In a new cluster the first question about a group makes the topic of groups, which can take long."""
    await admin.cluster()  # one that is not there is not asked again and again
    for left in reversed(range(GROUPS_TRIES_MAX)):
        try:
            return await admin.groups(groups)
        except Retriable:
            if not left:
                raise
        await asyncio.sleep(GROUPS_WAIT_S)
    raise AssertionError("unreachable")


async def check_topics(
    admin: Target, names: TopicNames, archive: Archive, topics: Sequence[str], resuming: bool
) -> list[str]:
    """The topics that are missing. Raises Foreign (partitions), Refused (something is in them)."""
    full = {f"{names.prefix}{topic}": topic for topic in topics}
    there: Mapping[str, TopicState] = await admin.topics(full)
    for name, state in there.items():
        wanted = archive.topics[full[name]]
        if state.partitions != wanted:
            raise Foreign(f"{name} has {state.partitions} partitions here, {wanted} in the backup")
    partitions = [Partition(name, number) for name, state in there.items() for number in range(state.partitions)]
    low, high = await admin.low_watermarks(partitions), await admin.high_watermarks(partitions)
    filled = sorted({p.topic for p in partitions if high[p] > low[p] and full[p.topic] != "mail.control"})
    if filled and not resuming:
        raise Refused(
            f"not empty here: {', '.join(filled)}; a restore goes into empty topics: use another cluster or another "
            "POSTLANE_TOPIC_PREFIX (with --from-prefix)"
        )
    return sorted(set(full) - set(there))
