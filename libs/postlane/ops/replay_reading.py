"""What a replay reads: the dead letters or a window of requests, and what the events say of them; topics only.

A mail keeps one partition number in every topic, so everything is read one partition at a time: candidates first,
then the events up to the high watermark that the partition has by then. Kept are compact facts about candidates;
`CANDIDATES_MAX` bounds them per partition, and contents are read again when they are needed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from hashlib import blake2b
from typing import Literal

from postlane.core.events import EVERY_TENANT, REQUEST_MAX_BYTES, LetterDiscarded, MailRequested, Redriven, ce_type
from postlane.core.identity import split_delivery_id
from postlane.core.replay import Candidate
from postlane.core.replay_facts import Facts
from postlane.core.route import recipients, unacceptable
from postlane.eventlog.codec import Unreadable, decode_event, decode_record, encode, header, time_of
from postlane.eventlog.ports import Log, Partition, Received
from postlane.eventlog.tables import ControlTable
from postlane.eventlog.topics import TopicNames
from postlane.ops.letters import Filters, Letter, mail_fields, read_letter, time_text
from postlane.ops.replay_requests import Manner, Order, of_dispatch, of_request

CANDIDATES_MAX = 200_000  # in one partition
READ_DEADLINE_S = 60.0  # for a range to be reached although a dead writer's transaction is still open
EVENTS_MARGIN = timedelta(days=1)  # how far a publisher's clock may be ahead of ours
WINDOW_MARGIN = timedelta(hours=1)  # how far the records of one partition may be out of the order of their times
_SIZE_SLACK_BYTES = 2_048  # what a replay's own fields may add to a request
_LETTER_EVENTS = frozenset({ce_type(Redriven).encode(), ce_type(LetterDiscarded).encode()})

Told = Callable[[str, int, int], None]  # (what is read or written, done, in all)


class TooMany(Exception):
    """More candidates than are kept in memory; the message says what to do."""

    exit_code = 4


def _quiet(what: str, done: int, total: int) -> None:
    """Nobody watches."""


@dataclass(slots=True)
class Standing:
    """What holds now for whole tenants, campaigns and addresses: the suppression list and the orders."""

    suppressed: set[bytes] = field(default_factory=set)
    control: ControlTable = field(default_factory=ControlTable)

    def is_suppressed(self, tenant: str, address: str) -> bool:
        """Whether this tenant, or every tenant, never mails this address."""
        own = address.lower()
        return bool(self.suppressed) and any(
            _digest(f"{owner}/{own}".encode()) in self.suppressed for owner in (tenant, EVERY_TENANT)
        )

    def called_off(
        self, message_id: str, campaign: str | None, requested_at: datetime
    ) -> Literal["", "campaign", "message"]:
        """Whether an order calls a mail off that was requested then, and which sort of order."""
        if ("cancel", "message", message_id) in self.control.orders:
            return "message"
        return "campaign" if self.control.cancelled(message_id, campaign, requested_at) else ""


@dataclass(slots=True)
class Found:
    """The candidates of one partition with what is known of them; `letters_seen` counts records looked at."""

    candidates: list[Candidate] = field(default_factory=list)
    facts: Facts = field(default_factory=lambda: Facts(set()))
    oldest: datetime | None = None  # when the earliest of the first generations was requested
    replays: bool = False  # among them are later generations

    def add(self, candidate: Candidate, requested_at: datetime) -> None:
        """Keep one candidate. Raises TooMany."""
        if len(self.candidates) >= CANDIDATES_MAX:
            raise TooMany(
                f"more than {CANDIDATES_MAX} candidates in partition {candidate.partition}; "
                "narrow it down with --since, --until or other filters"
            )
        self.candidates.append(candidate)
        self.oldest = requested_at if self.oldest is None else min(self.oldest, requested_at)
        self.replays = self.replays or candidate.generation > 0


class Reading:
    """Reads for one plan or one list. Use from one event loop."""

    def __init__(self, log: Log, names: TopicNames, told: Told = _quiet) -> None:
        self._log = log
        self._names = names
        self._told = told

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has. Raises UnknownTopic, Retriable."""
        return await self._log.partition_count(topic)

    async def records(
        self, partition: Partition, what: str, start: int | None = None, end: int | None = None
    ) -> AsyncIterator[Received]:
        """Every committed record of a partition from `start` (the log's start) up to `end` (the high watermark)."""
        low = (await self._log.low_watermarks([partition]))[partition]
        high = (await self._log.high_watermarks([partition]))[partition] if end is None else end
        begin = low if start is None else max(start, low)
        if begin >= high:
            return
        async for batch in self._log.read(partition, begin, high, deadline_s=READ_DEADLINE_S):
            for record in batch:
                yield record
            if batch:
                self._told(what, batch[-1].offset + 1 - begin, high - begin)

    async def letters(self, number: int, filters: Filters) -> AsyncIterator[Letter]:
        """The dead letters of a partition that the filters mean, by offset."""
        partition = Partition(self._names.dead_letters, number)
        start = await self._offset(partition, filters.since, WINDOW_MARGIN)
        end = None
        if filters.letters and not filters.deliveries:
            named = [offset for p, offset in filters.letters if p == number]
            if not named:
                return
            high = (await self._log.high_watermarks([partition]))[partition]
            start, end = min(named), min(max(named) + 1, high)
        async for record in self.records(partition, f"dead letters {number}", start, end):
            if not filters.within(record.timestamp_ms):
                continue
            letter = read_letter(record, self._names)
            if filters.names_one(number, record.offset, letter.delivery_id) and filters.hold(letter.fields()):
                yield letter

    async def letter(self, number: int, offset: int) -> Letter | None:
        """One dead letter; None where there is none (any more)."""
        partition = Partition(self._names.dead_letters, number)
        if number >= await self.partitions(partition.topic):
            return None
        async for record in self.records(partition, "dead letter", offset):
            return read_letter(record, self._names) if record.offset == offset else None
        return None

    async def found_letters(self, number: int, filters: Filters, standing: Standing, manner: Manner) -> Found:
        """Candidates among the dead letters of a partition."""
        found = Found()
        async for letter in self.letters(number, filters):
            given_up = time_of(letter.record.timestamp_ms)
            requested_at = given_up if letter.mail is None else letter.mail.requested_at
            found.add(candidate_of(letter, standing, manner), min(given_up, requested_at))
        await self._facts(number, found)
        return found

    async def found_requests(self, number: int, filters: Filters, standing: Standing, manner: Manner) -> Found:
        """Candidates among the recipients of a window of requests."""
        found = Found()
        partition = Partition(self._names.requests, number)
        start = await self._offset(partition, filters.since, WINDOW_MARGIN)
        until = None if filters.until is None else filters.until + 2 * WINDOW_MARGIN
        end = await self._offset(partition, until, WINDOW_MARGIN)
        async for record in self.records(partition, f"requests {number}", start, end):
            if filters.within(record.timestamp_ms):
                for candidate, at in _of_request(record, filters, standing, manner):
                    found.add(candidate, at)
        await self._facts(number, found)
        return found

    async def facts(self, number: int, message_ids: set[str], since: datetime | None = None) -> Facts:
        """What the events of a partition say of these mails, up to its high watermark now."""
        facts = Facts(message_ids)
        keys = {ident.encode() for ident in message_ids}
        partition = Partition(self._names.events, number)
        start = await self._offset(partition, since, EVENTS_MARGIN)
        async for record in self.records(partition, f"events {number}", start):
            if record.key in keys or header(record.headers, "ce_type") in _LETTER_EVENTS:
                try:
                    facts.fold(decode_event(record.value))
                except Unreadable:
                    continue  # the ledger keeps and counts these
        return facts

    async def _facts(self, number: int, found: Found) -> None:
        if found.candidates:
            ids = {c.message_id for c in found.candidates if c.message_id is not None}
            found.facts = await self.facts(number, ids, None if found.replays else found.oldest)

    async def _offset(self, partition: Partition, since: datetime | None, margin: timedelta) -> int | None:
        if since is None:
            return None
        # In numbers: a record may name the year 1, and no datetime lies before that.
        unix_ms = max(0, int((since.timestamp() - margin.total_seconds()) * 1000))
        return (await self._log.offsets_at([partition], unix_ms))[partition]

    async def standing(self) -> Standing:
        """The suppression list and the orders as they are now."""
        standing = Standing()
        for number in range(await self.partitions(self._names.suppressions)):
            async for record in self.records(Partition(self._names.suppressions, number), "suppressions"):
                if record.key is not None:
                    (standing.suppressed.discard if record.value is None else standing.suppressed.add)(
                        _digest(record.key)
                    )
        for number in range(await self.partitions(self._names.control)):
            async for record in self.records(Partition(self._names.control, number), "orders"):
                standing.control.apply(record)
        return standing


