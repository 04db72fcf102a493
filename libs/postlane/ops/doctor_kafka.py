"""Checks that ask the Kafka cluster: brokers, topics, what the books rely on, who serves what."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from postlane.config import Environment
from postlane.core.policy import Config
from postlane.eventlog.admin import ClusterState, GroupState, KafkaAdmin, TopicState
from postlane.eventlog.errors import LogError, OptionRefused, Unreachable
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.kafka_config import TRANSACTION_TIMEOUT_MS
from postlane.eventlog.ports import Partition
from postlane.ops.checks import Check, fail, ok, skip, warn
from postlane.ops.topics import REPLICATION_WANTED, Declared, Difference, plan

DAY_MIN = 1440
REACHABLE = "kafka reachable"
_BROKER_OPTIONS = (
    "offsets.retention.minutes",
    "transaction.max.timeout.ms",
    "auto.create.topics.enable",
    "unclean.leader.election.enable",
    "log.cleaner.enable",
)


async def kafka_checks(environment: Environment, config: Config) -> tuple[Check, ...]:
    """Every check of the cluster; one that cannot be asked says so and does not hide the others."""
    try:
        log = KafkaLog(environment.bootstrap_servers, environment.kafka, "postlane-doctor")
    except OptionRefused as error:
        return (skip(REACHABLE, f"not tried: {error}"),)
    try:
        try:
            cluster = await log.admin.cluster()
        except LogError as error:
            do = "start Kafka, or correct POSTLANE_BOOTSTRAP_SERVERS and the POSTLANE_KAFKA_ credentials"
            return (fail(REACHABLE, f"{environment.bootstrap_servers}: {error}", do),)
        found = [_brokers(environment, cluster)]
        for name, ask in _questions(log, environment, config, cluster):
            found += await _asked(name, ask)
        return tuple(found)
    finally:
        await log.close()


_Ask = Callable[[], Awaitable[Sequence[Check]]]


def _questions(
    log: KafkaLog, environment: Environment, config: Config, cluster: ClusterState
) -> Iterator[tuple[str, _Ask]]:
    yield "broker options", lambda: _options(log.admin, config, cluster)
    yield "topics", lambda: _topics(log.admin, environment, config)
    yield "books", lambda: _books(log, environment, config)
    yield "services", lambda: _services(log.admin, environment, config)


async def _asked(name: str, ask: _Ask) -> Sequence[Check]:
    try:
        return await ask()
    except Unreachable as error:
        return [fail(REACHABLE, f"while asking for {name}: {error}", "see whether the brokers stay up")]
    except LogError as error:
        return [skip(name, str(error), "give this user Describe and DescribeConfigs rights, then ask again")]


def _brokers(environment: Environment, cluster: ClusterState) -> Check:
    count = len(cluster.brokers)
    if count < REPLICATION_WANTED:
        do = f"run {REPLICATION_WANTED} brokers where losing one disk must not lose mails"
        return warn(REACHABLE, f"{environment.bootstrap_servers} answers; {count} broker{'s' * (count != 1)}", do)
    return ok(REACHABLE, f"{environment.bootstrap_servers} answers; {count} brokers")


async def _options(admin: KafkaAdmin, config: Config, cluster: ClusterState) -> Sequence[Check]:
    told = await admin.broker_config(cluster.brokers[0].id, _BROKER_OPTIONS)
    return option_checks(told, config.topics.dispatch_days)


def option_checks(told: Mapping[str, str], dispatch_days: float) -> list[Check]:
    """What a broker's options mean for the books."""
    checks = []
    minutes = int(told.get("offsets.retention.minutes", "10080"))
    needed = int(dispatch_days * DAY_MIN)
    name = "offsets.retention.minutes"
    if minutes <= needed:
        do = f"set {name} on the brokers above {needed}: an idle group would forget where it stands"
        checks.append(fail(name, f"{minutes}, but dispatch records are kept {needed} minutes", do))
    else:
        checks.append(ok(name, f"{minutes} > {needed} (dispatch retention)"))
    longest = int(told.get("transaction.max.timeout.ms", "900000"))
    name = "transaction.max.timeout.ms"
    if longest < TRANSACTION_TIMEOUT_MS:
        do = (
            f"set {name} on the brokers to {TRANSACTION_TIMEOUT_MS} or more: the services could not begin a transaction"
        )
        checks.append(fail(name, f"{longest}, but transactions ask for {TRANSACTION_TIMEOUT_MS}", do))
    else:
        checks.append(ok(name, str(longest)))
    if told.get("auto.create.topics.enable", "").lower() == "true":
        do = "set auto.create.topics.enable=false: a misspelt prefix would make topics with the wrong settings"
        checks.append(warn("auto.create.topics.enable", "true", do))
    if told.get("unclean.leader.election.enable", "").lower() == "true":
        do = "set unclean.leader.election.enable=false: acknowledged mails could be lost"
        checks.append(fail("unclean.leader.election.enable", "true", do))
    if told.get("log.cleaner.enable", "").lower() == "false":
        checks.append(fail("log.cleaner.enable", "false", "set it to true: the compact topics would grow for ever"))
    return checks


