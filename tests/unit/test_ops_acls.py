"""The least that each identity needs in Kafka: who may write which topic, prefixes honoured, each with its reason."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from postlane.cli.main import main
from postlane.core.policy import Topics
from postlane.eventlog.topics import TopicNames, declare
from postlane.ops.acls import IDENTITIES, OFFSETS_TOPIC, Acl, acls

NAMES = TopicNames("shop.")
LANES = ("transactional", "bulk")
ALL = acls(NAMES, LANES)

# By hand, from who is responsible for what: a change of the rules has to be meant here too.
WRITERS = {
    "mail.requests": {"publisher", "gateway", "operator"},
    "mail.seen": {"router"},
    "mail.events": {"gateway", "router", "sender", "operator"},
    "mail.dead-letters": {"router", "sender"},
    "mail.observations": {"sender"},
    "mail.suppressions": {"gateway", "operator"},
    "mail.templates": {"operator"},
    "mail.control": {"operator"},
    "mail.health": {"health"},
    **{f"mail.dispatch.{lane}": {"router", "operator"} for lane in LANES},
    **{f"mail.state.{lane}": {"sender"} for lane in LANES},
    **{f"mail.delay.{step}": {"router", "sender", "operator"} for step in ("1s", "10s", "1m", "10m", "1h", "6h", "1d")},
}


def _who(name: str, operation: str) -> set[str]:
    return {a.identity for a in ALL if a.resource == "topic" and a.name == name and operation in a.operations}


@pytest.mark.parametrize("topic", [spec.name for spec in declare(TopicNames(), LANES, Topics())])
def test_each_topic_is_written_by_whom_it_should_be(topic: str) -> None:
    assert _who(f"shop.{topic}", "Write") == WRITERS[topic]


def test_only_the_operator_makes_or_alters_topics_and_nobody_deletes() -> None:
    assert {a.identity for a in ALL if {"Create", "AlterConfigs"} & set(a.operations)} == {"operator"}
    assert not any("Delete" in a.operations or "All" in a.operations for a in ALL)
    assert {(a.identity, a.operations) for a in ALL if a.resource == "cluster"} == {("operator", ("DescribeConfigs",))}


def test_every_name_is_of_this_installation_and_none_is_a_wildcard() -> None:
    readers = {
        a.name for a in ALL if a.resource == "group" and a.operations == ("Describe",) and a.pattern == "prefixed"
    }
    for acl in ALL:
        assert acl.name.strip("*") == acl.name != ""
        assert acl.name.startswith("shop.") or acl.resource == "cluster" or acl.name in {*readers, OFFSETS_TOPIC}
        assert acl.why
        assert acl.pattern == "literal" or acl.resource in ("group", "transactional_id")


def test_only_topics_that_are_declared_are_named() -> None:
    declared = {spec.name for spec in declare(NAMES, LANES, Topics())}
    named = [a for a in ALL if a.resource == "topic" and a.name not in declared]
    assert [(a.identity, a.name, a.operations) for a in named] == [("operator", "__consumer_offsets", ("Describe",))]


def test_the_gateway_writes_three_topics_and_reads_none() -> None:
    mine = {(a.resource, a.name.removeprefix("shop."), a.operations) for a in ALL if a.identity == "gateway"}
    assert mine == {("topic", f"mail.{name}", ("Write",)) for name in ("requests", "events", "suppressions")}


def test_nobody_may_use_the_transactions_or_groups_of_another() -> None:
    """Fencing a service by its transactional id would stop it."""
    of: dict[str, set[str]] = {}
    for acl in ALL:
        if acl.resource == "transactional_id" or (acl.resource == "group" and "Read" in acl.operations):
            of.setdefault(f"{acl.resource} {acl.name}", set()).add(acl.identity)
    assert all(len(identities) == 1 for identities in of.values())
    ids = [a for a in ALL if a.resource == "transactional_id"]
    for one in ids:
        overlapping = {a.identity for a in ids if a.name.startswith(one.name)}
        assert overlapping == {one.identity}


def test_a_sender_of_one_lane_gets_nothing_of_another() -> None:
    found = acls(NAMES, ("bulk",), ("sender",))
    assert {a.identity for a in found} == {"sender"}
    assert not any("transactional" in a.name for a in found)


def test_the_command_shows_them_as_text_and_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a broker: nothing is asked."""
    monkeypatch.setenv("POSTLANE_TOPIC_PREFIX", "shop.")
    monkeypatch.setenv("POSTLANE_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    told = CliRunner().invoke(main, ["topics", "plan", "--acls", "--json"])
    assert told.exit_code == 0, told.output
    documents = [json.loads(line) for line in told.stdout.splitlines()]
    assert [Acl(**{**d, "operations": tuple(d["operations"])}) for d in documents] == list(ALL)
    shown = CliRunner().invoke(main, ["topics", "plan", "--acls"])
    assert len(shown.stdout.splitlines()) == len(ALL)
    assert set(IDENTITIES) == {line.split()[0] for line in shown.stdout.splitlines()}
