"""Routing decisions: one table per question, and the shape of what comes out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from postlane.core.events import DispatchReady, MailContent, MailRequested, Requested, Routed, TemplateRef
from postlane.core.identity import delivery_id
from postlane.core.policy import Config, Retry
from postlane.core.route import (
    DATA_DEPTH_MAX,
    RoutePolicy,
    Routing,
    content_of,
    dedup_key,
    recipients,
    route,
    unacceptable,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MESSAGE = "6f0d3f0e-2f0b-5d0a-9a53-0c8a1b6d7e11"
POLICY = RoutePolicy.of(Config())


class Known:
    """A Knowledge that says what the test tells it."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    def suppressed(self, tenant: str, address: str) -> bool:
        return address in self.answers.get("suppressed", ())

    def cancelled(self, message_id: str, campaign: str | None, requested_at: datetime) -> bool:
        return bool(self.answers.get("cancelled"))

    def paused(self, tenant: str, campaign: str | None) -> bool:
        return bool(self.answers.get("paused"))

    def template_version(self, template: str, version: int | None) -> int | None:
        versions: dict[str, int] = self.answers.get("templates", {})
        return versions.get(template) if version in (None, versions.get(template)) else None


def request(**changes: Any) -> MailRequested:
    base: dict[str, Any] = {
        "message_id": MESSAGE,
        "sender": "shop@example.org",
        "to": ("ada@example.com",),
        "subject": "Hello",
        "text": "Hi",
        "requested_at": NOW - timedelta(seconds=1),
    }
    return MailRequested(**{**base, **changes})


def routed(fault: str | None = None, size: int = 1000, known: Known | None = None, **changes: Any) -> Routing:
    asked = request(**changes)
    people = recipients(asked)
    return route(asked, people, content_of(asked, people), fault, size, known or Known(), POLICY, NOW)


def kinds(made: Routing) -> list[str]:
    return [type(event).__name__ for event in made.events]


def test_one_recipient_at_once() -> None:
    made = routed(campaign="c", tenant="t", key="k")
    first, second = made.events
    assert isinstance(first, Requested)
    assert isinstance(second, Routed)
    assert (first.tenant, first.key, first.campaign, first.recipients) == ("t", "k", "c", 1)
    (delivery,) = made.deliveries
    ready = delivery.ready
    assert delivery.step is None
    assert ready.delivery_id == second.delivery_id == delivery_id(MESSAGE, "ada@example.com", 0)
    assert (ready.hop, ready.attempt, ready.generation, ready.in_doubt) == (0, 1, 0, "resend")
    assert ready.expires_at == NOW - timedelta(seconds=1) + timedelta(seconds=Retry().expire_after_s)
    assert ready.content == MailContent(sender="shop@example.org", to=("ada@example.com",), subject="Hello", text="Hi")


def test_what_is_made_without_validation_is_valid_and_complete() -> None:
    made = routed(cc=("bob@example.com",), template=None, headers={"X-A": "1"})
    for fact in (*made.events, *(delivery.ready for delivery in made.deliveries), made.content):
        again = type(fact).model_validate(fact.model_dump())
        assert again == fact
        assert set(fact.__dict__) == set(type(fact).model_fields)


def test_one_delivery_per_recipient_and_nobody_sees_bcc() -> None:
    made = routed(
        to=("Ada <ada@Example.COM>", "ada@example.com"),
        cc=("bob@example.com",),
        bcc=("eve@example.com", "bob@example.com"),
    )
    assert [d.ready.recipient for d in made.deliveries] == ["ada@example.com", "bob@example.com", "eve@example.com"]
    assert len({d.ready.delivery_id for d in made.deliveries}) == 3
    assert made.content.to == ("Ada <ada@Example.COM>", "ada@example.com")
    assert made.content.cc == ("bob@example.com",)
    assert "eve" not in made.content.model_dump_json()


def test_a_bad_recipient_is_rejected_alone() -> None:
    made = routed(to=("ada@example.com", "no address"), cc=("x@y\r\nBcc: eve@example.com",))
    assert kinds(made) == ["Requested", "Routed", "Rejected", "Rejected"]
    assert [d.ready.recipient for d in made.deliveries] == ["ada@example.com"]
    assert made.content.to == ("ada@example.com",)
    assert made.content.cc == ()


@pytest.mark.parametrize(
    ("changes", "known", "expected"),
    [
        ({}, {"cancelled": True, "suppressed": ["ada@example.com"]}, "Cancelled"),
        ({}, {"suppressed": ["ada@example.com"]}, "Suppressed"),
        ({"expires_at": NOW}, {"suppressed": ["ada@example.com"]}, "Suppressed"),
        ({"expires_at": NOW}, {}, "Expired"),
        ({"requested_at": NOW - timedelta(days=5)}, {}, "Expired"),
        ({"expires_at": NOW + timedelta(seconds=1)}, {}, "Routed"),
        ({"send_at": NOW + timedelta(hours=1)}, {}, "Scheduled"),
        ({"send_at": NOW + timedelta(days=30)}, {}, "Scheduled"),
        ({"send_at": NOW - timedelta(hours=1)}, {}, "Routed"),
        ({}, {"paused": True}, "Scheduled"),
        ({"lane": "none"}, {}, "Rejected"),
        ({"template": TemplateRef(id="t")}, {}, "Rejected"),
        ({"template": TemplateRef(id="t")}, {"templates": {"t": 7}}, "Routed"),
        ({"template": TemplateRef(id="t", version=6)}, {"templates": {"t": 7}}, "Rejected"),
    ],
)
def test_what_becomes_of_a_recipient(changes: dict[str, Any], known: dict[str, Any], expected: str) -> None:
    made = routed(known=Known(**known), **changes)
    assert kinds(made) == ["Requested", expected]
    assert len(made.deliveries) == (expected in ("Routed", "Scheduled"))


