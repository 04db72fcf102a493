"""Checks of the brokers: whether they answer, how many, the options that the books rely on, their clocks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from postlane.eventlog.admin import ClusterState
from postlane.eventlog.kafka_config import TRANSACTION_TIMEOUT_MS
from postlane.eventlog.ports import Committed, Partition
from postlane.eventlog.topics import RECORD_MAX_BYTES
from postlane.ops.doctor.check import Check, fail, ok, warn
from postlane.ops.topics import REPLICATION_WANTED

DAY_MIN = 1440
CLOCK_WARN_MS = 1_000
CLOCK_FAIL_MS = 5_000
OFFSETS_TOPIC = "__consumer_offsets"
BROKER_OPTIONS = (
    "offsets.retention.minutes",
    "transaction.max.timeout.ms",
    "message.max.bytes",
    "auto.create.topics.enable",
    "unclean.leader.election.enable",
    "log.cleaner.enable",
    "authorizer.class.name",
)


class Admin(Protocol):
    """What these checks ask of a cluster (KafkaAdmin)."""

    async def broker_config(self, broker: int, names: Collection[str]) -> Mapping[str, str]: ...

    async def partition_count(self, topic: str) -> int: ...

    async def set_group_offsets(self, group: str, positions: Mapping[Partition, Committed]) -> None: ...

    async def newest_timestamps(self, partitions: Collection[Partition]) -> Mapping[Partition, int]: ...


def count_checks(where: str, cluster: ClusterState) -> list[Check]:
    """That they answer, and how many there are."""
    count = len(cluster.brokers)
    checks = [ok("kafka-reachable", f"{where} answers; {count} broker{'s' * (count != 1)}")]
    if count < REPLICATION_WANTED:
        do = f"run {REPLICATION_WANTED} brokers where losing one disk must not lose mails"
        checks.append(warn("broker-count", f"{count} broker{'s' * (count != 1)}", do))
    return checks


async def option_checks(admin: Admin, cluster: ClusterState, dispatch_days: float) -> Sequence[Check]:
    """The options of every broker; what one has wrong is told once, with its number."""
    found: dict[tuple[str, str], Check] = {}
    for broker in cluster.brokers:
        told = await admin.broker_config(broker.id, BROKER_OPTIONS)
        for check in checks_of_options(told, dispatch_days, f"broker {broker.id}"):
            found.setdefault((check.name, check.verdict), check)
    wrong = {name for name, verdict in found if verdict != "ok"}
    return [check for (name, verdict), check in found.items() if verdict != "ok" or name not in wrong]


def checks_of_options(told: Mapping[str, str], dispatch_days: float, about: str = "") -> list[Check]:
    """What a broker's options mean for the books."""
    checks = [
        _offsets_retention(int(told.get("offsets.retention.minutes", "10080")), dispatch_days, about),
        _transactions(int(told.get("transaction.max.timeout.ms", "900000")), about),
    ]
    largest = int(told.get("message.max.bytes", str(RECORD_MAX_BYTES)))
    if largest < RECORD_MAX_BYTES // 2:  # topics carry their own limit; this one is for those that do not
        do = f"set message.max.bytes on the brokers to {RECORD_MAX_BYTES}"
        checks.append(warn("broker-message-size", f"{largest}, a record may have {RECORD_MAX_BYTES} bytes", do, about))
    if told.get("auto.create.topics.enable", "").lower() == "true":
        do = "set auto.create.topics.enable=false on the brokers"
        checks.append(warn("auto-create-topics", "auto.create.topics.enable is true", do, about))
    if told.get("unclean.leader.election.enable", "").lower() == "true":
        do = "set unclean.leader.election.enable=false on the brokers"
        checks.append(fail("unclean-election", "unclean.leader.election.enable is true", do, about))
    if told.get("log.cleaner.enable", "").lower() == "false":
        do = "set log.cleaner.enable=true on the brokers"
        checks.append(fail("log-cleaner", "log.cleaner.enable is false", do, about))
    if told.get("authorizer.class.name") == "":
        do = "set an authorizer and the rights that `postlane topics plan --acls` shows"
        checks.append(warn("authorizer", "none: whoever connects may do everything", do, about))
    return checks


def _offsets_retention(minutes: int, dispatch_days: float, about: str) -> Check:
    name, needed = "offsets-retention", int(dispatch_days * DAY_MIN)
    if minutes <= needed:
        do = f"set offsets.retention.minutes on the brokers above {needed}"
        found = f"offsets.retention.minutes is {minutes}, dispatch records are kept {needed} minutes"
        return fail(name, found, do, about)
    return ok(name, f"{minutes} minutes > {needed} (dispatch retention)")


def _transactions(longest_ms: int, about: str) -> Check:
    name = "transaction-timeout"
    if longest_ms < TRANSACTION_TIMEOUT_MS:
        do = f"set transaction.max.timeout.ms on the brokers to {TRANSACTION_TIMEOUT_MS} or more"
        found = f"transaction.max.timeout.ms is {longest_ms}, transactions ask for {TRANSACTION_TIMEOUT_MS}"
        return fail(name, found, do, about)
    return ok(name, f"up to {longest_ms} ms, {TRANSACTION_TIMEOUT_MS} asked for")


# ------------------------------------------------------------------------------------------------------------- clocks


async def broker_now_ms(admin: Admin, group: str, anywhere: Partition) -> int:
    """What time a broker has it, in ms since 1970. A committed position is stamped by the broker that keeps it, so
    one is committed for `group`, which nobody else uses, and its stamp looked up."""
    await admin.set_group_offsets(group, {anywhere: Committed(0, "")})
    keeper = Partition(OFFSETS_TOPIC, java_hash(group) % await admin.partition_count(OFFSETS_TOPIC))
    return (await admin.newest_timestamps([keeper]))[keeper]


def java_hash(text: str) -> int:
    """|String.hashCode()| as brokers count it: which partition keeps the positions of a group."""
    value = 0
    for character in text:
        value = (31 * value + ord(character)) & 0xFFFFFFFF
    return 0 if value == 0x80000000 else value if value < 0x80000000 else 0x100000000 - value


def broker_clock_check(broker_ms: int, before_ms: int, after_ms: int) -> Check:
    """`broker_ms` was told between the two readings of our own clock."""
    off_ms = broker_ms - after_ms if broker_ms > after_ms else min(0, broker_ms - before_ms)
    return _clock("broker-clock", off_ms, "the broker's clock", "")


def record_clock_check(newest: Mapping[Partition, int], now_ms: int) -> Check:
    """The newest record of any topic must not be from the future."""
    late = max(newest, key=lambda partition: newest[partition], default=None)
    if late is None or newest[late] <= now_ms + CLOCK_WARN_MS:
        return ok("record-clock", "no record is from the future")
    return _clock("record-clock", newest[late] - now_ms, "whoever wrote it", late.topic)


def _clock(name: str, off_ms: int, whose: str, about: str) -> Check:
    seconds = abs(off_ms) / 1000
    if abs(off_ms) <= CLOCK_WARN_MS:
        return ok(name, f"within {CLOCK_WARN_MS / 1000:g} s of this machine's")
    found = f"{seconds:.1f} s {'ahead of' if off_ms > 0 else 'behind'} this machine's clock ({whose})"
    verdict = fail if abs(off_ms) >= CLOCK_FAIL_MS else warn
    return verdict(name, found, "keep every machine's clock with NTP (chrony, systemd-timesyncd)", about)
