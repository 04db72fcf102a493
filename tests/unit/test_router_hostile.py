"""Whatever bytes arrive: a dead letter untouched, or a request that is safe in every field. Never an exception."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from router_world import NAMES

from postlane.core.events import REQUEST_MAX_BYTES, DispatchReady, MailContent, MailRequested
from postlane.core.identity import message_id_from_key
from postlane.core.policy import Config
from postlane.core.route import RoutePolicy
from postlane.eventlog.codec import decode, decode_event, encode
from postlane.eventlog.dead_letters import origin_of
from postlane.eventlog.ports import Outgoing, Received
from postlane.mime.compose import check_content
from postlane_router.batch import Batch
from postlane_router.deciding import Decider
from postlane_router.reading import digest_of, fault_of
from postlane_router.store import MemoryStore
from postlane_router.tables import RouterTables

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MESSAGE = message_id_from_key("default", "k")
HEADERS = ("sender", "subject", "reply_to", "to", "cc", "bcc")


def decided(*records: Received) -> Batch:
    decider = Decider(NAMES, RoutePolicy.of(Config()), RouterTables(), MemoryStore())
    (batch,) = decider.decide(decider.read(records), NOW, {}, {}, 10**9)
    return batch


def received(
    value: bytes | None, key: bytes | None = MESSAGE.encode(), topic: str = NAMES.requests, offset: int = 7
) -> Received:
    return Received(topic, 1, offset, int(NOW.timestamp() * 1000), key, value, [("x", b"1")])


def body(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "message_id": MESSAGE,
        "sender": "shop@example.org",
        "to": ["ada@example.com"],
        "subject": "s",
        "text": "t",
        "requested_at": "2026-01-02T03:04:04Z",
    }
    return {k: v for k, v in {**base, **changes}.items() if v is not ...}


def kinds(batch: Batch) -> list[str]:
    return [decode_event(out.value).type for out in batch.records if out.topic == NAMES.events]


def is_dead(batch: Batch, record: Received) -> bool:
    letters = [out for out in batch.records if out.topic == NAMES.dead_letters]
    if not letters:
        return False
    (letter,) = letters
    assert (letter.key, letter.value, letter.partition) == (record.key, record.value, record.partition)
    assert ("x", b"1") in letter.headers
    assert origin_of(letter.headers).reason == "undecodable"
    assert kinds(batch) == ["Undecodable"]
    assert not batch.entries
    return True


DEEP = b'{"a":' * 2000 + b"1" + b"}" * 2000


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b" ",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b'{"message_id":"\xc3',
        b'{"message_id":"\xed\xa0\x80"}',
        b'"\\ud800"',
        DEEP,
        b"[" * 100_000,
        b"1" * 400_000,
        b"-1e99999",
        b"NaN",
        b"[]",
        b"true",
        orjson.dumps(body(to="ada@example.com")),
        orjson.dumps(body(to=[["ada@example.com"]])),
        orjson.dumps(body(to={"a": 1})),
        orjson.dumps(body(generation=-1)),
        orjson.dumps(body(generation=10**18)),
        orjson.dumps(body(requested_at="yesterday")),
        orjson.dumps(body(requested_at="2026-01-02T03:04:04")),
        orjson.dumps(body(requested_at=...)),
        orjson.dumps(body(headers={"a": 1})),
        orjson.dumps(body(headers=[["a", "b"]])),
        orjson.dumps(body(message_id=MESSAGE + "0")),
        orjson.dumps(body(text="x" * REQUEST_MAX_BYTES)),
        orjson.dumps(body(template={"id": "t", "data": orjson.loads(b'{"a":' * 200 + b"1" + b"}" * 200)}, text=None)),
    ],
)
def test_what_is_no_request_is_a_dead_letter(value: bytes | None) -> None:
    record = received(value)
    assert is_dead(decided(record), record)
    delayed = received(value, topic=NAMES.delay("10s"))
    assert is_dead(decided(delayed), delayed)


@pytest.mark.parametrize("ce_type", [b"postlane.MailRequested.v2", b"postlane.Delivered.v1", b"", b"\xff"])
def test_another_type_or_version_is_a_dead_letter(ce_type: bytes) -> None:
    record = received(orjson.dumps(body()))
    record.headers = [("x", b"1"), ("ce_type", ce_type)]
    assert is_dead(decided(record), record)


def test_duplicate_keys_and_unknown_fields_are_harmless() -> None:
    value = b'{"lane":"bulk","future":{"x":[1]},' + orjson.dumps(body(lane="transactional"))[1:]
    batch = decided(received(value))
    assert kinds(batch) == ["Requested", "Routed"]
    assert [out.topic for out in batch.records if "dispatch" in out.topic] == [NAMES.dispatch("transactional")]


@given(st.none() | st.binary(max_size=200), st.none() | st.binary(max_size=40))
def test_any_bytes(value: bytes | None, key: bytes | None) -> None:
    for topic in (NAMES.requests, NAMES.delay("1s")):
        record = received(value, key, topic)
        assert is_dead(decided(record), record)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300)
@given(st.sampled_from(sorted(MailRequested.model_fields)), json_values)
@example("send_at", "9999-12-31T23:59:59-23:59")
@example("send_at", "0001-01-01T00:00:00+23:59")
@example("expires_at", "0001-01-01T00:00:00+23:59")
@example("requested_at", "0001-01-01T00:00:00+23:59")
@example("requested_at", "9999-12-31T23:59:59-23:59")
def test_any_value_in_any_field(field: str, value: Any) -> None:
    """Whatever is written for the sender can be read by it; an event for each recipient, or one dead letter."""
    record = received(orjson.dumps(body(**{field: value})))
    batch = decided(record)
    if is_dead(batch, record):
        return
    for out in batch.records:
        if "dispatch" in out.topic or "delay" in out.topic:
            ready = decode(DispatchReady, out.value)
            check_content(ready.content)
            encode(ready)
    first, *others = kinds(batch)
    assert first == "Requested"
    assert others
    assert len(batch.entries[1]) == 1


@given(
    st.sampled_from(HEADERS),
    st.text(max_size=10),
    st.sampled_from(["\r\n", "\n", "\r", "\x00", "\x0b", "\x85", "\u2028", "\x7f"]),
)
def test_no_header_can_be_smuggled_in(field: str, before: str, line_end: str) -> None:
    evil = f"{before}{line_end}Bcc: eve@example.com"
    value: Any = [evil, "ada@example.com"] if field in ("to", "cc", "bcc") else evil
    batch = decided(received(orjson.dumps(body(**{field: value}))))
    for out in batch.records:
        if "dispatch" in out.topic:
            assert field in ("to", "cc", "bcc")
            ready = decode(DispatchReady, out.value)
            assert ready.recipient == "ada@example.com"
            assert evil not in (*ready.content.to, *ready.content.cc)
            check_content(ready.content)
    assert "Rejected" in kinds(batch)


contents = st.builds(
    MailContent,
    sender=st.sampled_from(["shop@example.org", "Shop <shop@example.org>", "no", "a\r\nb@c", "ü@example.org"]),
    to=st.just(("ada@example.com",)),
    reply_to=st.none() | st.sampled_from(["a@b.example", "no"]),
    subject=st.text(max_size=30) | st.sampled_from(["x" * 998, "x" * 1001, "a\x7f", " a ", "=?utf-8?Q?x?="]),
    text=st.none() | st.text(max_size=20) | st.sampled_from(["\x00", ""]),
    html=st.none() | st.text(max_size=20) | st.sampled_from(["\x00", ""]),
    headers=st.dictionaries(
        st.sampled_from(["X-A", "x-a", "Bcc", "List-Unsubscribe", "X:B", "", "X B", "x" * 51]) | st.text(max_size=5),
        st.text(max_size=20) | st.sampled_from([" ", "", "x" * 600, "x\n", "x" * 499]),
        max_size=3,
    ),
)


@settings(max_examples=500)
@given(contents)
def test_the_quick_look_never_passes_what_the_check_refuses(content: MailContent) -> None:
    try:
        check_content(content)
        expected = None
    except ValueError as error:
        expected = str(error)
    assert fault_of(content) == expected


# ------------------------------------------------------------------------------------------------------------- dedup


requests = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=30)


@given(requests, st.integers(1, 7))
def test_each_key_is_accepted_once_and_conflicts_are_told(asked: list[tuple[int, int]], size: int) -> None:
    """(key, content) in any order, in batches of any size: the first content of a key wins, once."""
    store = MemoryStore()
    decider = Decider(NAMES, RoutePolicy.of(Config()), RouterTables(), store)
    outcomes: list[str] = []
    for begin in range(0, len(asked), size):
        records = [
            received(orjson.dumps(body(message_id=ident, subject=str(content))), ident.encode(), offset=begin + n)
            for n, (key, content) in enumerate(asked[begin : begin + size])
            if (ident := message_id_from_key("t", str(key)))
        ]
        for batch in decider.decide(decider.read(records), NOW, {}, {}, 10**9):
            for number, entries in batch.entries.items():
                store.add(number, entries, (0, 0))  # type: ignore[arg-type]
            outcomes += _outcomes(batch, records)
    first: dict[int, int] = {}
    expected = []
    for key, content in asked:
        if key not in first:
            first[key] = content
            expected.append("accepted")
        else:
            expected.append("repeated" if first[key] == content else "conflicted")
    assert sorted(outcomes) == sorted(expected)
    assert store.keys() == len(first)


def _outcomes(batch: Batch, records: list[Received]) -> list[str]:
    return [outcome for outcome, count in batch.outcomes.items() for _ in range(count)]


def asked(**changes: Any) -> MailRequested:
    return MailRequested.model_validate(body(**changes))


def test_the_digest_is_of_the_mail_not_of_who_asked_when() -> None:
    one = digest_of(asked())
    assert one == digest_of(
        asked(requested_at="2027-01-02T03:04:04Z", message_id=message_id_from_key("x", "y"), key="q")
    )
    assert one == digest_of(asked(cc=[], headers={}, html=None, reply_to=None, unknown=1))
    two = digest_of(asked(headers={"a": "1", "b": "2"}))
    assert two == digest_of(asked(headers={"b": "2", "a": "1"}))
    others = [{"text": "u"}, {"cc": ["c@d.example"]}, {"lane": "bulk"}, {"tenant": "x"}, {"bcc": ["c@d.example"]}]
    assert len({one, two, *(digest_of(asked(**other)) for other in others)}) == 7


def test_dead_letters_keep_the_partition_and_the_time_of_the_original() -> None:
    record = received(b"\x00")
    (letter,) = (out for out in decided(record).records if out.topic == NAMES.dead_letters)
    assert isinstance(letter, Outgoing)
    origin = origin_of(letter.headers)
    assert (origin.topic, origin.partition, origin.offset, origin.timestamp_ms) == (
        record.topic,
        record.partition,
        record.offset,
        record.timestamp_ms,
    )
