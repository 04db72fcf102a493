"""Golden samples: for every record one with all fields and one with only those that must be there."""

from __future__ import annotations

from typing import Any, get_args

from postlane.core import events
from postlane.core.events import Fact
from postlane.core.health_facts import Observed, ProviderHealth
from postlane.core.identity import delivery_id, message_id_from_key

MESSAGE = message_id_from_key("default", "order-42")
DELIVERY = delivery_id(MESSAGE, "ada@example.com")
_T0, _T1, _T2 = "2026-01-31T09:00:00Z", "2026-01-31T09:00:01.250Z", "2026-01-31T09:10:00Z"
_REPLY = {"code": 250, "enhanced": "2.0.0", "text": "Ok: queued as 4Z1x"}
_TEMPLATE = {"id": "order-shipped", "version": 3, "data": {"name": "Ada", "items": [{"sku": "A-1", "count": 2}]}}
_ATTACHMENT = {
    "filename": "invoice.txt",
    "content_type": "text/plain",
    "content": "SW52b2ljZSA0MgpUb3RhbDogMTIuNTAK",
    "content_id": "invoice",
    "disposition": "attachment",
}
_CONTENT = {
    "sender": "Shop <shop@example.org>",
    "to": ["Ada Lovelace <ada@example.com>"],
    "cc": ["grace@example.com"],
    "reply_to": "service@example.org",
    "subject": "Bestellung 42 ist unterwegs ✈",
    "text": "On its way.",
    "html": "<p>On its way.</p>",
    "attachments": [_ATTACHMENT],
    "headers": {"X-Order": "42"},
}
_TALLY = {
    "delivered": 73,
    "bounced": 1,
    "deferred": 25,
    "throttled": 1,
    "blocked": 0,
    "failed": 0,
    "unreached": 1,
    "answer_s": [[41, 90], [48, 9]],
}
_FIGURES = {
    "state": "degraded",
    "reason": "25% deferred",
    **{name: count for name, count in _TALLY.items() if name != "answer_s"},
    "answer_p50_s": 0.0474,
    "answer_p95_s": 0.0924,
    "answer_p99_s": 0.0924,
}

# What a field holds in every sample, unless the record has a value of its own below.
_COMMON: dict[str, Any] = {
    **_CONTENT,
    "address": "ada@example.com",
    "at": _T1,
    "attempt": 1,
    "bcc": ["archive@example.org"],
    "boot": "b1",
    "campaign": "spring",
    "content": _CONTENT,
    "delivery_id": DELIVERY,
    "digest": "9f86d081884c7d659a2feaa0c55ad015",
    "doubts": 0,
    "due_at": _T2,
    "expires_at": "2026-02-05T09:00:00Z",
    "failed_providers": ["primary"],
    "forced": False,
    "generation": 0,
    "hop": 2,
    "in_doubt": "resend",
    "instance": "sender-0",
    "key": "order-42",
    "lane": "transactional",
    "message_id": MESSAGE,
    "next_at": _T2,
    "offset": 4711,
    "partition": 5,
    "policy": "resend",
    "possibly_delivered": False,
    "provider": "primary",
    "reason": "connection_lost",
    "recipient": "ada@example.com",
    "recipients": 2,
    "replay_forced": False,
    "replay_generation": 1,
    "replay_of": DELIVERY,
    "replay_recipient": "ada@example.com",
    "reply": _REPLY,
    "requested_at": _T0,
    "result": "Delivered",
    "run": "replay-2026-02-01",
    "send_at": _T1,
    "state": "delivered",
    "tenant": "default",
    "topic": "mail.requests",
    "trace": "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
    "ttl_ms": 7000,
    "template_version": 3,
}
_OWN: dict[type[Fact], dict[str, Any]] = {
    events.Bounced: {"reply": {"code": 550, "enhanced": "5.1.1", "text": "No such user"}, "reason": "recipient"},
    events.Conflicted: {"reason": "key_conflict"},
    events.Control: {"action": "pause", "scope": "campaign", "name": "spring", "reason": "wrong price"},
    events.Deferred: {"reply": {"code": 451, "enhanced": "4.3.0", "text": "Try again later"}, "reason": "server"},
    events.Delivered: {"possibly_delivered": True},
    Observed: {"breaker": "closed", "oldest_wait_s": 0.05, "total": _TALLY, "domains": {"example.com": _TALLY}},
    ProviderHealth: {
        **_FIGURES,
        "instance": "health-0",
        "window_s": 30,
        "senders": 2,
        "senders_open": 0,
        "oldest_wait_s": 0.05,
        "domains": {"example.com": _FIGURES},
    },
    events.Suppression: {"reason": "hard_bounce"},
    events.Template: {"id": "order-shipped", "version": 3, "subject": "Order {{ order }}", "text": "Hi {{ name }}"},
}
EVENTS: tuple[type[Fact], ...] = get_args(get_args(events.AnyEvent)[0])
RECORDS: tuple[type[Fact], ...] = (
    events.MailRequested,
    events.DispatchReady,
    events.Intent,
    events.Outcome,
    events.Seen,
    *EVENTS,
    events.Suppression,
    events.Template,
    events.Control,
    Observed,
    ProviderHealth,
)


def full(model: type[Fact]) -> Fact:
    """A sample with every field. Raises KeyError for a field that has no example: write one above."""
    own = {**_COMMON, **_OWN.get(model, {})}
    if model is events.MailRequested:
        own["template"] = None  # text and html are given; a sample with a template is `templated`
    return model.model_validate({name: own[name] for name in model.model_fields if name not in ("type", "kind")})


def minimal(model: type[Fact]) -> Fact:
    """A sample with the fields that must be there."""
    own = {**_COMMON, **_OWN.get(model, {})}
    return model.model_validate({name: own[name] for name, field in model.model_fields.items() if field.is_required()})


def templated() -> events.MailRequested:
    """A request that a template renders."""
    fields = {**_COMMON, "template": _TEMPLATE, "text": None, "html": None, "attachments": []}
    return events.MailRequested.model_validate({name: fields[name] for name in events.MailRequested.model_fields})