def candidate_of(letter: Letter, standing: Standing, manner: Manner) -> Candidate:
    """A dead letter as a candidate."""
    record, mail, request = letter.record, letter.mail, letter.request
    if mail is None:
        fields = letter.fields()
        return Candidate(
            source=letter.source,
            partition=record.partition,
            offset=record.offset,
            message_id=None,
            generation=0 if request is None else request.generation,
            reason=letter.reason,
            lane=fields.get("lane", ""),
            domain=fields.get("domain", ""),
            readable=letter.redrivable and (letter.source == "poison" or request is not None),
        )
    message, digest, generation = split_delivery_id(mail.delivery_id)
    return Candidate(
        source="letter",
        partition=record.partition,
        offset=record.offset,
        message_id=message,
        digest=digest,
        generation=generation,
        hop=mail.hop if letter.reason == "undecodable" else None,
        reason=letter.reason,
        lane=mail.lane,
        domain=letter.fields()["domain"],
        suppressed=standing.is_suppressed(mail.tenant, mail.recipient),
        called_off=standing.called_off(message, mail.campaign, mail.requested_at),
        too_large=_too_large(
            record, lambda: of_dispatch(mail, Order(generation + 1, generation), manner, mail.requested_at)
        ),
    )


def _of_request(
    record: Received, filters: Filters, standing: Standing, manner: Manner
) -> Sequence[tuple[Candidate, datetime]]:
    try:
        request = decode_record(MailRequested, record)
    except Unreadable:
        return ()  # it is a dead letter
    if unacceptable(request, record.key) is not None:
        return ()
    found = []
    people = recipients(request)
    place = {"partition": record.partition, "offset": record.offset, "at": time_text(record.timestamp_ms)}
    for person in people:
        fields = (
            mail_fields(request, person.address) | place | {"delivery_id": person.delivery_id, "topic": record.topic}
        )
        if not filters.hold(fields, history_later=True):
            continue
        message, digest, generation = split_delivery_id(person.delivery_id)
        order = Order(generation + 1, generation)
        candidate = Candidate(
            source="request",
            partition=record.partition,
            offset=record.offset,
            message_id=message,
            digest=digest,
            generation=generation,
            requested_at=request.requested_at,
            lane=request.lane,
            domain=fields["domain"],
            suppressed=standing.is_suppressed(request.tenant, person.address),
            called_off=standing.called_off(message, request.campaign, request.requested_at),
            too_large=_too_large(
                record, partial(of_request, request, person, people, order, manner, request.requested_at)
            ),
        )
        # Not the publisher's word alone: with a clock far ahead, events would be looked for behind where they are. The
        # broker refuses records from the future (message.timestamp.after.max.ms, one hour).
        found.append((candidate, min(request.requested_at, time_of(record.timestamp_ms))))
    return found


def _too_large(record: Received, again: Callable[[], MailRequested]) -> bool:
    """Whether the request would be more than the router takes; it is only made where that is near."""
    if len(record.value or b"") < REQUEST_MAX_BYTES - _SIZE_SLACK_BYTES:
        return False
    return len(encode(again())) > REQUEST_MAX_BYTES


def _digest(key: bytes) -> bytes:
    return blake2b(key, digest_size=8).digest()
