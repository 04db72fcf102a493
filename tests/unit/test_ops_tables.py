"""Suppressions, templates and orders over the log in memory: what was written is what holds and what is read."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from postlane.core.addresses import InvalidAddress
from postlane.core.events import Control, Suppression
from postlane.core.policy import Config
from postlane.eventlog.codec import decode, header
from postlane.eventlog.memory import MemoryCluster, MemoryLog
from postlane.eventlog.ports import Log, Outgoing, Partition
from postlane.eventlog.tables import ControlTable, TemplateTable
from postlane.eventlog.topics import TopicNames, declare
from postlane.ops import tables
from postlane.ops.replay_reading import Reading

NAMES = TopicNames("t.")
NOW = datetime(2026, 1, 31, 9, tzinfo=UTC)


@pytest.fixture
def log() -> Log:
    cluster = MemoryCluster()
    cluster.create_topics(declare(NAMES, ("bulk",), Config().topics))
    return MemoryLog(cluster)


def suppression(address: str, tenant: str = "default") -> Suppression:
    return Suppression(tenant=tenant, address=address, reason="manual", at=NOW)


async def test_suppressions_are_kept_in_one_form_and_found_again(log: Log) -> None:
    given = ["Ada@Example.COM", "Bob <bob@straße.example>", "ada@example.com", "carl@x.example"]
    assert await tables.add_suppressions(log, NAMES, map(suppression, given)) == 4
    await tables.add_suppressions(log, NAMES, [suppression("ada@example.com", "acme")])
    found = [(s.tenant, s.address) for s in await tables.suppressions(log, NAMES)]
    assert found == [
        ("acme", "ada@example.com"),
        ("default", "ada@example.com"),
        ("default", "bob@xn--strae-oqa.example"),
        ("default", "carl@x.example"),
    ]
    assert await tables.remove_suppressions(log, NAMES, "default", ["ADA@example.com"]) == 1
    left = [s.address for s in await tables.suppressions(log, NAMES, "default")]
    assert left == ["bob@xn--strae-oqa.example", "carl@x.example"]
    with pytest.raises(InvalidAddress):
        await tables.add_suppressions(log, NAMES, [suppression("nobody")])


async def test_what_is_suppressed_for_every_tenant_is_listed_lifted_and_guards_replays(log: Log) -> None:
    entries = [suppression("Ada@Example.COM", "*"), suppression("bob@example.com")]
    await tables.add_suppressions(log, NAMES, entries)
    assert [s.address for s in await tables.suppressions(log, NAMES, "*")] == ["ada@example.com"]
    standing = await Reading(log, NAMES).standing()
    assert [standing.is_suppressed(tenant, "ADA@example.com") for tenant in ("default", "acme")] == [True, True]
    assert [standing.is_suppressed(tenant, "bob@example.com") for tenant in ("default", "acme")] == [True, False]
    assert await tables.remove_suppressions(log, NAMES, "*", ["ada@example.com"]) == 1
    assert not (await Reading(log, NAMES).standing()).is_suppressed("default", "ada@example.com")


async def test_many_suppressions(log: Log) -> None:
    count = 3 * tables.APPEND_BATCH + 7
    entries = (suppression(f"u{i}@x.example") for i in range(count))
    assert await tables.add_suppressions(log, NAMES, entries) == count
    assert {s.address for s in await tables.suppressions(log, NAMES)} == {f"u{i}@x.example" for i in range(count)}


async def test_template_versions_count_up_and_the_same_again_changes_nothing(log: Log) -> None:
    first = await tables.put_template(log, NAMES, "w", "Hi", "text", None, NOW)
    again = await tables.put_template(log, NAMES, "w", "Hi", "text", None, NOW + timedelta(days=1))
    second = await tables.put_template(log, NAMES, "w", "Hi", "text", "<p>", NOW)
    back = await tables.put_template(log, NAMES, "w", "Hi", "text", None, NOW)
    other = await tables.put_template(log, NAMES, "v", "Hi", "text", None, NOW)
    assert [(p.template.version, p.created) for p in (first, again, second, back, other)] == [
        (1, True),
        (1, False),
        (2, True),
        (3, True),
        (1, True),
    ]
    assert again.template == first.template
    assert [(t.id, t.version) for t in await tables.templates(log, NAMES)] == [("v", 1), ("w", 1), ("w", 2), ("w", 3)]
    assert (await tables.get_template(log, NAMES, "w")).version == 3
    assert (await tables.get_template(log, NAMES, "w", 2)).html == "<p>"
    with pytest.raises(tables.NotThere, match="newest is 3"):
        await tables.get_template(log, NAMES, "w", 9)
    with pytest.raises(tables.NotThere, match="known: v, w"):
        await tables.get_template(log, NAMES, "x")


async def test_two_writers_never_take_one_version(log: Log) -> None:
    assert isinstance(log, MemoryLog)
    logs = [MemoryLog(log.cluster, f"writer-{i}") for i in range(4)]
    puts = [tables.put_template(each, NAMES, "w", f"Subject {i}", "t", None, NOW) for i, each in enumerate(logs)]
    done = await asyncio.gather(*puts, return_exceptions=True)
    written = [put for put in done if isinstance(put, tables.Put)]
    assert written
    versions = [put.template.version for put in written]
    assert sorted(versions) == list(range(1, len(written) + 1))
    held = {t.version: t.subject for t in await tables.templates(log, NAMES)}
    assert held == {put.template.version: put.template.subject for put in written}


async def test_orders_hold_until_they_are_lifted(log: Log) -> None:
    await tables.pause(log, NAMES, "campaign", "spring", "wrong price", NOW)
    await tables.pause(log, NAMES, "lane", "bulk", "", NOW)
    await tables.cancel(log, NAMES, "message", "m1", "", NOW)
    assert [(o.action, o.scope, o.name) for o in await tables.orders(log, NAMES)] == [
        ("cancel", "message", "m1"),
        ("pause", "campaign", "spring"),
        ("pause", "lane", "bulk"),
    ]
    assert await tables.resume(log, NAMES, "lane", "bulk") is True
    assert await tables.resume(log, NAMES, "lane", "bulk") is False
    assert [(o.action, o.name) for o in await tables.orders(log, NAMES)] == [("cancel", "m1"), ("pause", "spring")]


async def test_the_services_read_what_was_written(log: Log) -> None:
    await tables.pause(log, NAMES, "campaign", "spring", "", NOW)
    await tables.put_template(log, NAMES, "w", "Hi", "text", None, NOW)
    control, templates = ControlTable(), TemplateTable()
    for topic, table in ((NAMES.control, control), (NAMES.templates, templates)):
        partition = Partition(topic, 0)
        end = (await log.high_watermarks([partition]))[partition]
        async for records in log.read(partition, 0, end, deadline_s=5):
            for record in records:
                table.apply(record)
                assert (header(record.headers, "ce_type") or b"").startswith(b"postlane.")
    assert control.paused("campaign", "spring")
    assert templates.get("w", 1) is not None
    assert (control.unreadable, templates.unreadable) == (0, 0)


async def test_what_cannot_be_read_does_not_hide_the_rest(log: Log) -> None:
    appender = log.appender()
    await appender.append(Outgoing(NAMES.control, None, b"pause/lane/x", b"\xff"))
    await appender.append(Outgoing(NAMES.control, None, None, b"{}"))
    await tables.pause(log, NAMES, "lane", "bulk", "", NOW)
    assert [o.name for o in await tables.orders(log, NAMES)] == ["bulk"]
    value = (await tables.table(log, NAMES.control))[b"pause/lane/bulk"]
    assert decode(Control, value).name == "bulk"
