"""Who may do what in Kafka: one identity for each part, and the least that it needs to do its work.

The one declaration that `postlane topics plan --acls` shows, that Kubernetes users are generated from and that a test
holds against a broker which refuses everything else (tests/hostile/test_acls_kafka.py). Operations are Kafka's names;
Read and Write include Describe, and AlterConfigs includes DescribeConfigs, so those are not repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from postlane.core.policy import Topics
from postlane.eventlog.topics import TopicNames, declare

Identity = Literal["publisher", "gateway", "router", "sender", "ledger", "health", "operator", "backup"]
Resource = Literal["topic", "group", "transactional_id", "cluster"]
Pattern = Literal["literal", "prefixed"]
Operation = Literal["Read", "Write", "Create", "Describe", "DescribeConfigs", "AlterConfigs"]

IDENTITIES: tuple[Identity, ...] = get_args(Identity)
CLUSTER = "kafka-cluster"  # the name of the one resource of that type
OFFSETS_TOPIC = "__consumer_offsets"  # Kafka's own: where groups keep their positions


@dataclass(frozen=True, slots=True)
class Acl:
    """An identity may do `operations` to the resources that `name` is (literal) or begins (prefixed); `why` says what
    for."""

    identity: Identity
    resource: Resource
    name: str
    pattern: Pattern
    operations: tuple[Operation, ...]
    why: str


def acls(names: TopicNames, lanes: tuple[str, ...], identities: Iterable[Identity] = IDENTITIES) -> tuple[Acl, ...]:
    """Everything that these identities need in an installation with these lanes, identity by identity.

    For a sender that serves some lanes only, name those: it then gets nothing of the others.
    """
    return tuple(acl for identity in identities for acl in _OF[identity](_Scope(identity, names, lanes)))


@dataclass(frozen=True, slots=True)
class _Scope:
    """One identity in one installation: what its rules are written with."""

    identity: Identity
    names: TopicNames
    lanes: tuple[str, ...]

    def topic(self, name: str, why: str, *operations: Operation) -> Acl:
        return Acl(self.identity, "topic", name, "literal", operations, why)

    def group(self, name: str, why: str, operation: Operation = "Read") -> Acl:
        return Acl(self.identity, "group", name, "literal", (operation,), why)

    def readers(self, client: str) -> Acl:
        """Consumers that are assigned their partitions join no group, but the library looks its coordinator up."""
        return Acl(self.identity, "group", f"{client}-", "prefixed", ("Describe",), "readers outside any group")

    def transactions(self, begin: str, why: str) -> Acl:
        name = f"{self.names.prefix}{begin}"
        return Acl(self.identity, "transactional_id", name, "prefixed", ("Write",), why)

    def every_topic(self) -> Iterator[str]:
        return (spec.name for spec in declare(self.names, self.lanes, Topics()))


def _publisher(s: _Scope) -> Iterator[Acl]:
    yield s.topic(s.names.requests, "publish", "Write")


def _gateway(s: _Scope) -> Iterator[Acl]:
    """The gateway process: it publishes for its callers, and takes bounces."""
    yield s.topic(s.names.requests, "publish for its callers", "Write")
    yield s.topic(s.names.events, "bounces that came later", "Write")
    yield s.topic(s.names.suppressions, "addresses that do not exist", "Write")


def _router(s: _Scope) -> Iterator[Acl]:
    names = s.names
    yield s.topic(names.requests, "route", "Read")
    for topic in names.delays:
        yield s.topic(topic, "hold until due", "Read", "Write")
    for lane in s.lanes:
        yield s.topic(names.dispatch(lane), "hand to the sender", "Write")
    yield s.topic(names.seen, "its memory of idempotency keys", "Read", "Write")
    yield s.topic(names.events, "what was decided", "Write")
    yield s.topic(names.dead_letters, "what cannot be routed", "Write")
    yield s.topic(names.suppressions, "whom never to mail", "Read")
    yield s.topic(names.templates, "which version is the newest", "Read")
    yield s.topic(names.control, "pauses and cancels", "Read")
    yield s.group(names.router_group, "share the partitions")
    yield s.readers("postlane-router")
    yield s.transactions("router.", "read, write and positions as one")


def _sender(s: _Scope) -> Iterator[Acl]:
    names = s.names
    for lane in s.lanes:
        yield s.topic(names.dispatch(lane), "send", "Read")
        yield s.topic(names.state(lane), "its books", "Read", "Write")
        yield s.group(names.sender_group(lane), "share the partitions")
        yield s.transactions(f"sender.{lane}.", "intents, outcomes and positions as one")
    for topic in names.delays:
        yield s.topic(topic, "retry, hold and release", "Write")
    yield s.topic(names.events, "what came of each attempt", "Write")
    yield s.topic(names.dead_letters, "what was given up", "Write")
    yield s.topic(names.observations, "how its providers do", "Write")
    yield s.topic(names.health, "how the fleet's providers do", "Read")
    yield s.topic(names.templates, "render", "Read")
    yield s.topic(names.control, "pauses and cancels", "Read")
    yield s.readers("postlane-sender")


def _ledger(s: _Scope) -> Iterator[Acl]:
    yield s.topic(s.names.events, "fold into the database", "Read")
    yield s.group(f"{s.names.prefix}ledger", "share the partitions")
    yield s.readers("postlane-ledger")


def _health(s: _Scope) -> Iterator[Acl]:
    yield s.topic(s.names.observations, "merge what senders saw", "Read")
    yield s.topic(s.names.health, "say how providers do", "Write")
    yield s.group(f"{s.names.prefix}health", "share the partitions")


def _operator(s: _Scope) -> Iterator[Acl]:
    """Who runs `postlane`: everything but the books of router and sender."""
    names = s.names
    read = {names.events, names.dead_letters, names.health, *(names.dispatch(lane) for lane in s.lanes)}
    written = {names.requests, names.events, names.suppressions, names.templates, names.control}
    written |= {*names.delays, *(names.dispatch(lane) for lane in s.lanes)}
    read |= {names.requests, names.suppressions, names.templates, names.control}
    for topic in s.every_topic():
        used: list[Operation] = []
        if topic in read:
            used.append("Read")
        if topic in written:
            used.append("Write")
        why = "topics apply; status, lists, orders, replay" if used else "topics apply"
        yield s.topic(topic, why, *(used or ["Describe"]), "Create", "AlterConfigs")
    yield s.group(names.router_group, "status: its lag", "Describe")
    for lane in s.lanes:
        yield s.group(names.sender_group(lane), "status: its lag", "Describe")
    yield s.group(f"{names.prefix}ledger", "status: its lag", "Describe")
    yield s.group(f"{names.prefix}doctor", "doctor: the brokers' clock, and whether positions can be committed")
    yield s.topic(OFFSETS_TOPIC, "doctor: the brokers' clock, from when a position was committed", "Describe")
    yield s.readers("postlane-cli")
    yield s.readers("postlane-doctor")
    yield s.transactions("replay.", "replay: requests and events as one")
    yield Acl(
        s.identity,
        "transactional_id",
        f"{names.templates}.writer",
        "literal",
        ("Write",),
        "template put: one writer at a time",
    )
    yield Acl(s.identity, "cluster", CLUSTER, "literal", ("DescribeConfigs",), "doctor: options of the brokers")


def _backup(s: _Scope) -> Iterator[Acl]:
    """Who runs `postlane backup`: reads all but what is advisory, writes nothing. A restore is for an administrator."""
    names = s.names
    for topic in s.every_topic():
        if topic not in (names.observations, names.health):
            yield s.topic(topic, "copy", "Read")
    yield s.group(names.router_group, "copy its positions", "Describe")
    for lane in s.lanes:
        yield s.group(names.sender_group(lane), "copy its positions", "Describe")
    yield s.readers("postlane-cli")


_OF = {
    "publisher": _publisher,
    "gateway": _gateway,
    "router": _router,
    "sender": _sender,
    "ledger": _ledger,
    "health": _health,
    "operator": _operator,
    "backup": _backup,
}
