"""The fold of events into rows: pure, legal moves only, attempts as they were spent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postlane.core import events as ev
from postlane.core.lifecycle import TRANSITIONS, State, legal
from postlane.core.project import DeliveryRow, MessageRow, fold_delivery, fold_message, misfit, project, text, unix_ms

AT = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
IDS = {"message_id": "m", "delivery_id": "m.r.0", "recipient": "ada@Example.ORG", "at": AT}
REPLY = ev.ReplyInfo(code=451, enhanced="4.7.1", text="later")
NEXT = AT + timedelta(minutes=1)
KINDS: dict[str, dict[str, Any]] = {
    "Routed": {"lane": "bulk"},
    "Scheduled": {"lane": "bulk", "next_at": NEXT},
    "Suppressed": {"reason": "manual"},
    "Cancelled": {},
    "Expired": {},
    "Rejected": {"reason": "no_route"},
    "Attempted": {"provider": "primary", "attempt": 1},
    "Deferred": {"provider": "primary", "reply": REPLY, "reason": "greylisted", "next_at": NEXT, "attempt": 1},
    "Held": {"reason": "limit", "next_at": NEXT, "attempt": 1},
    "Released": {"reason": "no_connection", "next_at": NEXT, "attempt": 1},
    "Delivered": {"provider": "primary", "attempt": 1},
    "Bounced": {"provider": "primary", "reply": REPLY, "reason": "unknown", "attempt": 1},
    "Uncertain": {"provider": "primary", "reason": "lost", "policy": "park", "attempt": 1},
    "DeadLettered": {"reason": "given_up", "attempt": 1},
    "Replayed": {"replay_generation": 1},
    "Discarded": {},
    "Resolved": {"state": "delivered"},
}


def make(kind: str, **changes: Any) -> Any:
    """An event of that type."""
    return getattr(ev, kind)(**{**IDS, **KINDS[kind], **changes})


def after(*told: Any) -> DeliveryRow:
    row: DeliveryRow | None = None
    for event in told:
        row = fold_delivery(row, event)
    assert row is not None
    return row


def requested(**changes: Any) -> ev.Requested:
    said = {"message_id": "m", "at": AT, "tenant": "acme", "lane": "bulk", "campaign": "spring", "sender": "s@x",
            "subject": "hi", "recipients": 2, "requested_at": AT, "key": "k"}  # fmt: skip
    return ev.Requested(**{**said, **changes})


def test_every_delivery_event_is_in_the_table_above() -> None:
    named = {model.model_fields["type"].default for model in ev.DeliveryEvent.__subclasses__()}
    assert named == set(KINDS)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"Replayed"}))
def test_from_nothing_only_the_legal_firsts_make_a_row(kind: str) -> None:
    row = fold_delivery(None, make(kind))
    assert (row is not None) is legal(None, kind)
    if row is not None:
        assert row["state"] == TRANSITIONS[kind][None]


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"Replayed"}))
@pytest.mark.parametrize("state", list(State))
def test_an_illegal_move_changes_nothing_and_a_legal_one_moves_the_state(state: State, kind: str) -> None:
    row: DeliveryRow = {**after(make("Routed")), "state": str(state)}
    kept = dict(row)
    new = fold_delivery(row, make(kind))
    assert row == kept  # pure
    assert new is not None
    if legal(state, kind):
        assert new["state"] == TRANSITIONS[kind][state]
    else:
        assert new is row


def test_what_a_first_event_takes_from_its_mail() -> None:
    mail = fold_message(None, requested())
    row = fold_delivery(None, make("Routed", lane="transactional"), mail)
    assert row is not None
    assert (row["tenant"], row["lane"], row["campaign"]) == ("acme", "bulk", "spring")
    assert (row["recipient_domain"], row["requested_at_ms"]) == ("example.org", unix_ms(AT))


def test_attempts_are_those_that_were_spent() -> None:
    sent = (make("Routed", attempt=1), make("Attempted", attempt=1))
    assert after(make("Routed", attempt=1))["attempt"] == 0
    assert after(make("Routed"), make("Held", attempt=1))["attempt"] == 0
    assert after(*sent)["attempt"] == 1
    assert after(*sent, make("Released", attempt=1))["attempt"] == 0
    assert after(*sent, make("Deferred"), make("Attempted", attempt=2))["attempt"] == 2


def test_a_doubt_is_counted_and_remembered_until_it_is_resolved() -> None:
    sent = (make("Routed"), make("Attempted"))
    again = after(*sent, make("Uncertain", policy="resend", next_at=NEXT))
    assert (again["state"], again["doubts"], again["possibly_delivered"]) == ("scheduled", 1, True)
    delivered = after(*sent, make("Uncertain", next_at=NEXT), make("Attempted", attempt=2), make("Delivered"))
    assert (delivered["state"], delivered["possibly_delivered"]) == ("delivered", True)
    parked = after(*sent, make("Uncertain"))
    assert (parked["state"], parked["settled_at_ms"], parked["next_at_ms"]) == ("uncertain", unix_ms(AT), None)
    resolved = after(*sent, make("Uncertain"), make("Resolved", state="bounced"))
    assert (resolved["state"], resolved["doubts"], resolved["possibly_delivered"]) == ("bounced", 1, False)


def test_a_wait_has_its_time_and_loses_it_when_it_is_over() -> None:
    held = after(make("Routed"), make("Held"))
    assert (held["next_at_ms"], held["settled_at_ms"]) == (unix_ms(NEXT), None)
    assert after(make("Routed"), make("Held"), make("Attempted"))["next_at_ms"] is None


def test_a_replay_marks_the_old_delivery_and_leaves_its_state() -> None:
    row = after(make("Routed"), make("DeadLettered"), make("Replayed", replay_generation=3))
    assert (row["state"], row["replayed_as"]) == ("dead_lettered", 3)


def test_a_message_keeps_its_first_request_and_counts_generations_and_conflicts() -> None:
    first = fold_message(None, requested())
    again = fold_message(first, requested(generation=2, subject="other", recipients=1, replay_of="m.r.0"))
    assert again is not None
    assert first is not None
    assert (again["subject"], again["recipients"], again["generations"]) == ("hi", 2, 2)
    conflicted = fold_message(again, ev.Conflicted(message_id="m", at=AT))
    assert conflicted is not None
    assert (conflicted["conflicts"], first["conflicts"], first["generations"]) == (1, 0, 0)
    assert fold_message(None, ev.Conflicted(message_id="m", at=AT)) is None


@given(st.lists(st.sampled_from(sorted(KINDS)), max_size=30))
def test_any_sequence_ends_where_folding_step_by_step_does(kinds: list[str]) -> None:
    told = [requested(), *(make(kind) for kind in kinds)]
    messages, deliveries = project(told)
    mail: MessageRow | None = messages["m"]
    row: DeliveryRow | None = None
    for event in told[1:]:
        row = fold_delivery(row, event, mail)
    assert deliveries == ({} if row is None else {"m.r.0": row})
    if row is not None:
        assert (row["settled_at_ms"] is not None) is (row["state"] not in ("pending", "scheduled", "held", "sending"))


@given(st.text(), st.integers(1, 50))
def test_a_text_is_bounded_and_free_of_nul(value: str, most: int) -> None:
    cut = text(value, most)
    assert len(cut) <= most
    assert "\x00" not in cut
    assert cut == value[:most].replace("\x00", "\ufffd")


@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)))
def test_milliseconds_are_exact(at: datetime) -> None:
    assert abs(unix_ms(at) - (at - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1)) <= 1


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"message_id": "m" * 65}, "message_id"),
        ({"message_id": "é"}, "message_id"),
        ({"delivery_id": "other.r.0"}, "delivery_id"),
        ({"attempt": -1}, "attempt"),
        ({"hop": 2**31}, "hop"),
        ({"reply": ev.ReplyInfo(code=2**40)}, "reply.code"),
    ],
)
def test_a_misfit_is_named(changes: dict[str, Any], place: str) -> None:
    assert misfit(make("Delivered")) is None
    assert (misfit(make("Delivered", **changes)) or "").startswith(place)
