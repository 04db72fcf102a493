"""Dispatch records into their books: fresh, in doubt, settled long ago, or on their way to the dead letters.

Memory is bounded here: so many decoded records wait for a place, so many bytes are held in all, and a partition that
has been read `max_span` beyond its O is read no further; what a fetch had brought already waits undecoded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection

from postlane.core import settle
from postlane.core.books import Book, Entry, Found, Stage
from postlane.core.events import DispatchReady, Intent
from postlane.core.replies import Phase, Reply
from postlane.eventlog.codec import Unreadable, decode_at_once
from postlane.eventlog.ports import Member, Partition, Received
from postlane_sender.lane import LaneState

FRESH_MAX = 2048  # decoded dispatch records that wait for a place
HELD_MAX_BYTES = 33_554_432  # of all records read and not settled; one fetch more may be in memory
ID_MAX_CHARS = 256
COUNT_MAX = 2**31 - 1


class Intake:
    """Takes in what the lane's member reads, as far as there is room."""

    def __init__(self, lane: LaneState) -> None:
        self._lane = lane
        self._paused: set[int] = set()
        self._beyond: dict[int, deque[Received]] = {}  # fetched, and max_span or more above O

    @property
    def room(self) -> int:
        """How many records may be read now."""
        return FRESH_MAX - len(self._lane.fresh)

    def pace(self, member: Member) -> None:
        """Pause partitions that are too far ahead of their O, or all of them while nothing can be taken in."""
        lane = self._lane
        self._take_waiting()
        full = self.room <= FRESH_MAX // 4 or not lane.courier.usable() or lane.control.paused("lane", lane.name)
        full = full or sum(book.held_bytes for book in lane.books.values()) >= HELD_MAX_BYTES
        span_max = lane.policy.max_span
        shut = self._beyond.keys() | lane.closing
        wanted = {n for n, book in lane.books.items() if full or book.span >= span_max or n in shut}
        if pausing := wanted - self._paused:
            member.pause([Partition(lane.dispatch, n) for n in pausing])
        if resuming := {n for n in self._paused - wanted if n in lane.books}:
            member.resume([Partition(lane.dispatch, n) for n in resuming])
        self._paused = wanted

    def started(self, number: int) -> None:
        """A partition begins anew: running, with nothing waiting."""
        self._paused.discard(number)
        self._beyond.pop(number, None)

    def forget(self, numbers: Collection[int]) -> None:
        """These partitions are no longer ours."""
        for number in numbers:
            self.started(number)

    def receive(self, record: Received) -> None:
        """A record that the member delivered."""
        lane = self._lane
        book = lane.books.get(record.partition)
        if book is None or record.partition in lane.closing:
            return
        if book.span >= lane.policy.max_span or record.partition in self._beyond:
            self._beyond.setdefault(record.partition, deque()).append(record)
            book.held_bytes += _weight(record)
        else:
            self._take(book, record)

    def _take_waiting(self) -> None:
        lane = self._lane
        for number, waiting in list(self._beyond.items()):
            book = lane.books.get(number)
            if book is None or number in lane.closing:
                continue
            while waiting and book.span < lane.policy.max_span:
                record = waiting.popleft()
                book.held_bytes -= _weight(record)
                self._take(book, record)
                lane.work.set()
            if not waiting:
                del self._beyond[number]

    def _take(self, book: Book, record: Received) -> None:
        lane = self._lane
        mail: DispatchReady | None = None
        trouble = ""
        try:
            mail = decode_at_once(DispatchReady, record)
            trouble = _trouble(mail)
        except Unreadable as error:
            trouble = error.reason
        entry = Entry(record.partition, record.offset, None if trouble else mail, raw=record, trouble=trouble)
        found, intent = book.admit(entry)
        if found is Found.SETTLED:
            entry.mail = entry.raw = None
            return
        entry.weight_bytes = _weight(record)
        book.held_bytes += entry.weight_bytes
        if entry.mail is None:
            entry.stage = Stage.ENDED
            lane.ended.append(entry)
        elif found is Found.FRESH or not lane.rules.doubt_is_not_fresh:
            entry.stage = Stage.FRESH
            lane.fresh.append(entry)
        elif intent is not None:
            self._wait_out(entry, entry.mail, intent)

    # ----------------------------------------------------------------------------------------------------- in doubt

    def _wait_out(self, entry: Entry, mail: DispatchReady, intent: Intent) -> None:
        """In doubt: wait the intent's whole time to live, counted from now on our own clock; then it is uncertain.

        The flight recorder may know better of this instance's own past, and then nothing has to be waited for.
        """
        lane = self._lane
        known = lane.recorder.recall(entry, intent)
        if known is not None:
            self._recalled(entry, mail, intent, known)
            return
        wait_s = intent.ttl_ms / 1000 if lane.rules.wait_for_lapse else 0.0
        lane.metrics.in_doubt.labels(lane.name).inc()
        asyncio.get_running_loop().call_later(wait_s, self._lapsed, entry, intent)

    def _recalled(self, entry: Entry, mail: DispatchReady, intent: Intent, code: int) -> None:
        lane, now = self._lane, self._lane.clock.now()
        provider = intent.provider or ""
        if code == lane.recorder.NEVER_BEGUN:
            entry.stage = Stage.FRESH
            lane.fresh.append(entry)
        elif code == lane.recorder.NO_REPLY:
            lane.end(entry, lane.doubt(mail, intent.provider, "killed before the reply", now))
        else:
            reply = Reply(code, None, "(from the flight recorder)")
            if code < 300:
                decision = settle.accepted(mail, reply, provider, now)
            else:
                roll = lane.dice.random()
                decision = settle.refused(mail, reply, Phase.DOT, provider, lane.config.retry, now, roll)
            lane.end(entry, decision)

    def _lapsed(self, entry: Entry, intent: Intent) -> None:
        lane = self._lane
        lane.metrics.in_doubt.labels(lane.name).dec()
        if entry.stage is Stage.DOUBT and entry.mail is not None:
            lane.end(entry, lane.doubt(entry.mail, intent.provider, "no outcome was written", lane.clock.now()))


def _weight(record: Received) -> int:
    return len(record.value or b"")


def _trouble(mail: DispatchReady) -> str:
    """Why a record that the models take cannot be kept book of; empty for every record that Postlane wrote."""
    if len(mail.delivery_id) > ID_MAX_CHARS or len(mail.message_id) > ID_MAX_CHARS:
        return f"delivery_id, message_id: at most {ID_MAX_CHARS} characters"
    if not (0 <= mail.hop <= COUNT_MAX and 0 <= mail.attempt <= COUNT_MAX and 0 <= mail.generation <= COUNT_MAX):
        return f"hop, attempt, generation: 0 to {COUNT_MAX}"
    if not 0 <= mail.doubts <= COUNT_MAX:
        return f"doubts: 0 to {COUNT_MAX}"
    return ""
