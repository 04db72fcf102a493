"""What a publisher that writes mail.requests itself can do, and cannot: as SECURITY.md says; both change together."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from postlane import InvalidMail, Mail
from postlane.core.events import AnyEvent, MailRequested
from postlane.core.identity import message_id_from_key
from postlane.core.policy import Config
from postlane.core.route import RoutePolicy
from postlane.eventlog.codec import decode_event, encode
from postlane.eventlog.ports import Outgoing, Received
from postlane.eventlog.topics import TopicNames
from postlane_router.deciding import Decider
from postlane_router.store import MemoryStore
from postlane_router.tables import RouterTables

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NAMES = TopicNames()
OURS = message_id_from_key("shop", "order-42")


class Router:
    """One router's memory and tables; each request is a record of its own."""

    def __init__(self) -> None:
        self.tables = RouterTables()
        self.store = MemoryStore()
        self.offset = 0

    def suppress(self, tenant: str, address: str) -> None:
        record = Received(NAMES.suppressions, 0, 0, 0, f"{tenant}/{address}".encode(), b"{}", ())
        self.tables.apply_suppression(record)

    def route(self, **said: Any) -> list[Outgoing]:
        base: dict[str, Any] = {
            "message_id": OURS, "tenant": "shop", "sender": "shop@example.org", "to": ["ada@example.com"], "text": "t",
            "requested_at": NOW,
        }  # fmt: skip
        request = MailRequested.model_validate({**base, **said})
        self.offset += 1
        key = request.message_id.encode()
        record = Received(NAMES.requests, 0, self.offset, int(NOW.timestamp() * 1000), key, encode(request), ())
        decider = Decider(NAMES, RoutePolicy.of(Config()), self.tables, self.store)
        (batch,) = decider.decide(decider.read([record]), NOW, {}, {}, 10**9)
        return list(batch.records)


def kinds(records: list[Outgoing]) -> list[str]:
    events: list[AnyEvent] = [decode_event(r.value) for r in records if r.topic == NAMES.events]
    return [event.type for event in events]


def test_the_suppression_list_holds_for_every_ordinary_request() -> None:
    router = Router()
    router.suppress("shop", "ada@example.com")
    assert "Suppressed" in kinds(router.route())


def test_it_can_claim_to_be_a_forced_replay_and_so_go_past_the_suppression_list() -> None:
    """Kafka does not say who wrote a record, and replays are requests: only a gateway keeps a publisher from this."""
    router = Router()
    router.suppress("shop", "ada@example.com")
    assert "Routed" in kinds(router.route(generation=1, replay_forced=True))


def test_it_can_claim_any_tenant_and_any_sender() -> None:
    (routed,) = [r for r in Router().route(tenant="bank", sender="ceo@bank.example") if r.topic.startswith("mail.disp")]
    assert b"bank" in (routed.value or b"")


@pytest.mark.parametrize("field", ["generation", "replay_of", "replay_recipient", "replay_forced", "message_id"])
def test_the_sdk_gives_no_such_field_to_its_callers(field: str) -> None:
    with pytest.raises((InvalidMail, TypeError)):
        Mail(sender="a@b.example", to=["c@d.example"], subject="s", text="t", **{field: 1})  # type: ignore[arg-type]


def test_a_lane_that_is_not_configured_is_rejected_and_makes_no_topic() -> None:
    written = Router().route(lane="../../x")
    assert kinds(written) == ["Requested", "Rejected"]
    assert {r.topic for r in written} == {NAMES.events, NAMES.seen}