async def _topics(admin: KafkaAdmin, environment: Environment, config: Config) -> Sequence[Check]:
    want, found = await plan(admin, environment.names, config)
    actual = await admin.topics([spec.name for spec in want.specs])
    return [*declaration_checks(want, found), *_replicas(actual), *_one_number(environment, config, actual)]


def declaration_checks(want: Declared, found: Sequence[Difference]) -> list[Check]:
    """The differences as checks: what is missing or refused fails, options that differ are worth a warning."""
    if not found:
        return [ok("topics", f"all {len(want.specs)} as declared")]
    checks = []
    missing = [d.topic for d in found if d.action == "create"]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        checks.append(fail("topics", f"missing: {shown}", "run `postlane topics apply`"))
    for d in found:
        if d.action == "refuse":
            checks.append(fail(f"topic {d.topic}", f"{d.setting} is {d.actual}, declared {d.declared}", d.why))
        elif d.action == "by_hand":
            checks.append(warn(f"topic {d.topic}", f"{d.setting} is {d.actual}, declared {d.declared}", d.why))
        elif d.action == "alter":
            seen = f"{d.setting} is {d.actual or 'not set'}, declared {d.declared}"
            verdict = fail if d.setting in ("cleanup.policy", "min.insync.replicas") else warn
            checks.append(verdict(f"topic {d.topic}", seen, "run `postlane topics apply`"))
    return checks


def _replicas(actual: Mapping[str, TopicState]) -> Iterator[Check]:
    offline = [name for name, state in actual.items() if state.offline]
    behind = [name for name, state in actual.items() if state.under_replicated]
    if offline:
        yield fail("replicas", f"{offline[0]} has partitions without a leader", "bring the lost brokers back")
    elif behind:
        do = "look at the brokers that are behind or down"
        yield warn("replicas", f"{len(behind)} topics have replicas out of sync, e.g. {behind[0]}", do)
    else:
        yield ok("replicas", "every partition has its leader, and all replicas are in sync")


def _one_number(environment: Environment, config: Config, actual: Mapping[str, TopicState]) -> Iterator[Check]:
    names = environment.names
    per_lane = [topic for lane in config.lanes for topic in (names.dispatch(lane), names.state(lane))]
    must = [names.requests, names.seen, names.events, *names.delays, *per_lane]
    counts = {topic: actual[topic].partitions for topic in must if topic in actual}
    if len(set(counts.values())) > 1:
        few, many = min(counts, key=lambda t: counts[t]), max(counts, key=lambda t: counts[t])
        found = f"{few} has {counts[few]}, {many} has {counts[many]}"
        do = "move to new topics with one number under another POSTLANE_TOPIC_PREFIX: a mail keeps its partition"
        yield fail("partition numbers", found, do)


async def _books(log: KafkaLog, environment: Environment, config: Config) -> Sequence[Check]:
    """A sender that would have to guess refuses to start; better to hear it here first."""
    checks: list[Check] = []
    names = environment.names
    for lane in config.lanes:
        topic, state = names.dispatch(lane), names.state(lane)
        partitions = [Partition(topic, number) for number in range(await log.partition_count(topic))]
        states = [Partition(state, p.number) for p in partitions]
        committed = await log.admin.group_offsets(names.sender_group(lane))
        begins = await log.low_watermarks([*partitions, *states])
        ends = await log.high_watermarks(states)
        gone = [p.number for p in partitions if p in committed and committed[p].offset < begins[p]]
        lost = [p.number for p, s in zip(partitions, states, strict=True) if p not in committed and ends[s] > begins[s]]
        name = f"books of {lane}"
        if lost:
            do = "restore the group's offsets from a backup; do not reset them by hand (docs/runbooks)"
            checks.append(fail(name, f"partition {lost[0]} has books but no committed offset", do))
        elif gone:
            do = "raise topics.dispatch_days, and replay what retention took (postlane replay --since …)"
            checks.append(fail(name, f"partition {gone[0]} is committed below the start of its log", do))
        else:
            checks.append(ok(name, f"{len(committed)} of {len(partitions)} partitions have been served"))
    return checks


async def _services(admin: KafkaAdmin, environment: Environment, config: Config) -> Sequence[Check]:
    names = environment.names
    wanted = {"router": names.router_group, **{f"sender {lane}": names.sender_group(lane) for lane in config.lanes}}
    groups = await admin.groups(list(wanted.values()))
    return [_service(service, groups.get(group), config.topics.partitions) for service, group in wanted.items()]


def _service(service: str, group: GroupState | None, partitions: int) -> Check:
    count = 0 if group is None else len(group.members)
    if count == 0:
        return warn(f"service {service}", "none is running", f"start python -m postlane_{service.split()[0]}")
    if count > partitions:
        do = "run no more than there are partitions"
        return warn(f"service {service}", f"{count} run, {count - partitions} of them have nothing to do", do)
    return ok(f"service {service}", f"{count} in the group")
