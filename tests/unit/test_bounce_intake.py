"""What the intake writes, in which order, and what it answers when it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from tests.unit import dsn_samples as samples
from tests.unit.bounce_gate import NAMES, Gate
from tests.unit.dsn_samples import ADA, DELIVERY, MESSAGE

from postlane.core.events import Bounced, Suppression
from postlane.core.late_bounce import Outcome
from postlane.core.policy import Config
from postlane.eventlog.codec import decode, decode_record
from postlane.eventlog.errors import Retriable
from postlane.eventlog.murmur2 import partition_of
from postlane.ops.tables import suppression_key
from postlane.telemetry.metrics import ProducerMetrics
from postlane_router.tables import RouterTables

FOREIGN = "somebody@mail.example.org"


@pytest.fixture
async def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


async def test_a_bounce_becomes_an_event_and_a_suppression(gate: Gate) -> None:
    taken = await gate.intake.take(samples.postfix(), gate.address, trusted=False)
    assert (taken.delivery_id, taken.outcomes, taken.reason) == (DELIVERY, ("suppressed",), "")
    (record,) = await gate.written(NAMES.events)
    event = decode_record(Bounced, record)
    assert event == taken.decisions[0].event
    assert record.key == MESSAGE.encode()
    assert record.partition == partition_of(MESSAGE.encode(), Config().topics.partitions)
    (told,) = await gate.written(NAMES.suppressions)
    assert told.key == suppression_key("*", ADA)
    assert decode(Suppression, told.value).tenant == "*"
    tables = RouterTables()
    tables.apply_suppression(told)
    assert tables.suppressed("any", ADA)
    assert gate.counted() == {"suppressed": 1}


async def test_the_same_again_changes_nothing(gate: Gate) -> None:
    for _ in range(3):
        await gate.intake.take(samples.postfix(), gate.address, trusted=False)
    assert len({record.key for record in await gate.written(NAMES.suppressions)}) == 1
    events = [decode_record(Bounced, record) for record in await gate.written(NAMES.events)]
    assert {event.delivery_id for event in events} == {DELIVERY}
    ids = {dict(record.headers)["ce_id"] for record in await gate.written(NAMES.events)}
    assert len(ids) == 1


@pytest.mark.parametrize(("at_append", "events", "suppressions"), [(1, 0, 0), (2, 0, 1)])
async def test_what_was_not_acknowledged_is_not_taken_and_comes_again(
    gate: Gate, at_append: int, events: int, suppressions: int
) -> None:
    """The suppression goes first, so there is never a bounce whose address is still mailed."""
    gate.faults.at_append = at_append
    with pytest.raises(Retriable):
        await gate.intake.take(samples.postfix(), gate.address, trusted=False)
    assert len(await gate.written(NAMES.events)) == events
    assert len(await gate.written(NAMES.suppressions)) == suppressions
    assert gate.counted() == {}
    await gate.intake.take(samples.postfix(), gate.address, trusted=False)
    assert len(await gate.written(NAMES.events)) == 1
    assert gate.counted() == {"suppressed": 1}


async def test_only_who_is_trusted_may_name_the_delivery_by_headers(gate: Gate) -> None:
    for address in (None, FOREIGN, "bounces+aaaa@mail.example.org"):
        taken = await gate.intake.take(samples.postfix(), address, trusted=False)
        assert taken.outcomes == (Outcome.UNKNOWN_DELIVERY,)
        assert taken.reason
    assert await gate.written(NAMES.events) == []
    taken = await gate.intake.take(samples.postfix(), None, trusted=True)
    assert taken.outcomes == (Outcome.SUPPRESSED,)
    assert len(await gate.written(NAMES.events)) == 1


async def test_the_signed_address_goes_before_the_headers(gate: Gate) -> None:
    other = samples.postfix(message=samples.mail(delivery=f"{MESSAGE}.0123456789abcdef.7"))
    taken = await gate.intake.take(other, gate.address, trusted=True)
    assert taken.delivery_id == DELIVERY


@pytest.mark.parametrize(
    ("make", "outcome"),
    [(samples.out_of_office, "not_a_report"), (samples.delayed, "delayed"), (samples.mail, "not_a_report")],
)
async def test_what_is_no_failure_is_counted_and_writes_nothing(
    gate: Gate, make: Callable[[], bytes], outcome: str
) -> None:
    taken = await gate.intake.take(make(), gate.address, trusted=False)
    assert taken.outcomes == (outcome,)
    assert await gate.written(NAMES.events) + await gate.written(NAMES.suppressions) == []
    assert gate.counted() == {outcome: 1}


async def test_without_suppressions_only_the_event_is_written(tmp_path: Path) -> None:
    gate = Gate(tmp_path, suppress=False)
    await gate.intake.take(samples.postfix(), gate.address, trusted=False)
    assert len(await gate.written(NAMES.events)) == 1
    assert await gate.written(NAMES.suppressions) == []


def test_every_outcome_is_a_series_from_the_start() -> None:
    registry = CollectorRegistry()
    ProducerMetrics(registry)
    names = {s.labels["outcome"] for m in registry.collect() for s in m.samples if "outcome" in s.labels}
    assert names == {outcome.value for outcome in Outcome}
