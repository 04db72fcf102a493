"""Checks of who serves what: members of the groups, their positions beside the books, our own rights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

from postlane.config import Environment
from postlane.core.policy import Config
from postlane.eventlog.admin_groups import GroupState
from postlane.eventlog.ports import Committed, Log, Partition
from postlane.eventlog.topics import TopicNames
from postlane.ops.acls import Acl, Identity, acls
from postlane.ops.doctor.check import Check, fail, ok, skip, warn

SHOWN_MAX = 4


class Admin(Protocol):
    """What these checks ask of a cluster (KafkaAdmin)."""

    async def groups(self, names: Collection[str]) -> Mapping[str, GroupState]: ...

    async def group_offsets(self, group: str, partitions: Collection[Partition]) -> Mapping[Partition, Committed]: ...

    async def topic_rights(self, topics: Collection[str]) -> Mapping[str, frozenset[str]]: ...

    async def group_rights(self, groups: Collection[str]) -> Mapping[str, frozenset[str]]: ...


# ------------------------------------------------------------------------------------------------------------ members


async def member_checks(admin: Admin, environment: Environment, config: Config) -> Sequence[Check]:
    """Who is there, for the router and for each lane."""
    names = environment.names
    wanted = {"router": names.router_group, **{f"sender of {lane}": names.sender_group(lane) for lane in config.lanes}}
    wanted["ledger"] = f"{environment.topic_prefix}ledger"
    groups = await admin.groups(list(wanted.values()))
    served = {service: groups.get(group) for service, group in wanted.items()}
    checks = [service_check(service, group, config.topics.partitions) for service, group in served.items()]
    return [*checks, *identity_checks(served)]


def service_check(service: str, group: GroupState | None, partitions: int) -> Check:
    """Whether anyone serves, and whether too many do."""
    count = 0 if group is None else len(group.members)
    if count == 0:
        do = f"start python -m postlane_{service.split()[0]}; if it runs, its log and /readyz say why it is not in"
        return warn("service-running", "none is in the group", do, service)
    if count > partitions:
        found = f"{count} run, {count - partitions} of them have nothing to do"
        return warn("service-idle", found, f"run at most {partitions} (topics.partitions)", service)
    return ok("service-running", f"{count} in the group", service)


def identity_checks(served: Mapping[str, GroupState | None]) -> Iterator[Check]:
    """Instance ids: everyone has one, and it is one machine's."""
    hosts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for service, group in served.items():
        for member in group.members if group is not None else ():
            if member.instance_id is None:
                do = "set POSTLANE_INSTANCE_ID; a member without one is no Postlane service, or an old one"
                yield warn("member-static", f"{member.client_id} at {member.host} has no instance id", do, service)
            else:
                hosts[service.split()[0], member.instance_id].add(member.host)
    for (service, instance), where in sorted(hosts.items()):
        if len(where) > 1:
            do = "give each its own POSTLANE_INSTANCE_ID"
            found = f"{instance} is a {service} on {', '.join(sorted(where)[:SHOWN_MAX])}"
            yield fail("member-shared", found, do, instance)


# ---------------------------------------------------------------------------------------------------------- positions


async def position_checks(log: Log, admin: Admin, environment: Environment, config: Config) -> Sequence[Check]:
    """A sender that would have to guess refuses to start; better to hear it here first."""
    checks: list[Check] = []
    names = environment.names
    for lane in config.lanes:
        topic = names.dispatch(lane)
        partitions = [Partition(topic, number) for number in range(await log.partition_count(topic))]
        states = [Partition(names.state(lane), p.number) for p in partitions]
        committed = await admin.group_offsets(names.sender_group(lane), partitions)
        begins = await log.low_watermarks([*partitions, *states])
        ends = await log.high_watermarks(states)
        checks += lane_positions(lane, partitions, states, committed, begins, ends)
    return checks


def lane_positions(
    lane: str,
    partitions: Sequence[Partition],
    states: Sequence[Partition],
    committed: Mapping[Partition, Committed],
    begins: Mapping[Partition, int],
    ends: Mapping[Partition, int],
) -> Iterator[Check]:
    """What the positions of a lane say beside its books."""
    lost = [p.number for p, s in zip(partitions, states, strict=True) if p not in committed and ends[s] > begins[s]]
    gone = [p.number for p in partitions if p in committed and committed[p].offset < begins[p]]
    if lost:
        do = "go on by the books, never reset offsets by hand (docs/runbooks/offsets-lost.md)"
        yield fail("offsets-lost", f"partitions {_few(lost)} have books but no committed offset", do, lane)
    if gone:
        do = "raise topics.dispatch_days, and replay what retention took (postlane replay --since …)"
        yield fail("offsets-below-log", f"partitions {_few(gone)} are committed below the start of their log", do, lane)
    if not lost and not gone:
        yield ok("offsets-lost", f"{len(committed)} of {len(partitions)} partitions have been served", lane)


def _few(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:SHOWN_MAX]))
    return shown + (f" and {len(numbers) - SHOWN_MAX} more" if len(numbers) > SHOWN_MAX else "")


# ------------------------------------------------------------------------------------------------------------- rights


async def right_checks(admin: Admin, names: TopicNames, config: Config, identity: Identity) -> Sequence[Check]:
    """Whether whoever runs this may do what `identity` needs (postlane.ops.acls)."""
    needed = [acl for acl in acls(names, tuple(config.lanes), (identity,)) if acl.pattern == "literal"]
    topics = await admin.topic_rights([acl.name for acl in needed if acl.resource == "topic"])
    groups = await admin.group_rights([acl.name for acl in needed if acl.resource == "group"])
    return [rights_check(identity, needed, {"topic": topics, "group": groups})]


def rights_check(identity: Identity, needed: Sequence[Acl], held: Mapping[str, Mapping[str, frozenset[str]]]) -> Check:
    """What is missing; topics that do not exist are another check's."""
    lacking = []
    for acl in needed:
        mine = held.get(acl.resource, {}).get(acl.name)
        if mine is None:
            continue
        for operation in acl.operations:
            if operation not in mine and "All" not in mine and not _implied(operation, mine):
                lacking.append(f"{operation} on {acl.resource} {acl.name} ({acl.why})")
    if not any(held.values()):
        return skip("missing-acl", "there is nothing to be asked about yet", "", identity)
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        do = f"grant it; `postlane topics plan --acls` shows all that the {identity} needs"
        return fail("missing-acl", f"no {lacking[0]}{more}", do, identity)
    return ok("missing-acl", "this user may do all that it needs", identity)


def _implied(operation: str, held: frozenset[str]) -> bool:
    """Kafka's AclEntry: Read, Write, Delete and Alter include Describe, AlterConfigs includes DescribeConfigs."""
    if operation == "Describe":
        return bool(held & {"Read", "Write", "Delete", "Alter"})
    return operation == "DescribeConfigs" and "AlterConfigs" in held
