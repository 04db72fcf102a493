"""What else an operator does with dead letters: list them, look at one, discard, resolve. Topics only."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from postlane.core.events import AnyEvent, Discarded, LetterDiscarded, Resolved
from postlane.core.identity import split_delivery_id
from postlane.core.lifecycle import State
from postlane.core.replay import Candidate, Counts, Guarded, Replay, Status, may_discard, status_of
from postlane.core.replay_facts import Generation, History
from postlane.eventlog.codec import Unreadable, decode_event, time_of
from postlane.eventlog.murmur2 import partition_of
from postlane.eventlog.ports import Outgoing, Partition, Received
from postlane.eventlog.topics import TopicNames
from postlane.ops.letters import Filters, Letter
from postlane.ops.replay import Pace, Writer
from postlane.ops.replay_reading import Found, Reading, Standing, candidate_of
from postlane.ops.replay_requests import Manner, Scribe, message_of


class NoSuchLetter(Exception):
    """What was asked for is not in the log (any more)."""

    exit_code = 1


class Refused(Exception):
    """A guard stands against it; the message says which."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Row:
    """A dead letter in a list."""

    letter: Letter
    status: Status


async def listed(
    reading: Reading, names: TopicNames, filters: Filters, status: Status | None, limit: int | None
) -> AsyncIterator[Row]:
    """The dead letters that are meant, by partition and offset. Raises TooMany, Retriable, UnknownTopic."""
    left = limit
    standing = Standing()
    for number in range(await reading.partitions(names.dead_letters)):
        found = Found()
        kept: list[tuple[Candidate, Letter]] = []
        ids: set[str] = set()
        async for letter in reading.letters(number, filters):
            candidate = candidate_of(letter, standing, Manner())
            found.add(candidate, _given_up(letter))
            kept.append((candidate, _without_content(letter)))
            ids |= {candidate.message_id} if candidate.message_id else set()
            if left is not None and status is None and len(kept) >= left:
                break
        facts = await reading.facts(number, ids, None if found.replays else found.oldest) if kept else found.facts
        for candidate, letter in kept:
            row = Row(letter, status_of(candidate, facts))
            if status is not None and row.status is not status:
                continue
            yield row
            if left is not None:
                left -= 1
                if left <= 0:
                    return


def _given_up(letter: Letter) -> datetime:
    given_up = time_of(letter.record.timestamp_ms)
    return given_up if letter.mail is None else min(given_up, letter.mail.requested_at)


def _without_content(letter: Letter) -> Letter:
    """The letter as a list keeps it: the bodies stay in the log."""
    r, mail = letter.record, letter.mail
    record = Received(r.topic, r.partition, r.offset, r.timestamp_ms, r.key, None, ())
    if mail is not None:
        bare = mail.content.model_copy(update={"text": None, "html": None, "attachments": (), "headers": {}})
        if bare.template is not None:
            bare = bare.model_copy(update={"template": bare.template.model_copy(update={"data": {}})})
        mail = mail.model_copy(update={"content": bare})
    request = letter.request
    if request is not None:
        request = request.model_copy(update={"text": None, "html": None, "attachments": (), "headers": {}})
    return Letter(record, letter.origin, letter.source, mail, request, letter.redrivable)


# ---------------------------------------------------------------------------------------------------------- one letter


@dataclass(frozen=True, slots=True)
class Story:
    """One dead letter with what came before and after it; `letter` is None where there is no dead letter."""

    letter: Letter | None
    status: Status
    events: Sequence[AnyEvent]


async def find(reading: Reading, names: TopicNames, ident: str | tuple[int, int]) -> Letter | None:
    """The dead letter of an id or of a delivery (its newest); None where there is none."""
    if isinstance(ident, tuple):
        return await reading.letter(*ident)
    found = None
    for number in await _likely_first(reading, names, split_delivery_id(ident)[0]):
        async for letter in reading.letters(number, Filters(deliveries=frozenset({ident}))):
            found = letter
        if found is not None:
            return found
    return None


async def _likely_first(reading: Reading, names: TopicNames, message_id: str) -> list[int]:
    """Every partition, the one that the key decides for first."""
    count = await reading.partitions(names.dead_letters)
    likely = partition_of(message_id.encode(), count)
    return [likely, *(number for number in range(count) if number != likely)]


async def story(reading: Reading, names: TopicNames, ident: str | tuple[int, int]) -> Story:
    """Raises NoSuchLetter."""
    letter = await find(reading, names, ident)
    if letter is None:
        shown = ident if isinstance(ident, str) else f"{ident[0]}-{ident[1]}"
        raise NoSuchLetter(f"there is no dead letter {shown}")
    candidate = candidate_of(letter, Standing(), Manner())
    ids = {candidate.message_id} if candidate.message_id else set()
    facts = await reading.facts(letter.record.partition, ids)
    events = []
    async for record in reading.records(Partition(names.events, letter.record.partition), "events"):
        event = _event(record)
        if event is not None and _tells_of(event, letter, candidate.digest):
            events.append(event)
    return Story(letter, status_of(candidate, facts), events)


def _event(record: Received) -> AnyEvent | None:
    try:
        return decode_event(record.value)
    except Unreadable:
        return None


