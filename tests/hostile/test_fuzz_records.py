"""Records that no service of ours wrote: any bytes as key, value and headers, any time, in every topic that is read.

Whoever folds them goes on: a tail whose `apply` raises would stop its service for good, and with it everybody's mail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from postlane.core.events import (
    EVENT,
    Control,
    DispatchReady,
    Intent,
    MailRequested,
    Outcome,
    Suppression,
    Template,
)
from postlane.core.health_facts import Observed, ProviderHealth
from postlane.core.policy import Config
from postlane.core.route import RoutePolicy
from postlane.eventlog import dead_letters
from postlane.eventlog.codec import Unreadable, decode_at_once, decode_event, decode_record, decode_state
from postlane.eventlog.dead_letters import dead_letter, origin_of, original_of
from postlane.eventlog.health_table import HealthTable
from postlane.eventlog.ports import Outgoing, Received
from postlane.eventlog.tables import ControlTable, TemplateTable
from postlane.eventlog.topics import RECORD_MAX_BYTES, TopicNames
from postlane.ops.letters import read_letter
from postlane_health.watch import Watch
from postlane_ledger.batch import fold, prepare
from postlane_router.batch import Batch
from postlane_router.deciding import Decider
from postlane_router.store import MemoryStore
from postlane_router.tables import RouterTables
from postlane_sender.takeover import BooksDamaged, floor_of, read_state
from tests.hostile.effort import EXAMPLES

NAMES = TopicNames("f.")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MESSAGE = "0197a1b2-0000-7000-8000-000000000001"
DIGITS_MANY = "9" * 5000  # int() refuses more than 4300 of them

# What makes parsers stumble: digits that are none, digits without end, separators, what is not UTF-8.
scraps = st.sampled_from(
    [
        "/",
        "pause",
        "cancel",
        "lane",
        "campaign",
        "template",
        "²",
        "٣",
        "1",
        "000001",
        DIGITS_MANY,
        "",
        "\x00",
        "@",
        "a@b.example",
    ]
)
keys = st.none() | st.binary(max_size=40) | st.lists(scraps, max_size=6).map(lambda parts: "".join(parts).encode())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
times = st.sampled_from(
    [
        "2026-01-02T03:04:05Z",
        "0001-01-01T00:00:00+23:59",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999-23:59",
        "9999-12-31T23:59:59Z",
        "1969-12-31T23:59:59Z",
    ]
)
timestamps_ms = st.sampled_from([0, -1, 1_767_323_045_000, 2**62, -(2**62), 253_402_300_800_000]) | st.integers(
    -(2**63), 2**63 - 1
)
header_names = st.sampled_from([*sorted(dead_letters._OURS), "ce_type", "ce_id", "traceparent", "x"])
header_values = (
    st.none() | st.binary(max_size=12) | st.sampled_from([b"5", DIGITS_MANY.encode(), "²".encode(), b"f.mail.requests"])
)
headers = st.lists(st.tuples(header_names, header_values), max_size=12)


def bodies(model: Any, **base: Any) -> st.SearchStrategy[bytes]:
    """JSON of the model with some fields replaced by anything, so that what is rarely wrong is reached, too."""
    fields = st.dictionaries(st.sampled_from(sorted(model.model_fields)), json_values | times, max_size=3)
    return fields.map(lambda changed: _json({**base, **changed}))


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # integers beyond 64 bits, lone surrogates
        return repr(value).encode("utf-8", "replace")


def records(values: st.SearchStrategy[Any], topic: str) -> st.SearchStrategy[Received]:
    return st.builds(
        Received,
        st.just(topic),
        st.integers(0, 3),
        st.integers(0, 2**62),
        timestamps_ms,
        keys,
        st.none() | st.binary(max_size=60) | values,
        headers,
    )


template = bodies(Template, id="hello", version=1, subject="s", text="t", at="2026-01-02T03:04:05Z")
control = bodies(Control, action="pause", scope="lane", name="bulk", at="2026-01-02T03:04:05Z")
suppression = bodies(Suppression, address="a@b.example", tenant="default", reason="x", at="2026-01-02T03:04:05Z")
request = bodies(
    MailRequested,
    message_id=MESSAGE,
    sender="a@b.example",
    to=["c@d.example"],
    text="t",
    requested_at="2026-01-02T03:04:05Z",
)
dispatch = bodies(
    DispatchReady,
    delivery_id=f"{MESSAGE}.0123456789abcdef.0",
    message_id=MESSAGE,
    recipient="c@d.example",
    lane="bulk",
    requested_at="2026-01-02T03:04:05Z",
    content={"sender": "a@b.example", "to": ["c@d.example"], "text": "t"},
)
intent = bodies(
    Intent,
    kind="intent",
    delivery_id="x",
    hop=0,
    attempt=1,
    offset=1,
    instance="i",
    ttl_ms=1,
    at="2026-01-02T03:04:05Z",
)
outcome = bodies(
    Outcome, kind="outcome", delivery_id="x", hop=0, offset=1, result="Delivered", at="2026-01-02T03:04:05Z"
)
event = st.builds(
    lambda kind, changed: _json(
        {
            "type": kind,
            "message_id": MESSAGE,
            "delivery_id": f"{MESSAGE}.0123456789abcdef.0",
            "recipient": "c@d.example",
            "at": "2026-01-02T03:04:05Z",
            "lane": "bulk",
            "tenant": "t",
            "sender": "s",
            "recipients": 1,
            "requested_at": "2026-01-02T03:04:05Z",
            "reason": "r",
            "provider": "p",
            "reply": {"code": 250},
            "next_at": "2026-01-02T03:04:05Z",
            "state": "delivered",
            **changed,
        }
    ),
    st.sampled_from(sorted(EVENT.core_schema["choices"])),  # type: ignore[typeddict-item]
    st.dictionaries(
        st.sampled_from(
            ["message_id", "delivery_id", "at", "generation", "attempt", "hop", "reply", "next_at", "lane"]
        ),
        json_values | times,
        max_size=2,
    ),
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(records(template, NAMES.templates), records(control, NAMES.control), records(suppression, NAMES.suppressions))
@example(
    Received("f.mail.templates", 0, 1, 0, "hello/²".encode(), None, ()),
    Received("f.mail.control", 0, 1, 2**62, b"cancel/campaign/x", b"?", ()),
    Received("f.mail.suppressions", 0, 1, 0, b"\xff/\xff", None, ()),
)
@example(
    Received("f.mail.templates", 0, 1, 0, f"hello/{DIGITS_MANY}".encode(), None, ()),
    Received("f.mail.control", 0, 1, -(2**62), b"cancel/message/x", None, ()),
    Received("f.mail.suppressions", 0, 1, 0, None, b"", ()),
)
def test_tables_take_any_record(of_template: Received, of_control: Received, of_suppression: Received) -> None:
    controls, templates, tables = ControlTable(), TemplateTable(), RouterTables()
    for apply, record in (
        (controls.apply, of_control),
        (templates.apply, of_template),
        (tables.apply_control, of_control),
        (tables.apply_template, of_template),
        (tables.apply_suppression, of_suppression),
    ):
        apply(record)
    controls.cancelled("x", "x", NOW)
    tables.cancelled("x", "x", NOW)
    tables.suppressed("default", "a@b.example")
    tables.template_version("hello", None)


observed = bodies(Observed, provider="p", instance="i", at="2026-01-02T03:04:05Z", total={"delivered": 1})
told = bodies(ProviderHealth, provider="p", instance="i", at="2026-01-02T03:04:05Z", window_s=60)


class Frozen:
    """A clock that stands."""

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return 1000.0


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(records(observed, NAMES.observations), max_size=4), records(told, NAMES.health))
def test_health_takes_any_record(seen: list[Received], said: Received) -> None:
    watch = Watch(Config().health, "i")
    watch.assigned([0], 0.0)
    for offset, record in enumerate(seen):
        try:
            read: Observed | None = decode_record(Observed, record)
        except Unreadable:
            read = None
        watch.receive(0, offset, read, 100.0, NOW)
    watch.news(watch.view(101.0, NOW), 101.0)
    table = HealthTable(["p"], Frozen(), 30.0)
    table.apply(replace(said, key=b"p"))
    table.apply(said)
    table.state("p")


@settings(max_examples=EXAMPLES, deadline=None)
@given(records(request, NAMES.requests))
def test_the_router_turns_any_request_into_records(record: Received) -> None:
    _decided(record)


@settings(max_examples=EXAMPLES, deadline=None)
@given(records(dispatch, NAMES.delay("1m")))
def test_the_delay_stage_turns_any_record_into_records(record: Received) -> None:
    _decided(record)


def _decided(record: Received) -> None:
    decider = Decider(NAMES, RoutePolicy.of(Config()), RouterTables(), MemoryStore())
    batches: list[Batch] = decider.decide(decider.read([record]), NOW, {}, {}, 10**9)
    written: list[Outgoing] = [out for batch in batches for out in batch.records]
    for out in written:
        assert out.topic.startswith("f.mail.")
        assert len(out.value or b"") <= RECORD_MAX_BYTES
        if out.topic == NAMES.dead_letters:
            origin = origin_of(out.headers)
            assert (origin.topic, origin.partition, origin.offset) == (record.topic, record.partition, record.offset)


@settings(max_examples=EXAMPLES, deadline=None)
@given(records(dispatch | request, NAMES.dispatch("bulk")))
def test_a_dead_letter_of_anything_is_read_as_what_it_is(record: Received) -> None:
    """Headers of the original cannot pass for ours: a publisher does not decide where a redrive writes to."""
    letter = dead_letter(record, "f.sender.bulk", "undecodable", Unreadable("why"))
    origin = origin_of(letter.headers)
    assert (origin.topic, origin.partition, origin.offset) == (record.topic, record.partition, record.offset)
    assert origin.reason == "undecodable"
    kept = Received(letter.topic, 1, 1, 0, letter.key, letter.value, letter.headers)
    read_letter(kept, NAMES).fields()
    if origin.omitted_bytes is None:
        again = original_of(kept)
        assert (again.topic, again.partition) == (record.topic, record.partition)


@settings(max_examples=EXAMPLES, deadline=None)
@given(records(dispatch | request, NAMES.dead_letters))
def test_a_forged_dead_letter_is_a_letter_too(record: Received) -> None:
    letter = read_letter(record, NAMES)
    letter.fields()
    if letter.redrivable:
        assert letter.origin is not None
        assert letter.origin.topic == NAMES.requests


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(records(event, NAMES.events), max_size=4))
def test_the_ledger_folds_any_records(found: list[Received]) -> None:
    found = [replace(record, partition=0, offset=n) for n, record in enumerate(found)]
    batch = prepare(found)
    assert len(batch.entries) + len(batch.unreadable) == len(found)
    fold(batch, {}, {})


@settings(max_examples=EXAMPLES, deadline=None)
@given(records(intent | outcome, NAMES.state("bulk")), st.text(max_size=12) | scraps.map(lambda s: f"1:{s}"))
def test_books_that_cannot_be_read_are_damaged_and_nothing_else(record: Received, metadata: str) -> None:
    class History:
        def add(self, entry: Intent | Outcome) -> None:
            pass

    for read in (lambda: read_state(History(), record), lambda: floor_of(metadata)):  # type: ignore[arg-type]
        try:
            read()
        except BooksDamaged:
            continue


READERS: list[Callable[[Received], object]] = [
    lambda r: decode_record(MailRequested, r),
    lambda r: decode_at_once(DispatchReady, r),
    lambda r: decode_event(r.value),
    lambda r: decode_state(r.value),
]


@settings(max_examples=EXAMPLES, deadline=None)
@given(records(request | dispatch | event | intent | outcome, NAMES.requests))
def test_what_cannot_be_decoded_is_unreadable_and_tells_none_of_it(record: Received) -> None:
    for read in READERS:
        said = ""
        try:
            read(record)
        except Unreadable as error:
            said = str(error)
        assert len(said) < 500
        assert said.isprintable()


@pytest.mark.parametrize("apply", [TemplateTable().apply, RouterTables().apply_template])
@pytest.mark.parametrize("version", ["²", "٣", DIGITS_MANY, "-1", "", "1.0"])
def test_a_tombstone_of_no_version_changes_nothing(apply: Callable[[Received], None], version: str) -> None:
    apply(Received(NAMES.templates, 0, 1, 0, f"hello/{version}".encode(), None, ()))


@pytest.mark.parametrize("number", ["²", "٣", DIGITS_MANY, "-1", "", " 1"])
def test_a_position_that_is_none_is_damage(number: str) -> None:
    with pytest.raises(BooksDamaged):
        floor_of(f"S1:{number}")
