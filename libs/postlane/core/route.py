"""Route: what becomes of a request, one delivery per recipient; (request, knowledge, policy, now) -> a Routing.

A request that breaks the contract itself (`unacceptable`) is for the dead letters. One that keeps it is accepted:
`Requested`, then exactly one event per recipient, and a dispatch record for each that may be mailed, now or later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple, TypeVar

from postlane.core.addresses import InvalidAddress, parse_mailbox
from postlane.core.delay import PAUSED, PAUSED_AGAIN_S, Step, plan, until
from postlane.core.events import (
    FANOUT_MAX_BYTES,
    RECIPIENTS_MAX,
    AnyEvent,
    Cancelled,
    DispatchReady,
    Expired,
    Fact,
    InDoubt,
    MailContent,
    MailRequested,
    Rejected,
    Requested,
    Routed,
    Scheduled,
    Suppressed,
)
from postlane.core.identity import delivery_id
from postlane.core.knowledge import Knowledge
from postlane.core.policy import Config, Retry
from postlane.core.retry import expires_at

GENERATION_MAX = 999_999
NAME_MAX_CHARS = 256  # of tenant, lane, campaign and template id
KEY_MAX_CHARS = 1024
DATA_DEPTH_MAX = 64
SHOWN_MAX_CHARS = 320  # of an address that could not be read; the longest one is shorter
SUBJECT_SHOWN_MAX_CHARS = 998  # RFC 5322 2.1.1
_MESSAGE_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_CONTENT_FIELDS = tuple(MailContent.model_fields)
F = TypeVar("F", bound=Fact)
_set = object.__setattr__


@dataclass(frozen=True, slots=True)
class RoutePolicy:
    """What an operator decided that concerns routing: lanes with their default for doubts, and expiry."""

    lanes: Mapping[str, InDoubt]
    retry: Retry

    @classmethod
    def of(cls, config: Config) -> RoutePolicy:
        """The routing part of postlane.yaml."""
        return cls({name: lane.in_doubt for name, lane in config.lanes.items()}, config.retry)


class Delivery(NamedTuple):
    """A dispatch record for its lane, or for a step of the delay stage first."""

    ready: DispatchReady
    step: Step | None = None


@dataclass(slots=True)
class Routing:
    """What an accepted request becomes; `content` is shared by all deliveries."""

    content: MailContent
    events: list[AnyEvent] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)


class Recipient(NamedTuple):
    """One who is to get the mail: its normal form, or why there is none."""

    address: str
    delivery_id: str
    fault: str | None = None


# ----------------------------------------------------------------------------------------- is it a request at all?


def unacceptable(request: MailRequested, key: bytes | None) -> str | None:
    """Why this is no request by the contract (`key` is its record's key), None when it is one.

    What is checked here would break identity, deduplication or the names of things further on; what only concerns
    one mail's content is a rejection, not this.
    """
    if not _MESSAGE_ID.fullmatch(request.message_id):
        return "message_id: a UUID in lower case is expected"
    if key != request.message_id.encode():
        return "the key of the record is not its message_id"
    count = len(request.to) + len(request.cc) + len(request.bcc)
    named = request.replay_recipient is not None
    if named and request.generation == 0:
        return "replay_recipient: only a replay (generation above 0) names one"
    if count == 0 and not named:
        return "no recipient in to, cc or bcc"
    if count > RECIPIENTS_MAX:
        return f"{count} recipients; at most {RECIPIENTS_MAX}"
    if request.generation > GENERATION_MAX:
        return f"generation: at most {GENERATION_MAX}"
    if request.generation > 0 and count != 1 and not named:
        return "a replay (generation above 0) has exactly one recipient"
    for name, value in (("tenant", request.tenant), ("lane", request.lane), ("campaign", request.campaign)):
        if value is not None and not _is_name(value):
            return f"{name}: 1 to {NAME_MAX_CHARS} characters without control characters are expected"
    if request.key is not None and len(request.key) > KEY_MAX_CHARS:
        return f"key: at most {KEY_MAX_CHARS} characters"
    template = request.template
    if template is not None:
        if not _is_name(template.id):
            return f"template.id: 1 to {NAME_MAX_CHARS} characters without control characters are expected"
        if _deeper_than(template.data, DATA_DEPTH_MAX):
            return f"template.data: nested more than {DATA_DEPTH_MAX} deep"
    return None


def _is_name(value: str) -> bool:
    return 0 < len(value) <= NAME_MAX_CHARS and (value.isalnum() or not _CONTROL.search(value))


def _deeper_than(value: Any, depth_max: int) -> bool:
    """Whether containers nest deeper than `depth_max`; by levels, since recursion is what it protects from."""
    level = [value]
    for _ in range(depth_max):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def recipients(request: MailRequested) -> list[Recipient]:
    """Everyone in to, cc and bcc, once by normal form, in that order; only the one whom a replay names. Names the
    delivery of each."""
    found: dict[str, Recipient] = {}
    own = request.replay_recipient
    for text in (*request.to, *request.cc, *request.bcc) if own is None else (own,):
        try:
            address, fault = parse_mailbox(text).address, None
        except InvalidAddress as error:
            address, fault = text[:SHOWN_MAX_CHARS], str(error)
        if address not in found:
            found[address] = Recipient(address, delivery_id(request.message_id, address, request.generation), fault)
    return list(found.values())


def dedup_key(request: MailRequested, people: list[Recipient]) -> str:
    """What a request may be accepted for only once: its message id; a replay's new delivery."""
    return request.message_id if request.generation == 0 else people[0].delivery_id


# ------------------------------------------------------------------------------------------------- what becomes of it


def content_of(request: MailRequested, people: list[Recipient]) -> MailContent:
    """What the recipients will read: `to` and `cc` as published, save for what no header can carry."""
    own = request.__dict__
    content = _made(MailContent, {name: own[name] for name in _CONTENT_FIELDS})
    if any(person.fault for person in people):
        unreadable = {person.address for person in people if person.fault}
        to = tuple(text for text in request.to if text[:SHOWN_MAX_CHARS] not in unreadable)
        cc = tuple(text for text in request.cc if text[:SHOWN_MAX_CHARS] not in unreadable)
        content = content.model_copy(update={"to": to, "cc": cc})
    return content


def route(
    request: MailRequested,
    people: list[Recipient],
    content: MailContent,
    fault: str | None,
    size_bytes: int,
    knows: Knowledge,
    policy: RoutePolicy,
    now: datetime,
    trace: str | None = None,
) -> Routing:
    """The events and deliveries of an accepted request.

    `content` is from `content_of`; `fault` says why it cannot be mailed (None: it can); `size_bytes` is the size of
    the request's record; `trace` is the span that decides this (DispatchReady).
    """
    fault = fault or _too_much(len(people), size_bytes) or _no_such_lane(request.lane, policy)
    version = None
    if fault is None and request.template is not None:
        version = knows.template_version(request.template.id, request.template.version)
        if version is None:
            fault = _no_such_template(request.template.id, request.template.version)
    made = Routing(_pinned(content, version))
    made.events.append(_requested(request, len(people), now))
    ends = _expiry(request, policy)
    cancelled = knows.cancelled(request.message_id, request.campaign, request.requested_at)
    for person in people:
        ids = _ids(request, person, now)
        if person.fault or fault:
            made.events.append(Rejected(**ids, reason=person.fault or fault or ""))
        elif cancelled:
            made.events.append(Cancelled(**ids))
        elif not _forced(request) and knows.suppressed(request.tenant, person.address):
            made.events.append(Suppressed(**ids, reason="suppressed"))
        elif ends <= now:
            made.events.append(Expired(**ids))
        else:
            _deliver(made, request, person, ids, ends, version, knows, policy, now, trace)
    return made


def _deliver(
    made: Routing,
    request: MailRequested,
    person: Recipient,
    ids: dict[str, Any],
    ends: datetime,
    version: int | None,
    knows: Knowledge,
    policy: RoutePolicy,
    now: datetime,
    trace: str | None,
) -> None:
    due_at, reason, step = _waiting(request, ends, knows, now)
    ready = _made(
        DispatchReady,
        {
            "delivery_id": person.delivery_id,
            "message_id": request.message_id,
            "recipient": person.address,
            "generation": request.generation,
            "hop": 0,
            "attempt": 1,
            "doubts": 0,
            "lane": request.lane,
            "tenant": request.tenant,
            "campaign": request.campaign,
            "in_doubt": request.in_doubt or policy.lanes[request.lane],
            "requested_at": request.requested_at,
            "expires_at": ends,
            "due_at": due_at,
            "reason": reason,
            "failed_providers": (),
            "forced": _forced(request),
            "trace": trace,
            "content": made.content,
        },
    )
    made.deliveries.append(Delivery(ready, step))
    if due_at is None or reason is None:
        made.events.append(
            _made(
                Routed,
                {
                    **ids,
                    "attempt": 1,
                    "hop": 0,
                    "possibly_delivered": False,
                    "type": "Routed",
                    "lane": request.lane,
                    "template_version": version,
                },
            )
        )
    else:
        made.events.append(Scheduled(**ids, attempt=1, lane=request.lane, next_at=due_at, reason=reason))


def _waiting(
    request: MailRequested, ends: datetime, knows: Knowledge, now: datetime
) -> tuple[datetime | None, str | None, Step | None]:
    """(due at, reason, first step) of a delivery that waits, Nones for one that goes at once."""
    if request.send_at is not None:
        step = plan(until(request.send_at, ends), now)
        if step is not None:
            return request.send_at, "send_at", step
    if knows.paused(request.tenant, request.campaign):
        due_at = now + timedelta(seconds=PAUSED_AGAIN_S)
        return due_at, PAUSED, plan(until(due_at, ends), now)
    return None, None, None


def _requested(request: MailRequested, count: int, now: datetime) -> Requested:
    return _made(
        Requested,
        {
            "message_id": request.message_id,
            "generation": request.generation,
            "at": now,
            "type": "Requested",
            "tenant": request.tenant,
            "lane": request.lane,
            "key": request.key,
            "campaign": request.campaign,
            "sender": request.sender[:SHOWN_MAX_CHARS],
            "subject": request.subject[:SUBJECT_SHOWN_MAX_CHARS],
            "recipients": count,
            "requested_at": request.requested_at,
            "replay_of": request.replay_of,
        },
    )


def _pinned(content: MailContent, version: int | None) -> MailContent:
    template = content.template
    if template is None or version is None or template.version == version:
        return content
    return content.model_copy(update={"template": template.model_copy(update={"version": version})})


def _made(model: type[F], values: dict[str, Any]) -> F:
    """A fact of values that were validated as fields of another, every field given: at 20,000 requests a second,
    checking them again for each record written would cost as much as everything else here."""
    fact = model.__new__(model)
    _set(fact, "__dict__", values)
    _set(fact, "__pydantic_fields_set__", _fields(model))
    _set(fact, "__pydantic_extra__", None)
    _set(fact, "__pydantic_private__", None)
    return fact


@cache
def _fields(model: type[Fact]) -> set[str]:
    return set(model.model_fields)


def _ids(request: MailRequested, person: Recipient, now: datetime) -> dict[str, Any]:
    return {
        "message_id": request.message_id,
        "delivery_id": person.delivery_id,
        "recipient": person.address,
        "generation": request.generation,
        "at": now,
    }


def _forced(request: MailRequested) -> bool:
    return request.generation > 0 and request.replay_forced


def _expiry(request: MailRequested, policy: RoutePolicy) -> datetime:
    """What comes first: the publisher's `expires_at`, or the policy's time from the request.

    A mail for later counts from `send_at`: otherwise one for next week would expire before it is due.
    """
    begins = request.requested_at if request.send_at is None else max(request.requested_at, request.send_at)
    try:
        return expires_at(policy.retry, begins, request.expires_at)
    except OverflowError:  # the year 10000
        return request.expires_at or begins


def _too_much(count: int, size_bytes: int) -> str | None:
    if count * size_bytes <= FANOUT_MAX_BYTES:
        return None
    return f"{count} recipients of {size_bytes} bytes each; at most {FANOUT_MAX_BYTES} bytes in all"


def _no_such_lane(lane: str, policy: RoutePolicy) -> str | None:
    if lane in policy.lanes:
        return None
    near = get_close_matches(lane, list(policy.lanes), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown lane {lane!r} (known: {', '.join(policy.lanes)}){hint}"


def _no_such_template(template: str, version: int | None) -> str:
    return f"unknown template {template!r}" + ("" if version is None else f" in version {version}")