def _tells_of(event: AnyEvent, letter: Letter, digest: str) -> bool:
    said: dict[str, Any] = event.__dict__
    if letter.mail is not None:
        delivery = said.get("delivery_id")
        prefix = f"{letter.mail.message_id}.{digest}."
        return str(delivery).startswith(prefix) if delivery is not None else event.message_id == letter.mail.message_id
    place = said.get("partition"), said.get("offset")
    origin = letter.origin
    if said["type"] == "Undecodable":
        return origin is not None and said["topic"] == origin.topic and place == (origin.partition, origin.offset)
    if said["type"] in ("Redriven", "LetterDiscarded"):
        return place == (letter.record.partition, letter.record.offset)
    return letter.request is not None and event.message_id == letter.request.message_id


# ------------------------------------------------------------------------------------------------------------- discard


@dataclass(slots=True)
class Discarding:
    """What a discard would do: offsets by partition, and the counts."""

    items: dict[int, list[int]] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)


async def plan_discard(reading: Reading, names: TopicNames, filters: Filters, limit: int | None) -> Discarding:
    """Which dead letters would be discarded. Writes nothing."""
    made = Discarding()
    for number in range(await reading.partitions(names.dead_letters)):
        found = await reading.found_letters(number, filters, Standing(), Manner())
        for candidate in found.candidates:
            guard = may_discard(candidate, found.facts)
            if guard is not None:
                made.counts.add(Guarded(candidate, guard))
            elif limit is None or made.counts.total < limit:
                made.counts.add(Replay(candidate))
                made.items.setdefault(number, []).append(candidate.offset)
    return made


async def discard(
    reading: Reading,
    names: TopicNames,
    writer: Writer,
    scribe: Scribe,
    made: Discarding,
    manner: Manner,
    now: datetime,
    pace: Pace,
) -> int:
    """Write down that they will not be replayed; how many."""
    done = 0
    for number, offsets in sorted(made.items.items()):
        await writer.begin(number)
        for first in range(0, len(offsets), pace.batch_max):
            chosen = frozenset((number, offset) for offset in offsets[first : first + pace.batch_max])
            records = [
                _discarded(letter, scribe, manner, now)
                async for letter in reading.letters(number, Filters(letters=chosen))
            ]
            if records:
                await pace.wait(len(records))
                await writer.write(number, records)
            done += len(records)
    return done


def _discarded(letter: Letter, scribe: Scribe, manner: Manner, now: datetime) -> Outgoing:
    mail = letter.mail
    if mail is None:
        place = letter.record
        event = LetterDiscarded(
            message_id=message_of(letter),
            partition=place.partition,
            offset=place.offset,
            reason=manner.reason,
            run=manner.run,
            at=now,
        )
        return scribe.event_of_letter(letter, event, now)
    told = Discarded(
        message_id=mail.message_id,
        delivery_id=mail.delivery_id,
        recipient=mail.recipient,
        generation=mail.generation,
        attempt=mail.attempt,
        hop=mail.hop,
        possibly_delivered=mail.doubts > 0 or letter.reason == "uncertain",
        reason=manner.reason,
        at=now,
    )
    return scribe.event_of_delivery(letter.record, told, split_delivery_id(mail.delivery_id)[1], now)


# ------------------------------------------------------------------------------------------------------------- resolve


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a resolve came to; `changed` is False where the same was on record already."""

    delivery_id: str
    state: str
    changed: bool


async def resolve(
    reading: Reading,
    names: TopicNames,
    writer: Writer,
    scribe: Scribe,
    delivery: str,
    state: Literal["delivered", "bounced"],
    reason: str,
    now: datetime,
) -> Resolution:
    """Settle an uncertain delivery by what a person knows. Raises NoSuchLetter, Refused; ValueError for a bad id."""
    message, digest, number = split_delivery_id(delivery)
    for partition in await _likely_first(reading, names, message):
        facts = await reading.facts(partition, {message})
        history = facts.deliveries.get((message, digest), History())
        known = history.generations.get(number)
        if known is not None:
            break
    else:
        raise NoSuchLetter(f"nothing is known of a delivery {delivery}")
    if known.resolved and known.state == state:
        return Resolution(delivery, state, changed=False)
    _check_uncertain(delivery, known)
    letter = await find(reading, names, delivery)
    if letter is None or letter.mail is None:
        raise NoSuchLetter(f"the dead letter of {delivery} is not in the log any more")
    event = Resolved(
        message_id=message,
        delivery_id=delivery,
        recipient=letter.mail.recipient,
        generation=number,
        attempt=letter.mail.attempt,
        hop=letter.mail.hop,
        state=state,
        reason=reason,
        at=now,
    )
    await writer.begin(partition)
    await writer.write(partition, [scribe.event_of_delivery(letter.record, event, digest, now)])
    return Resolution(delivery, state, changed=True)


def _check_uncertain(delivery: str, known: Generation) -> None:
    if known.state is not State.UNCERTAIN:
        state = "on its way" if known.state is None else known.state.value
        raise Refused(f"{delivery} is {state}, not uncertain: there is nothing to resolve")


def summary_of(counts: Counts, domains_max: int = 20) -> dict[str, Any]:
    """The counts as a document; the domains with the most first, the rest summed up."""
    domains = counts.domains.most_common(domains_max)
    rest = sum(counts.domains.values()) - sum(count for _, count in domains)
    shown = dict(domains) | ({"(others)": rest} if rest else {})

    def sorted_counts(counter: Counter[str]) -> dict[str, int]:
        return dict(sorted(counter.items()))

    return {
        "by_reason": sorted_counts(counts.reasons),
        "by_lane": sorted_counts(counts.lanes),
        "by_domain": shown,
        "guarded": sorted_counts(Counter({str(k): v for k, v in counts.guarded.items()})),
    }
