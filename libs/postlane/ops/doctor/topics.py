"""Checks of the topics: as declared, long enough, large enough, in sync."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher

from postlane.config import Environment
from postlane.core.policy import Config
from postlane.eventlog.admin import TopicState
from postlane.eventlog.topics import DAY_MS, RECORD_MAX_BYTES, TopicNames
from postlane.ops.doctor.check import Check, fail, ok, warn
from postlane.ops.topics import Declared, Difference

_OF_SETTING = {
    "partitions": "topic-partitions",
    "replication": "topic-replication",
    "min.insync.replicas": "topic-in-sync",
    "cleanup.policy": "topic-cleanup",
    "retention.ms": "topic-retention",
    "max.message.bytes": "topic-message-size",
}
_BY_HAND = ("refuse", "by_hand")
_FATAL = ("topic-cleanup", "topic-in-sync", "topic-partitions", "topic-message-size")


def topic_checks(
    environment: Environment,
    config: Config,
    want: Declared,
    found: Sequence[Difference],
    actual: Mapping[str, TopicState],
) -> list[Check]:
    """Every check of the topics that are there."""
    return [
        *declaration_checks(want, found, actual),
        *retention_checks(environment.names, config, actual),
        *in_sync_checks(actual),
        *replica_checks(actual),
        *number_checks(environment, config, actual),
    ]


def declaration_checks(
    want: Declared, found: Sequence[Difference], actual: Mapping[str, TopicState]
) -> Iterator[Check]:
    """The differences as checks: what loses or stops mails fails, other options are worth a warning."""
    missing = [d.topic for d in found if d.action == "create"]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        yield fail("topic-missing", f"missing: {shown}", "run `postlane topics apply`")
    else:
        yield ok("topic-missing", f"all {len(want.specs)} are there")
    for d in found:
        if d.action == "create":
            continue
        name = _OF_SETTING.get(d.setting, "topic-options")
        seen = f"{d.setting} is {d.actual or 'not set'}, declared {d.declared}"
        if _takes_enough(d):
            continue
        do = d.why if d.action in _BY_HAND else "run `postlane topics apply`"
        verdict = fail if name in _FATAL or _too_short(d) else warn
        yield verdict(name, seen, do, d.topic)


def _takes_enough(d: Difference) -> bool:
    return d.setting == "max.message.bytes" and (d.actual or "").isdigit() and int(d.actual or 0) >= RECORD_MAX_BYTES


def _too_short(d: Difference) -> bool:
    """Records that leave much earlier than declared may be lost mails; a little, or later, is a matter of taste."""
    told = d.actual or ""
    return d.setting == "retention.ms" and told.isdigit() and int(told) < int(d.declared) / 2


def retention_checks(names: TopicNames, config: Config, actual: Mapping[str, TopicState]) -> Iterator[Check]:
    """What topics really keep, against what the books need of each other."""
    seen, horizon_ms = actual.get(names.seen), int(config.topics.dedup_days * DAY_MS)
    if seen is not None:
        kept_ms = _kept_ms(seen)
        if kept_ms is not None and kept_ms < horizon_ms:
            found = f"kept {kept_ms / DAY_MS:g} days, keys are to be remembered {config.topics.dedup_days:g}"
            yield fail("seen-retention", found, "run `postlane topics apply`, or lower topics.dedup_days", names.seen)
        else:
            yield ok("seen-retention", f"longer than the dedup horizon of {config.topics.dedup_days:g} days")
    for lane in config.lanes:
        dispatch, state = actual.get(names.dispatch(lane)), actual.get(names.state(lane))
        if dispatch is None or state is None:
            continue
        book_ms, records_ms = _kept_ms(state), _kept_ms(dispatch)
        if book_ms is not None and (records_ms is None or book_ms <= records_ms):
            shown = "for ever" if records_ms is None else f"{records_ms / DAY_MS:g} days"
            found = f"books are kept {book_ms / DAY_MS:g} days, dispatch records {shown}"
            yield fail("state-retention", found, "run `postlane topics apply`", state.name)


def _kept_ms(topic: TopicState) -> int | None:
    """None: for ever, or as long as the brokers say, which is not told here."""
    told = topic.config.get("retention.ms", "-1")
    return int(told) if told.isdigit() else None


def in_sync_checks(actual: Mapping[str, TopicState]) -> Iterator[Check]:
    """Writes stop at the first loss where as many replicas must be in sync as there are."""
    for name, state in actual.items():
        told = state.config.get("min.insync.replicas", "1")
        if told.isdigit() and int(told) > 1 and int(told) >= state.replication:
            found = f"min.insync.replicas is {told} of {state.replication} replicas: one broker down stops all writing"
            do = "raise the replication to 3, or lower min.insync.replicas"
            yield fail("topic-in-sync", found, do, name)


def replica_checks(actual: Mapping[str, TopicState]) -> Iterator[Check]:
    """Leaders and replicas as they are."""
    offline = [name for name, state in actual.items() if state.offline]
    behind = [name for name, state in actual.items() if state.under_replicated]
    if offline:
        do = "bring the lost brokers back (docs/runbooks/broker-down.md)"
        yield fail("replicas", f"{len(offline)} topics have partitions without a leader, e.g. {offline[0]}", do)
    elif behind:
        do = "look at the brokers that are behind or down (docs/runbooks/broker-down.md)"
        yield warn("replicas", f"{len(behind)} topics have replicas out of sync, e.g. {behind[0]}", do)
    else:
        yield ok("replicas", "every partition has its leader, and all replicas are in sync")


def number_checks(environment: Environment, config: Config, actual: Mapping[str, TopicState]) -> Iterator[Check]:
    """One number of partitions for all that a mail passes through."""
    names = environment.names
    per_lane = [topic for lane in config.lanes for topic in (names.dispatch(lane), names.state(lane))]
    must = [names.requests, names.seen, names.events, *names.delays, *per_lane]
    counts = {topic: actual[topic].partitions for topic in must if topic in actual}
    if len(set(counts.values())) > 1:
        few, many = min(counts, key=lambda t: counts[t]), max(counts, key=lambda t: counts[t])
        found = f"{few} has {counts[few]}, {many} has {counts[many]}"
        do = "move to new topics with one number under another POSTLANE_TOPIC_PREFIX (docs/upgrading.md)"
        yield fail("topic-partition-numbers", found, do)


def prefix_check(prefix: str, missing: Collection[str], all_topics: Iterable[str]) -> Iterator[Check]:
    """Whether the topics that are missing are there under another prefix."""
    ending = f"{prefix}mail.requests"
    if ending not in missing:
        return
    others = sorted(name.removesuffix("mail.requests") for name in all_topics if name.endswith("mail.requests"))
    others = sorted(
        (other for other in others if other != prefix), key=lambda o: -SequenceMatcher(None, o, prefix).ratio()
    )
    if others:
        shown = ", ".join(repr(other) if other else "none" for other in others[:3])
        do = f"set POSTLANE_TOPIC_PREFIX to the right one ({shown}), or run `postlane topics apply` for a new one"
        yield fail("topic-prefix", f"nothing under {prefix!r}, but there are topics under {shown}", do)
