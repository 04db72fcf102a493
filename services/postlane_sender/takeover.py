"""Taking a partition over: O and S from one commit, the state topic from S to its real end, a book to start from.

Fail closed: a missing position beside a non-empty book, or a position that retention has overtaken, starts nothing.
"""

from __future__ import annotations

import logging
import re

from postlane.core.books import Book, History
from postlane.core.identity import is_state_key, state_key
from postlane.eventlog.codec import Unreadable, decode_state
from postlane.eventlog.ports import Committed, Member, Partition, Received
from postlane_sender.lane import LaneState

METADATA_VERSION = "S1"
_log = logging.getLogger("postlane.sender")
_FLOOR = re.compile(r"[0-9]{1,19}")  # of a 64-bit number


class BooksDamaged(Exception):
    """The books cannot be trusted; sending from this partition would be guessing. The message says what to do."""


def metadata(floor: int) -> str:
    """S as it stands in the commit metadata."""
    return f"{METADATA_VERSION}:{floor}"


def floor_of(text: str) -> int:
    """S from the commit metadata. Raises BooksDamaged."""
    version, _, number = text.partition(":")
    if version != METADATA_VERSION or not _FLOOR.fullmatch(number):
        raise BooksDamaged(
            f"the committed metadata {text[:40]!r} is not ours: were the offsets reset by another tool? "
            "see docs/runbooks/offsets-lost.md"
        )
    return int(number)


def read_state(history: History, record: Received) -> None:
    """One record of `mail.state` into the history.

    One that cannot be read and has the key of an entry is damage: it may say that a mail was tried. What has no such
    key, or that of another entry, no sender ever wrote: it must neither shut the partition nor be believed. Raises
    BooksDamaged.
    """
    if record.value is None:
        return
    try:
        entry = decode_state(record.value)
    except Unreadable as error:
        if is_state_key(record.key):
            raise BooksDamaged(f"{_where(record)} cannot be read: {error.reason}") from None
        _pass_over(record, error.reason)
        return
    if record.key != state_key(entry.delivery_id, entry.hop).encode():
        _pass_over(record, "its key is another's")
        return
    history.add(entry)


def _pass_over(record: Received, why: str) -> None:
    _log.error("a record in the books that no sender wrote is passed over: %s: %s", _where(record), why)


def _where(record: Received) -> str:
    return f"{record.topic}[{record.partition}]@{record.offset}"


async def take_over(lane: LaneState, member: Member, number: int, deadline_s: float) -> Book:
    """The book of partition `number`, ready to be read on from O.

    Raises Retriable (ask again), BooksDamaged or OffsetGone (fail closed).
    """
    dispatch, state = Partition(lane.dispatch, number), Partition(lane.state, number)
    committed = (await member.committed([dispatch]))[dispatch]
    if committed is None:
        return await _first_book(lane, dispatch, state, deadline_s)
    floor = floor_of(committed.metadata)
    history = await history_since(lane, state, floor, dispatch, committed, deadline_s)
    end = history[1]
    known = history[0] if history[0].records else None
    return Book(number, committed.offset, floor, end, history=known, rules=lane.rules)


async def history_since(
    lane: LaneState, state: Partition, floor: int, dispatch: Partition, committed: Committed, deadline_s: float
) -> tuple[History, int]:
    """(what the state topic says from `floor` on, the end that was read to)."""
    end = (await lane.log.high_watermarks([state]))[state]
    start = (await lane.log.low_watermarks([state]))[state]
    if floor < start:
        waiting = (await lane.log.high_watermarks([dispatch]))[dispatch]
        if committed.offset < waiting:
            raise BooksDamaged(
                f"{state.topic}[{state.number}] begins at {start}, above S={floor}: what was tried is no longer known. "
                "See docs/runbooks/offsets-lost.md"
            )
        floor = start  # nothing is outstanding, so nothing is missing
    history = History(by_hop=lane.rules.lookup_by_hop)
    if floor < end:
        async for batch in lane.log.read(state, floor, end, deadline_s=deadline_s):
            for record in batch:
                read_state(history, record)
    return history, end


async def _first_book(lane: LaneState, dispatch: Partition, state: Partition, deadline_s: float) -> Book:
    end = (await lane.log.high_watermarks([state]))[state]
    start = (await lane.log.low_watermarks([state]))[state]
    if start < end:
        async for batch in lane.log.read(state, start, end, deadline_s=deadline_s):
            if batch:
                raise BooksDamaged(
                    f"group {lane.group} has no position for {dispatch.topic}[{dispatch.number}], but {state.topic} "
                    "has records: the offsets were lost. See docs/runbooks/offsets-lost.md"
                )
    first = (await lane.log.low_watermarks([dispatch]))[dispatch]
    return Book(dispatch.number, first, end, end, rules=lane.rules)
