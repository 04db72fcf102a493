"""The compact topics as the router's knowledge."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from postlane.core.events import Control, Suppression, Template
from postlane.eventlog.codec import encode
from postlane.eventlog.ports import Received
from postlane_router.tables import RouterTables

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def record(key: bytes | None, value: bytes | None, offset: int = 0) -> Received:
    return Received("mail.x", 0, offset, int(NOW.timestamp() * 1000), key, value)


def suppression(address: str) -> bytes:
    return encode(Suppression(address=address, at=NOW))


def test_suppressions_by_tenant_in_any_spelling_until_a_tombstone() -> None:
    tables = RouterTables()
    tables.apply_suppression(record(b"default/Ada@EXAMPLE.com", suppression("ada@example.com")))
    assert tables.suppressed("default", "ada@example.com")
    assert tables.suppressed("default", "ADA@example.com")
    assert not tables.suppressed("other", "ada@example.com")
    assert not tables.suppressed("default", "bob@example.com")
    tables.apply_suppression(record(b"default/ada@example.com", None))
    assert not tables.suppressed("default", "ada@example.com")


def test_a_suppression_for_every_tenant_holds_for_each_until_it_is_lifted() -> None:
    tables = RouterTables()
    tables.apply_suppression(record(b"default/bob@example.com", suppression("bob@example.com")))
    tables.apply_suppression(record(b"*/Ada@EXAMPLE.com", suppression("ada@example.com")))
    assert all(tables.suppressed(tenant, "ADA@example.com") for tenant in ("default", "other", "*"))
    assert not tables.suppressed("other", "bob@example.com")
    tables.apply_suppression(record(b"default/ada@example.com", None))  # one tenant lifts its own only
    assert tables.suppressed("default", "ada@example.com")
    tables.apply_suppression(record(b"*/ada@example.com", None))
    assert not tables.suppressed("default", "ada@example.com")
    assert tables.suppressed("default", "bob@example.com")


def test_a_suppression_that_cannot_be_read_still_suppresses() -> None:
    tables = RouterTables()
    tables.apply_suppression(record(b"default/ada@example.com", b"\xff"))
    assert tables.suppressed("default", "ada@example.com")


def test_slashes_in_the_local_part() -> None:
    tables = RouterTables()
    tables.apply_suppression(record(b"default/a/b@example.com", b"{}"))
    assert tables.suppressed("default", "a/b@example.com")


def test_template_versions() -> None:
    tables = RouterTables()
    for offset, version in enumerate((1, 2, 10)):
        value = encode(Template(id="welcome/de", version=version, subject="s", at=NOW))
        tables.apply_template(record(f"welcome/de/{version:06d}".encode(), value, offset))
    assert tables.template_version("welcome/de", None) == 10
    assert tables.template_version("welcome/de", 2) == 2
    assert tables.template_version("welcome/de", 3) is None
    assert tables.template_version("welcome", None) is None
    tables.apply_template(record(b"welcome/de/000010", None, 3))
    assert tables.template_version("welcome/de", None) == 2
    tables.apply_template(record(b"broken/000001", b"{", 4))
    assert tables.template_version("broken", None) is None


def control(action: str, scope: str, name: str) -> bytes:
    return encode(Control.model_validate({"action": action, "scope": scope, "name": name, "at": NOW}))


def test_cancels_concern_what_was_requested_before() -> None:
    tables = RouterTables()
    tables.apply_control(record(b"cancel/message/m", control("cancel", "message", "m")))
    tables.apply_control(record(b"cancel/campaign/c/d", control("cancel", "campaign", "c/d")))
    later = NOW + timedelta(microseconds=1)
    assert tables.cancelled("m", None, NOW)
    assert not tables.cancelled("m", None, later)
    assert tables.cancelled("other", "c/d", NOW)
    assert not tables.cancelled("other", "c/d", later)
    assert not tables.cancelled("other", None, NOW)
    tables.apply_control(record(b"cancel/message/m", None))
    assert not tables.cancelled("m", None, NOW)


def test_pauses_of_tenants_and_campaigns_not_of_lanes() -> None:
    tables = RouterTables()
    tables.apply_control(record(b"pause/tenant/t", control("pause", "tenant", "t")))
    tables.apply_control(record(b"pause/campaign/c", b"not JSON"))
    tables.apply_control(record(b"pause/lane/bulk", control("pause", "lane", "bulk")))
    assert tables.paused("t", None)
    assert tables.paused("other", "c")
    assert not tables.paused("bulk", "bulk")
    tables.apply_control(record(b"pause/tenant/t", None))
    assert not tables.paused("t", None)


def test_a_cancel_that_cannot_be_read_counts_from_when_it_was_written() -> None:
    tables = RouterTables()
    tables.apply_control(record(b"cancel/message/m", b"\x00"))
    assert tables.cancelled("m", None, NOW)
    assert not tables.cancelled("m", None, NOW + timedelta(seconds=1))


@given(st.none() | st.binary(), st.none() | st.binary())
def test_any_bytes(key: bytes | None, value: bytes | None) -> None:
    tables = RouterTables()
    for apply in (tables.apply_suppression, tables.apply_template, tables.apply_control):
        apply(record(key, value))
