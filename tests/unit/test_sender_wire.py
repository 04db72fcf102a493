"""The literals of the hot path say what their models say, field by field."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from postlane.core.books import Entry
from postlane.core.events import Attempted, DispatchReady, Fact, Intent, MailContent, Outcome
from postlane.eventlog.codec import decode
from postlane_sender import wire

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MAIL = DispatchReady(
    delivery_id="d", message_id="m", recipient="ä@example.com", generation=2, hop=3, attempt=4, doubts=1, lane="bulk",
    requested_at=NOW, content=MailContent(sender="a@example.org"),
)  # fmt: skip
ENTRY = Entry(1, 77, MAIL, provider="primary")
LANE: Any = SimpleNamespace(instance="s-1", boot="life", policy=SimpleNamespace(intent_ttl_s=7.5))


def whole(value: bytes, expected: Fact) -> None:
    read = decode(type(expected), value)
    assert read == expected
    assert read.model_fields_set == set(type(expected).model_fields), "a field of the model is not written"


def test_an_intent() -> None:
    whole(
        wire.intent(LANE, ENTRY, MAIL, NOW),
        Intent(
            delivery_id="d", hop=3, attempt=4, offset=77, instance="s-1", boot="life", provider="primary", ttl_ms=7500,
            at=NOW,
        ),
    )  # fmt: skip


def test_an_outcome() -> None:
    whole(wire.outcome("d", 3, 77, "Held", NOW), Outcome(delivery_id="d", hop=3, offset=77, result="Held", at=NOW))


def test_an_attempt() -> None:
    whole(
        wire.attempted(ENTRY, MAIL, NOW),
        Attempted(
            message_id="m", delivery_id="d", recipient="ä@example.com", generation=2, attempt=4, hop=3,
            possibly_delivered=True, at=NOW, provider="primary",
        ),
    )  # fmt: skip
