"""The loop of one lane: membership, reading, in-doubt waits, ticks, and letting go in order.

Revoked: stop admitting, drain for at most `drain_timeout_s`, release what has not begun its body, tick, let go.
Lost: cancel and discard, write nothing. Nothing here sends a mail: that is the courier's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from typing import Any

from postlane.core import settle
from postlane.core.books import Book, Entry, Found, Stage
from postlane.core.events import DispatchReady, Intent
from postlane.core.replies import Phase, Reply
from postlane.eventlog.codec import Unreadable, decode_at_once
from postlane.eventlog.errors import LogError, OffsetGone, Retriable
from postlane.eventlog.ports import Member, Membership, Partition, Received, Transactor
from postlane_sender.admission import Admission
from postlane_sender.lane import LaneState
from postlane_sender.takeover import BooksDamaged, take_over
from postlane_sender.tick import Ticker

POLL_WAIT_S = 0.1
FRESH_MAX = 2048  # decoded dispatch records that wait for a place
TAKEOVER_PAUSE_S = 0.2
IDLE_TICK_S = 0.5  # how often a lane looks at what only time changes: limits, pauses, probes
_log = logging.getLogger("postlane.sender")


class LaneLoop:
    """One lane in one process. `run` ends when `stop` was called, and raises when the lane cannot go on."""

    def __init__(self, lane: LaneState) -> None:
        self.lane = lane
        self._member: Member | None = None
        self._transactor: Transactor | None = None
        self._ticker: Ticker | None = None
        self._takeovers: dict[int, asyncio.Task[None]] = {}
        self._damaged: dict[int, str] = {}  # partitions whose books cannot be trusted, and why
        self._paused: set[int] = set()
        self._stopping = asyncio.Event()
        self._broken: asyncio.Future[None] | None = None

    # ------------------------------------------------------------------------------------------------- start and stop

    async def start(self, client_id: str | None = None) -> None:
        """Join the group, fence an older process of this instance. Raises Fenced, UnknownTopic, Retriable."""
        lane = self.lane
        self._broken = asyncio.get_running_loop().create_future()
        lane.partitions = await lane.log.partition_count(lane.dispatch)
        self._transactor = await lane.log.transactor(f"{lane.names.prefix}sender.{lane.name}.{lane.instance}")
        self._ticker = Ticker(lane, self._transactor, Admission(lane))
        self._member = await lane.log.member(
            lane.group, [lane.dispatch], self, instance_id=f"{lane.instance}", client_id=client_id
        )

    async def run(self) -> None:
        """Until stopped; what cannot be mended is raised."""
        assert self._broken is not None
        reading, ticking = asyncio.ensure_future(self._read()), asyncio.ensure_future(self._tick())
        stop = asyncio.ensure_future(self._stopping.wait())
        waited: set[asyncio.Future[Any]] = {reading, ticking, stop, self._broken}
        try:
            done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            for future in done - {stop}:
                await future
        finally:
            reading.cancel()
            stop.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await self._close(ticking)

    async def abandon(self) -> None:
        """Let go of what `start` opened, where `run` was never called."""
        if self._member is not None:
            await self._member.close()
        if self._transactor is not None:
            await self._transactor.close()

    def stop(self) -> None:
        """An orderly end: drain, tick, let go."""
        self._stopping.set()

    async def _close(self, ticking: asyncio.Future[None]) -> None:
        if self._member is not None:
            await self._member.close()
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        await self.lane.courier.close(timeout_s=1.0)
        if self._transactor is not None:
            await self._transactor.close()

    def not_ready(self) -> str | None:
        """Why this lane cannot do its work now, or None."""
        lane = self.lane
        if lane.problem is not None:
            return f"lane {lane.name}: {lane.problem}"
        if lane.membership is None:
            return f"lane {lane.name}: not a member of {lane.group} yet"
        if self._damaged:
            return f"lane {lane.name}: {'; '.join(self._damaged.values())}"
        if self._takeovers:
            return f"lane {lane.name}: taking over partitions {sorted(self._takeovers)}"
        return None

    # -------------------------------------------------------------------------------------------------------- reading

    async def _read(self) -> None:
        lane, member = self.lane, self._member
        assert member is not None
        while True:
            room = FRESH_MAX - len(lane.fresh)
            self._pace(member, room)
            try:
                records = await member.poll(max(room, 1), POLL_WAIT_S)
            except OffsetGone as error:
                raise BooksDamaged(f"{error}; see docs/runbooks/offsets-reset.md") from None
            except Retriable as error:
                lane.problem = str(error)
                await asyncio.sleep(TAKEOVER_PAUSE_S)
                continue
            if records:
                for record in records:
                    self._take(record)
                lane.work.set()
                if room <= len(records):
                    await self._until_room()

    async def _until_room(self) -> None:
        """A short wait for places; a longer one goes on with everything paused, so that polling never stops."""
        lane = self.lane
        for _ in range(10):
            if len(lane.fresh) < FRESH_MAX // 2:
                return
            lane.progress.clear()
            try:
                await asyncio.wait_for(lane.progress.wait(), 0.02)
            except TimeoutError:
                continue

    def _pace(self, member: Member, room: int) -> None:
        """Pause partitions that are too far ahead of their O, or all of them while nothing can be taken in."""
        lane = self.lane
        full = room <= FRESH_MAX // 4 or not lane.courier.usable() or lane.control.paused("lane", lane.name)
        wanted = {n for n, book in lane.books.items() if full or book.span >= lane.policy.max_span}
        if pausing := wanted - self._paused:
            member.pause([Partition(lane.dispatch, n) for n in pausing])
        if resuming := {n for n in self._paused - wanted if n in lane.books}:
            member.resume([Partition(lane.dispatch, n) for n in resuming])
        self._paused = wanted

    def _take(self, record: Received) -> None:
        """One dispatch record into its book: fresh, in doubt, settled long ago, or on its way to the dead letters."""
        lane = self.lane
        book = lane.books.get(record.partition)
        if book is None or record.partition in lane.closing:
            return
        try:
            mail = decode_at_once(DispatchReady, record)
        except Unreadable as error:
            entry = Entry(record.partition, record.offset, None, raw=record, trouble=error.reason)
            if book.admit(entry)[0] is not Found.SETTLED:
                entry.stage = Stage.ENDED
                lane.ended.append(entry)
            return
        entry = Entry(record.partition, record.offset, mail, raw=record)
        found, intent = book.admit(entry)
        if found is Found.FRESH or (found is Found.IN_DOUBT and not lane.rules.doubt_is_not_fresh):
            entry.stage = Stage.FRESH
            lane.fresh.append(entry)
        elif found is Found.IN_DOUBT and intent is not None:
            self._wait_out(entry, mail, intent)

    def _wait_out(self, entry: Entry, mail: DispatchReady, intent: Intent) -> None:
        """In doubt: wait the intent's whole time to live, counted from now on our own clock; then it is uncertain.

        The flight recorder may know better of this instance's own past, and then nothing has to be waited for.
        """
        lane = self.lane
        known = lane.recorder.recall(entry, intent)
        if known is not None:
            self._recalled(entry, mail, intent, known)
            return
        wait_s = intent.ttl_ms / 1000 if lane.rules.wait_for_lapse else 0.0
        lane.metrics.in_doubt.labels(lane.name).inc()
        asyncio.get_running_loop().call_later(wait_s, self._lapsed, entry, mail, intent, "no outcome was written")

    def _recalled(self, entry: Entry, mail: DispatchReady, intent: Intent, code: int) -> None:
        lane, now = self.lane, self.lane.clock.now()
        if code == lane.recorder.NEVER_BEGUN:
            entry.stage = Stage.FRESH
            lane.fresh.append(entry)
        elif code == lane.recorder.NO_REPLY:
            lane.end(entry, lane.doubt(mail, intent.provider, "killed before the reply", now))
        else:
            reply = Reply(code, None, "(from the flight recorder)")
            provider = intent.provider or ""
            roll = lane.dice.random()
            lane.end(
                entry,
                settle.accepted(mail, reply, provider, now)
                if code < 300
                else settle.refused(mail, reply, Phase.DOT, provider, lane.config.retry, now, roll),
            )

    def _lapsed(self, entry: Entry, mail: DispatchReady, intent: Intent, reason: str) -> None:
        lane = self.lane
        lane.metrics.in_doubt.labels(lane.name).dec()
        if entry.stage is Stage.DOUBT:
            decision = lane.doubt(mail, intent.provider, reason, lane.clock.now())
            lane.metrics.doubts_total.labels(lane.name, mail.in_doubt).inc()
            lane.end(entry, decision)

    # ---------------------------------------------------------------------------------------------------------- ticks

    async def _tick(self) -> None:
        lane, ticker = self.lane, self._ticker
        assert ticker is not None
        while True:
            try:
                await asyncio.wait_for(lane.work.wait(), IDLE_TICK_S)
            except TimeoutError:
                pass
            lane.work.clear()
            await ticker.tick()

    # ------------------------------------------------------------------------------------- membership (ports.Listener)

    async def assigned(self, membership: Membership, added: frozenset[Partition]) -> None:
        lane = self.lane
        lane.membership = membership
        for partition in added:
            lane.closing.discard(partition.number)
            task = asyncio.create_task(self._take_over(partition.number), name=str(partition.number))
            self._takeovers[partition.number] = task
            task.add_done_callback(self._taken_over)

    async def _take_over(self, number: int) -> None:
        lane, member, membership = self.lane, self._member, self.lane.membership
        assert member is not None
        began = lane.clock.monotonic()
        while True:
            try:
                book = await take_over(lane, member, number, lane.policy.takeover_timeout_s)
                break
            except Retriable as error:
                _log.warning("takeover waits", extra={"lane": lane.name, "partition": number, "reason": str(error)})
                await asyncio.sleep(TAKEOVER_PAUSE_S)
        if lane.membership is not membership:
            return  # it was taken away while its past was read
        lane.books[number] = book
        self._paused.discard(number)
        member.start(Partition(lane.dispatch, number), book.low_water)
        read = book.history.records if book.history is not None else 0
        lane.metrics.takeover_seconds.labels(lane.name).observe(lane.clock.monotonic() - began)
        _log.info(
            "partition taken over",
            extra={"lane": lane.name, "partition": number, "from": book.low_water, "state_records": read},
        )

    def _taken_over(self, task: asyncio.Task[None]) -> None:
        self._takeovers = {n: t for n, t in self._takeovers.items() if t is not task}
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, BooksDamaged):
            # This partition stays shut, here and wherever it goes; the others go on.
            number = int(task.get_name())
            self._damaged[number] = str(error)
            _log.critical(
                "the books are damaged", extra={"lane": self.lane.name, "partition": number, "reason": str(error)}
            )
        elif error is not None:
            self._break(error)

    async def revoked(self, removed: frozenset[Partition]) -> None:
        lane = self.lane
        numbers = {partition.number for partition in removed}
        self._stop_takeovers(numbers)
        lane.closing |= numbers
        await self._drain(numbers)
        self._forget(numbers)
        lane.membership = None

    async def lost(self, removed: frozenset[Partition]) -> None:
        lane = self.lane
        numbers = {partition.number for partition in removed}
        self._stop_takeovers(numbers)
        lane.membership = None
        if lane.rules.drop_not_owned:
            self._forget(numbers)
        if self._ticker is not None:
            await self._ticker.idle()

    def _stop_takeovers(self, numbers: Collection[int]) -> None:
        for number in numbers:
            task = self._takeovers.pop(number, None)
            if task is not None:
                task.cancel()

    def _forget(self, numbers: Collection[int]) -> None:
        """What belongs to these partitions is another's: open conversations are cancelled, nothing is written."""
        lane = self.lane
        for number in numbers:
            book = lane.books.pop(number, None)
            if book is not None:
                self._abandon(book)
            lane.closing.discard(number)
            self._damaged.pop(number, None)
        gone = set(numbers)
        lane.ended = [entry for entry in lane.ended if entry.partition not in gone]
        lane.fresh = type(lane.fresh)(entry for entry in lane.fresh if entry.partition not in gone)
        self._paused -= gone
        lane.progress.set()

    def _abandon(self, book: Book) -> None:
        for entry in book.entries:
            if entry.stage in (Stage.STARTING, Stage.STARTED):
                self.lane.courier.withdraw(entry)
            entry.stage = Stage.SETTLED  # for this process: no late result or timer speaks for it any more

    # ------------------------------------------------------------------------------------------------------- draining

    async def _drain(self, numbers: Collection[int]) -> None:
        """Let what is under way end, within a bound; then release what has not begun; then one last tick."""
        lane, ticker = self.lane, self._ticker
        assert ticker is not None
        deadline = lane.clock.monotonic() + lane.policy.drain_timeout_s
        released = False
        while any(self._under_way(numbers)):
            left = deadline - lane.clock.monotonic()
            if not lane.courier.usable() or left <= 0:
                if released:
                    break
                released = True
                self._release(numbers)
            lane.work.set()
            await self._progress(min(max(left, 0.05), 0.25))
        try:
            await ticker.tick()
        except LogError as error:
            _log.warning("the last tick before letting go failed", extra={"lane": lane.name, "reason": str(error)})
            self._break(error)

    def _break(self, error: BaseException) -> None:
        if self._broken is not None and not self._broken.done():
            self._broken.set_exception(error)

    async def _progress(self, timeout_s: float) -> None:
        lane = self.lane
        lane.progress.clear()
        try:
            await asyncio.wait_for(lane.progress.wait(), timeout_s)
        except TimeoutError:
            pass

    def _under_way(self, numbers: Collection[int]) -> Iterable[Entry]:
        for number in numbers:
            book = self.lane.books.get(number)
            if book is not None:
                yield from (e for e in book.entries if Stage.STARTING <= e.stage <= Stage.SETTLING)

    def _release(self, numbers: Collection[int]) -> None:
        """Conversations that have not begun their body are closed: proof of not sent."""
        lane, now = self.lane, self.lane.clock.now()
        for entry in list(self._under_way(numbers)):
            if entry.stage is Stage.STARTED and not entry.begun and entry.mail is not None:
                lane.courier.withdraw(entry)
                lane.end(entry, settle.released(entry.mail, "drained", now, lane.dice.random()))
