"""The group coordinator of the in-memory log: classic protocol, eager range, static members, stable offsets.

A rebalance waits until every known member has joined again, or until those that do not are expired; the generation
rises when it completes. Fencing is per member, never per partition: who is in the current generation may commit
anything. Nothing here awaits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from postlane.eventlog.ports import Committed, Partition

if TYPE_CHECKING:
    from postlane.eventlog.memory_broker import MemoryCluster


class UnknownMember(Exception):
    """The group does not know this member id (any more)."""


class IllegalGeneration(Exception):
    """The member's generation is over."""


class InstanceFenced(Exception):
    """Another member has taken this instance id over."""


class Token(NamedTuple):
    """What a member shows when it commits."""

    group: str
    generation: int
    member_id: str
    instance_id: str | None = None


class Assignment(NamedTuple):
    generation: int
    partitions: frozenset[Partition]


@dataclass(slots=True)
class GroupMember:
    id: str
    instance_id: str | None
    client_id: str
    topics: tuple[str, ...]
    joined: bool = True  # since the rebalance in progress began
    timer: asyncio.TimerHandle | None = None  # runs while nobody sends heartbeats for it


class Group:
    """One consumer group."""

    def __init__(self, name: str, cluster: MemoryCluster) -> None:
        self.name = name
        self.generation = 0
        self.preparing = False
        self.members: dict[str, GroupMember] = {}
        self.committed: dict[Partition, Committed] = {}
        self._cluster = cluster
        self._assigned: dict[str, frozenset[Partition]] = {}
        self._fenced: set[str] = set()
        self._pending: dict[int, set[Partition]] = {}
        self._deadline: asyncio.TimerHandle | None = None
        self._made = 0

    # -- membership

    def join(self, topics: Iterable[str], instance_id: str | None, client_id: str) -> str:
        """A new member id. A known instance id takes its assignment over at once, and fences its older member."""
        self._made += 1
        member = GroupMember(f"{instance_id or client_id}-{self._made}", instance_id, client_id, tuple(topics))
        old = self._instance(instance_id)
        self.members[member.id] = member
        if old is None:
            self._prepare()
            self._complete_when_all_joined()
            return member.id
        self._fenced.add(old.id)
        self._drop(old)
        self._assigned[member.id] = self._assigned.pop(old.id, frozenset())
        if old.topics != member.topics:
            self._prepare()
            member.joined = True
        self._complete_when_all_joined()
        return member.id

    def rejoin(self, member_id: str) -> None:
        """The member has let go of what it had and takes part in the rebalance."""
        self.members[member_id].joined = True
        self._complete_when_all_joined()

    def leave(self, member_id: str) -> None:
        member = self.members.get(member_id)
        if member is not None:
            self._drop(member)
            self._assigned.pop(member_id, None)
            self._prepare()
            self._complete_when_all_joined()

    def suspend(self, member_id: str) -> None:
        """Heartbeats stop: the member is removed after the session timeout, unless it revives or is replaced."""
        member = self.members.get(member_id)
        if member is not None and member.timer is None:
            loop = asyncio.get_running_loop()
            member.timer = loop.call_later(self._cluster.session_timeout_s, self.leave, member_id)

    def revive(self, member_id: str) -> None:
        member = self.members.get(member_id)
        if member is not None and member.timer is not None:
            member.timer.cancel()
            member.timer = None

    def expire(self, member_id: str) -> None:
        """As if the session had timed out now, e.g. because the network held the heartbeats of a live member."""
        self.leave(member_id)

    def rebalance(self) -> None:
        """Make everyone join again (an operator, a changed subscription, a coordinator that moved)."""
        if self.members:
            self._prepare()
            self._complete_when_all_joined()

    def must_rejoin(self, member_id: str) -> bool:
        return self.preparing and not self.members[member_id].joined

    def assignment(self, member_id: str) -> Assignment | None:
        """None while a rebalance is in progress."""
        if self.preparing:
            return None
        return Assignment(self.generation, self._assigned.get(member_id, frozenset()))

    def check_member(self, member_id: str) -> None:
        """What a heartbeat learns. Raises InstanceFenced, UnknownMember."""
        if member_id in self._fenced:
            raise InstanceFenced(f"{self.name}: {member_id} was replaced by a newer member of its instance id")
        if member_id not in self.members:
            raise UnknownMember(f"{self.name}: {member_id}")

    def check(self, token: Token) -> None:
        """What a commit is held against. Raises InstanceFenced, UnknownMember, IllegalGeneration."""
        self.check_member(token.member_id)
        if token.generation != self.generation:
            raise IllegalGeneration(f"{self.name}: generation {token.generation}, now {self.generation}")

    def _instance(self, instance_id: str | None) -> GroupMember | None:
        if instance_id is None:
            return None
        return next((m for m in self.members.values() if m.instance_id == instance_id), None)

    def _drop(self, member: GroupMember) -> None:
        self.revive(member.id)
        del self.members[member.id]

    # -- rebalancing

    def _prepare(self) -> None:
        if self.preparing:
            return
        self.preparing = True
        for member in self.members.values():
            # Someone without partitions has nothing to let go of and joins again at its next poll like the others.
            member.joined = member.id not in self._assigned
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._cluster.max_poll_interval_s, self._give_up_waiting)
        self._cluster.changed.notify()

    def _give_up_waiting(self) -> None:
        for member in [m for m in self.members.values() if not m.joined]:
            if member.instance_id is None:
                self._drop(member)
                self._assigned.pop(member.id, None)
            else:
                member.joined = True  # a static member stays until its session times out
        self._complete_when_all_joined()

    def _complete_when_all_joined(self) -> None:
        if not self.preparing or not all(m.joined for m in self.members.values()):
            return
        self.preparing = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.generation += 1
        self._assigned = self._range()
        self._cluster.changed.notify()

    def _range(self) -> dict[str, frozenset[Partition]]:
        """Range: per topic, consecutive partitions to members in order; equal topics are assigned alike."""
        owned: dict[str, set[Partition]] = {member_id: set() for member_id in self.members}
        ordered = sorted(self.members.values(), key=lambda m: (m.instance_id is None, m.instance_id or "", m.id))
        for topic in sorted({t for m in ordered for t in m.topics if t in self._cluster.topics}):
            takers = [m for m in ordered if topic in m.topics]
            count = len(self._cluster.topics[topic])
            each, extra = divmod(count, len(takers))
            first = 0
            for i, member in enumerate(takers):
                last = first + each + (i < extra)
                owned[member.id].update(Partition(topic, n) for n in range(first, last))
                first = last
        return {member_id: frozenset(partitions) for member_id, partitions in owned.items()}

    # -- offsets

    def pend(self, producer_id: int, offsets: Mapping[Partition, Committed]) -> None:
        """A transaction holds these: unstable until it ends."""
        self._pending.setdefault(producer_id, set()).update(offsets)

    def settle(self, producer_id: int, offsets: Mapping[Partition, Committed]) -> None:
        """The transaction has ended; `offsets` is what it committed."""
        self._pending.pop(producer_id, None)
        self.committed.update(offsets)

    def is_unstable(self, partition: Partition) -> bool:
        return any(partition in held for held in self._pending.values())
