"""What a replay writes: the request of a new generation, an original once more, the events that say so.

A new generation asks for what the first one asked for, from one recipient only: `to` and `cc` stay as everyone read
them and `replay_recipient` names who gets it, so whoever was in `bcc` stays hidden. It begins anew: `requested_at` is
the time of the replay, `send_at` is over, and the expiry of the original ended with the original (the router gives
the new one its own, by policy; an operator may set one). The template stays pinned to the version of the original
unless the operator asks for the newest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from postlane.core.events import (
    DispatchReady,
    Fact,
    LetterEvent,
    MailContent,
    MailRequested,
    Redriven,
    Replayed,
)
from postlane.core.identity import delivery_id, message_id_from_key
from postlane.core.route import Recipient, content_of, recipients
from postlane.eventlog.codec import encode, headers, trace_headers
from postlane.eventlog.dead_letters import original_of
from postlane.eventlog.murmur2 import partition_of
from postlane.eventlog.ports import Outgoing, Received
from postlane.eventlog.topics import TopicNames
from postlane.ops.letters import Letter

SOURCE = "postlane/replay"
_CONTENT = tuple(MailContent.model_fields)


@dataclass(frozen=True, slots=True)
class Manner:
    """How an operator wants the new mails to be."""

    expires_at: datetime | None = None
    newest_template: bool = False
    reason: str = ""
    run: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """What one candidate became in the plan."""

    generation: int
    replays: int
    forced: bool = False


def of_dispatch(mail: DispatchReady, order: Order, manner: Manner, now: datetime) -> MailRequested:
    """The request of the next generation of a delivery that is a dead letter."""
    return _request(
        mail.content,
        manner,
        message_id=mail.message_id,
        tenant=mail.tenant,
        lane=mail.lane,
        campaign=mail.campaign,
        in_doubt=mail.in_doubt,
        requested_at=now,
        generation=order.generation,
        replay_of=delivery_id(mail.message_id, mail.recipient, order.replays),
        replay_recipient=mail.recipient,
        replay_forced=order.forced,
    )


def of_request(
    request: MailRequested, person: Recipient, people: list[Recipient], order: Order, manner: Manner, now: datetime
) -> MailRequested:
    """The request of the next generation of one recipient of an earlier request."""
    return _request(
        content_of(request, people),
        manner,
        message_id=request.message_id,
        tenant=request.tenant,
        lane=request.lane,
        campaign=request.campaign,
        in_doubt=request.in_doubt,
        requested_at=now,
        generation=order.generation,
        replay_of=delivery_id(request.message_id, person.address, order.replays),
        replay_recipient=person.address,
        replay_forced=order.forced,
    )


def _request(content: MailContent, manner: Manner, **values: object) -> MailRequested:
    said = {name: getattr(content, name) for name in _CONTENT}
    if manner.newest_template and content.template is not None:
        said["template"] = content.template.model_copy(update={"version": None})
    return MailRequested(**said, expires_at=manner.expires_at, **values)  # type: ignore[arg-type]


def of_conflict(letter: Letter, manner: Manner, now: datetime) -> MailRequested:
    """A request whose key was taken, as a mail of its own: its id derives from the dead letter, so that doing it
    twice asks for one mail."""
    request = letter.request
    assert request is not None
    own = message_id_from_key(request.tenant, f"dead-letter\x00{letter.id}\x00{request.message_id}")
    changes = {"message_id": own, "key": None, "requested_at": now, "expires_at": manner.expires_at, "send_at": None}
    return request.model_copy(update=changes)


class Scribe:
    """Writes the records of one run; `token` tells its events from those of every other run."""

    def __init__(self, names: TopicNames, manner: Manner, token: str, partitions: int) -> None:
        self._names = names
        self._manner = manner
        self._token = token
        self._partitions = partitions

    def ident(self, source: Received, digest: str) -> str:
        """The `ce_id` of the event about one candidate."""
        return f"{self._token}/{source.topic}/{source.partition}/{source.offset}/{digest}"

    def replay_dispatch(self, letter: Letter, order: Order, digest: str, now: datetime) -> list[Outgoing]:
        """Request and event for the dead letter of a delivery."""
        mail = letter.mail
        assert mail is not None
        request = of_dispatch(mail, order, self._manner, now)
        return self._replayed(request, mail.recipient, order, letter.record, digest, now)

    def replay_request(
        self, source: Received, request: MailRequested, digest: str, order: Order, now: datetime
    ) -> list[Outgoing]:
        """Request and event for one recipient of a request; nothing when that recipient is not in it."""
        people = recipients(request)
        for person in people:
            if person.delivery_id.split(".")[1] == digest:
                again = of_request(request, person, people, order, self._manner, now)
                return self._replayed(again, person.address, order, source, digest, now)
        return []

    def redrive(self, letter: Letter, now: datetime) -> list[Outgoing]:
        """The original once more, or the mail of its own that a conflict becomes, and the event."""
        if letter.source == "conflict":
            request = of_conflict(letter, self._manner, now)
            key = request.message_id.encode()
            number = partition_of(key, self._partitions)
            record = self._asked(request, number, request.message_id, letter.record, now)
        else:
            record = original_of(letter.record)
        event = Redriven(
            topic=record.topic,
            message_id=message_of(letter),
            partition=letter.record.partition,
            offset=letter.record.offset,
            reason=self._manner.reason,
            run=self._manner.run,
            at=now,
        )
        return [record, self._event(letter.record, event, self.ident(letter.record, ""), now)]

    def event_of_letter(self, letter: Letter, event: LetterEvent, now: datetime) -> Outgoing:
        """An event about a dead letter that is no delivery's."""
        return self._event(letter.record, event, self.ident(letter.record, ""), now)

    def event_of_delivery(self, source: Received, event: Fact, digest: str, now: datetime) -> Outgoing:
        """An event about a delivery."""
        return self._event(source, event, self.ident(source, digest), now)

    def _replayed(
        self, request: MailRequested, recipient: str, order: Order, source: Received, digest: str, now: datetime
    ) -> list[Outgoing]:
        fresh = delivery_id(request.message_id, recipient, order.generation)
        event = Replayed(
            message_id=request.message_id,
            delivery_id=delivery_id(request.message_id, recipient, order.replays),
            recipient=recipient,
            generation=order.replays,
            replay_generation=order.generation,
            at=now,
            reason=self._manner.reason,
            run=self._manner.run,
        )
        return [
            self._asked(request, source.partition, fresh, source, now),
            self._event(source, event, self.ident(source, digest), now),
        ]

    def _asked(self, request: MailRequested, partition: int, ident: str, source: Received, now: datetime) -> Outgoing:
        trace: Sequence[tuple[str, bytes]] = trace_headers(source.headers)
        wire = headers(MailRequested, SOURCE, ident, now, trace)
        return Outgoing(self._names.requests, partition, request.message_id.encode(), encode(request), wire)

    def _event(self, source: Received, event: Fact, ident: str, now: datetime) -> Outgoing:
        own = getattr(event, "message_id", None)
        key = own.encode() if own is not None else source.key
        wire = headers(type(event), SOURCE, ident, now, trace_headers(source.headers))
        return Outgoing(self._names.events, source.partition, key, encode(event), wire)


def message_of(letter: Letter) -> str | None:
    """The id of the mail in a dead letter, where it looks like one."""
    if letter.request is not None and letter.request.message_id.isascii() and len(letter.request.message_id) == 36:
        return letter.request.message_id
    return None
