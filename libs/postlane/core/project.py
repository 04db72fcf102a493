"""The books as rows: how each event changes what is known of a mail and of a delivery. Pure folds.

The ledger's database, its rebuild, the tests and the simulation use these functions, so the fold of the log and the
tables cannot drift apart. Times are integers, milliseconds since 1970-01-01 UTC. Texts are bounded and free of NUL
here, because what comes from outside must fit every database's columns and indexes.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, TypedDict

from postlane.core.events import AnyEvent, Conflicted, DeliveryEvent, Replayed, Requested, Resolved, Uncertain
from postlane.core.lifecycle import TERMINAL, State, evolve, legal

ID_MAX_CHARS = 64
DELIVERY_ID_MAX_CHARS = 128
NAME_MAX_CHARS = 100  # lane, tenant, campaign, provider
ADDRESS_MAX_CHARS = 320  # RFC 5321 4.5.3.1: 64 + @ + 255
TEXT_MAX_CHARS = 1_000
COUNT_MAX = 2**31 - 1


class MessageRow(TypedDict):
    """A mail as it was requested. `generations` is the highest generation requested so far."""

    message_id: str
    tenant: str
    lane: str
    campaign: str | None
    idempotency_key: str | None
    sender: str
    subject: str
    recipients: int
    requested_at_ms: int
    generations: int
    conflicts: int


class DeliveryRow(TypedDict):
    """Where one recipient's mail of one generation stands.

    `attempt` is how often SMTP was tried, `doubts` how often the outcome stayed unknown; `replayed_as` is the
    generation that an operator's replay gave it. `reason`, `reply_*` and `provider` are those of the last event that
    had any; `next_at_ms` is None unless it waits for a time.
    """

    delivery_id: str
    message_id: str
    recipient: str
    recipient_domain: str
    generation: int
    tenant: str
    lane: str
    campaign: str | None
    state: str
    attempt: int
    hop: int
    doubts: int
    possibly_delivered: bool
    provider: str | None
    reply_code: int | None
    reply_enhanced: str | None
    reply_text: str | None
    reason: str | None
    next_at_ms: int | None
    requested_at_ms: int | None
    first_at_ms: int
    updated_at_ms: int
    settled_at_ms: int | None
    replayed_as: int | None


def fold_message(row: MessageRow | None, event: AnyEvent) -> MessageRow | None:
    """What is known of a mail after `event`, an event of this mail; the row itself is never changed."""
    if isinstance(event, Requested):
        if row is not None:
            return row if event.generation <= row["generations"] else {**row, "generations": event.generation}
        return {
            "message_id": event.message_id,
            "tenant": text(event.tenant, NAME_MAX_CHARS),
            "lane": text(event.lane, NAME_MAX_CHARS),
            "campaign": _optional(event.campaign, NAME_MAX_CHARS),
            "idempotency_key": _optional(event.key, TEXT_MAX_CHARS),
            "sender": text(event.sender, ADDRESS_MAX_CHARS),
            "subject": text(event.subject, TEXT_MAX_CHARS),
            "recipients": event.recipients,
            "requested_at_ms": unix_ms(event.requested_at),
            "generations": event.generation,
            "conflicts": 0,
        }
    if isinstance(event, Conflicted) and row is not None:
        return {**row, "conflicts": row["conflicts"] + 1}
    return row


def fold_delivery(
    row: DeliveryRow | None, event: DeliveryEvent, message: MessageRow | None = None
) -> DeliveryRow | None:
    """Where a delivery stands after `event`; the row itself is never changed.

    `message` is only asked for a delivery's first event. An event that is no legal move in the row's state changes
    nothing (lifecycle.TRANSITIONS); None stays None then.
    """
    said = event.__dict__  # a pydantic model answers for a missing attribute through a slow path
    kind: str = said["type"]
    if row is not None and isinstance(event, Replayed):
        return {**row, "replayed_as": event.replay_generation, "updated_at_ms": unix_ms(event.at)}
    before = None if row is None else State(row["state"])
    if not legal(before, kind):
        return row
    next_at = said.get("next_at")
    after = evolve(before, kind, again=next_at is not None, resolved=said.get("state"))
    at_ms = unix_ms(event.at)
    base = _first(event, message, at_ms) if row is None else row
    new: DeliveryRow = {
        **base,
        "state": str(after),
        "attempt": _attempts(base["attempt"], kind, event.attempt),
        "hop": max(base["hop"], event.hop),
        "possibly_delivered": base["possibly_delivered"] or event.possibly_delivered,
        "next_at_ms": None if next_at is None else unix_ms(next_at),
        "updated_at_ms": at_ms,
        "settled_at_ms": at_ms if after in TERMINAL else None,
    }
    if isinstance(event, Uncertain):
        new["doubts"] += 1
        new["possibly_delivered"] = True
    elif isinstance(event, Resolved):
        new["possibly_delivered"] = False
    _details(new, event)
    return new


def project(events: Iterable[AnyEvent]) -> tuple[dict[str, MessageRow], dict[str, DeliveryRow]]:
    """The books of a whole log: rows by message id and by delivery id. The reference that databases are held to."""
    messages: dict[str, MessageRow] = {}
    deliveries: dict[str, DeliveryRow] = {}
    for event in events:
        ident = event.message_id
        if ident is None:
            continue
        if isinstance(event, DeliveryEvent):
            known = deliveries.get(event.delivery_id)
            after = fold_delivery(known, event, None if known else messages.get(ident))
            if after is not None:
                deliveries[event.delivery_id] = after
        else:
            mail = fold_message(messages.get(ident), event)
            if mail is not None:
                messages[ident] = mail
    return messages, deliveries


def misfit(event: AnyEvent) -> str | None:
    """Why an event that is well-formed still fits no row (identifiers or counts beyond all bounds); None if it does."""
    said = event.__dict__
    ident = said["message_id"]
    if ident is not None and not _is_id(ident, ID_MAX_CHARS):
        return f"message_id: 1 to {ID_MAX_CHARS} printable characters are expected"
    delivery = said.get("delivery_id")
    if delivery is not None and not (_is_id(delivery, DELIVERY_ID_MAX_CHARS) and delivery.startswith(f"{ident}.")):
        return "delivery_id: does not belong to message_id"
    for name, value in said.items():
        if type(value) is int and not 0 <= value <= COUNT_MAX and name not in ("partition", "offset"):
            return f"{name}: out of range"
    reply = said.get("reply")
    if reply is not None and not 0 <= reply.code <= COUNT_MAX:
        return "reply.code: out of range"
    return None


def unix_ms(at: datetime) -> int:
    """Milliseconds since 1970-01-01 UTC of an aware datetime."""
    return round(at.timestamp() * 1000)


def text(value: str, max_chars: int) -> str:
    """`value` cut to `max_chars`, NUL shown as U+FFFD (PostgreSQL's text cannot hold it)."""
    if len(value) > max_chars:
        value = value[:max_chars]
    return value.replace("\x00", "\ufffd") if "\x00" in value else value


def _optional(value: str | None, max_chars: int) -> str | None:
    return None if value is None else text(value, max_chars)


def _is_id(value: str, max_chars: int) -> bool:
    return 0 < len(value) <= max_chars and value.isascii() and value.isprintable()


def _attempts(before: int, kind: str, number: int) -> int:
    """Attempts spent: an event's number is that of the attempt at hand, and a release takes it back."""
    if kind == "Attempted":
        return number
    return max(number - 1, 0) if kind == "Released" else before


def _details(new: DeliveryRow, event: DeliveryEvent) -> None:
    """Provider, reply and reason, where the event has them."""
    fields: dict[str, Any] = event.__dict__
    provider = fields.get("provider")
    if provider is not None:
        new["provider"] = text(provider, NAME_MAX_CHARS)
    reason = fields.get("reason")
    if reason is not None:
        new["reason"] = text(reason, TEXT_MAX_CHARS)
    reply = fields.get("reply")
    if reply is not None:
        new["reply_code"] = reply.code
        new["reply_enhanced"] = _optional(reply.enhanced, NAME_MAX_CHARS)
        new["reply_text"] = text(reply.text, TEXT_MAX_CHARS)


def _first(event: DeliveryEvent, message: MessageRow | None, at_ms: int) -> DeliveryRow:
    recipient = text(event.recipient, ADDRESS_MAX_CHARS)
    lane = message["lane"] if message is not None else text(event.__dict__.get("lane", ""), NAME_MAX_CHARS)
    return {
        "delivery_id": event.delivery_id,
        "message_id": event.message_id,
        "recipient": recipient,
        "recipient_domain": recipient.rpartition("@")[2].lower(),
        "generation": event.generation,
        "tenant": message["tenant"] if message is not None else "",
        "lane": lane,
        "campaign": message["campaign"] if message is not None else None,
        "state": "",
        "attempt": 0,
        "hop": 0,
        "doubts": 0,
        "possibly_delivered": False,
        "provider": None,
        "reply_code": None,
        "reply_enhanced": None,
        "reply_text": None,
        "reason": None,
        "next_at_ms": None,
        "requested_at_ms": message["requested_at_ms"] if message is not None else None,
        "first_at_ms": at_ms,
        "updated_at_ms": at_ms,
        "settled_at_ms": None,
        "replayed_as": None,
    }