def test_the_template_version_is_pinned() -> None:
    made = routed(known=Known(templates={"t": 7}), template=TemplateRef(id="t", data={"a": 1}), text=None)
    assert made.content.template == TemplateRef(id="t", version=7, data={"a": 1})
    assert made.deliveries[0].ready.content is made.content
    event = made.events[1]
    assert isinstance(event, Routed)
    assert event.template_version == 7


def test_send_at_waits_in_the_delay_stage() -> None:
    due = NOW + timedelta(hours=2)
    (delivery,) = routed(send_at=due).deliveries
    assert delivery.step is not None
    assert (delivery.step.name, delivery.ready.due_at, delivery.ready.reason) == ("1h", due, "send_at")


def test_a_mail_for_later_lives_as_long_from_then() -> None:
    (delivery,) = routed(send_at=NOW + timedelta(days=30)).deliveries
    assert delivery.ready.expires_at == NOW + timedelta(days=35)


def test_the_end_of_time_is_no_crash() -> None:
    made = routed(send_at=datetime(9999, 12, 31, tzinfo=UTC))
    assert kinds(made) == ["Requested", "Scheduled"]


def test_paused_is_looked_at_again_after_ten_seconds() -> None:
    (delivery,) = routed(known=Known(paused=True)).deliveries
    assert delivery.step is not None
    assert (delivery.step.name, delivery.ready.reason) == ("10s", "paused")


@pytest.mark.parametrize(
    ("lane", "asked", "expected"),
    [("transactional", None, "resend"), ("bulk", None, "park"), ("bulk", "resend", "resend")],
)
def test_in_doubt(lane: str, asked: str | None, expected: str) -> None:
    assert routed(lane=lane, in_doubt=asked).deliveries[0].ready.in_doubt == expected


def test_an_unknown_lane_names_the_known_ones() -> None:
    reason = getattr(routed(lane="bulc").events[1], "reason", "")
    assert "transactional, bulk" in reason
    assert "did you mean 'bulk'" in reason


def test_a_fault_rejects_all_and_too_much_in_all_too() -> None:
    two = ("ada@example.com", "bob@example.com")
    assert kinds(routed("sender: wrong", to=two)) == ["Requested", "Rejected", "Rejected"]
    many = tuple(f"r{n}@example.com" for n in range(12))
    assert kinds(routed(size=840_000, to=many)) == ["Requested", *["Rejected"] * 12]
    assert "Rejected" not in kinds(routed(size=830_000, to=many))


def test_a_replay_is_one_new_delivery_and_force_passes_the_suppression_list() -> None:
    known = Known(suppressed=["ada@example.com"])
    assert kinds(routed(known=known, generation=2)) == ["Requested", "Suppressed"]
    assert kinds(routed(known=known, replay_forced=True)) == ["Requested", "Suppressed"]  # no replay: no force
    (delivery,) = routed(known=known, generation=2, replay_forced=True).deliveries
    assert delivery.ready.forced
    assert delivery.ready.delivery_id == delivery_id(MESSAGE, "ada@example.com", 2)


def test_dedup_key() -> None:
    first, again = request(), request(generation=3)
    assert dedup_key(first, recipients(first)) == MESSAGE
    assert dedup_key(again, recipients(again)) == delivery_id(MESSAGE, "ada@example.com", 3)


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": [value]} if levels % 2 else {"a": value}
    return value


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"message_id": "../../etc"}, "message_id"),
        ({"message_id": MESSAGE.upper()}, "message_id"),
        ({"message_id": MESSAGE + "\r\nBcc: a@b"}, "message_id"),
        ({"to": ()}, "no recipient"),
        ({"to": ("a@b.example",) * 101}, "101 recipients"),
        ({"generation": 1, "cc": ("b@example.com",)}, "exactly one"),
        ({"generation": 1_000_000}, "generation"),
        ({"tenant": ""}, "tenant"),
        ({"tenant": "a\nb"}, "tenant"),
        ({"lane": "x" * 257}, "lane"),
        ({"campaign": "c\x00"}, "campaign"),
        ({"key": "k" * 1025}, "key"),
        ({"template": TemplateRef(id="")}, "template.id"),
        ({"template": TemplateRef(id="t", data=deep(DATA_DEPTH_MAX + 1))}, "nested"),
    ],
)
def test_what_is_no_request(changes: dict[str, Any], reason: str) -> None:
    asked = request(**changes)
    assert reason in (unacceptable(asked, asked.message_id.encode()) or "")


def test_what_is_one() -> None:
    asked = request(to=("a@b.example",) * 100, campaign="Frühling 2026", template=TemplateRef(id="t/x", data=deep(64)))
    assert unacceptable(asked, MESSAGE.encode()) is None


@pytest.mark.parametrize("key", [None, b"", b"\xff", MESSAGE.upper().encode()])
def test_the_key_of_the_record_must_be_the_message_id(key: bytes | None) -> None:
    assert unacceptable(request(), key) is not None


def test_ready_survives_the_sender_s_reading() -> None:
    ready = routed().deliveries[0].ready
    assert DispatchReady.model_validate_json(ready.model_dump_json()) == ready
