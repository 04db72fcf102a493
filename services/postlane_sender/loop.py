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
from postlane.core.books import Entry, Stage
from postlane.eventlog.errors import Fenced, LogError, OffsetGone, Retriable
from postlane.eventlog.ports import Member, Membership, Partition, Transactor
from postlane_sender.admission import Admission
from postlane_sender.intake import FRESH_MAX, Intake
from postlane_sender.lane import LaneState
from postlane_sender.takeover import BooksDamaged, take_over
from postlane_sender.tick import Ticker

POLL_WAIT_S = 0.1
TAKEOVER_PAUSE_S = 0.2
LAST_TICKS_S = 15.0  # for what is left to write when the time to drain is over
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
        self._intake = Intake(lane)
        self._ticks: asyncio.Future[None] | None = None
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
        self._ticks = ticking
        stop = asyncio.ensure_future(self._stopping.wait())
        waited: set[asyncio.Future[Any]] = {reading, ticking, stop, self._broken}
        try:
            done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            for future in done - {stop}:
                await future
            await self._drain_all({reading, ticking, self._broken})
        except Fenced:
            # Another process is us: not one more body, nothing more is said.
            self.lane.gate_open = False
            self._forget(list(self.lane.books))
            raise
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
        problems = list(lane.problems.values())
        late = self._ticker.late() if self._ticker is not None else None
        if problems or late is not None:
            return f"lane {lane.name}: {problems[0] if problems else late}"
        if lane.membership is None:
            return f"lane {lane.name}: not a member of {lane.group} yet"
        damaged, takeovers = list(self._damaged.values()), list(self._takeovers)
        if damaged:
            return f"lane {lane.name}: {'; '.join(damaged)}"
        if takeovers:
            return f"lane {lane.name}: taking over partitions {sorted(takeovers)}"
        return None

    # -------------------------------------------------------------------------------------------------------- reading

    async def _read(self) -> None:
        lane, member, intake = self.lane, self._member, self._intake
        assert member is not None
        while True:
            intake.pace(member)
            room = intake.room
            try:
                records = await member.poll(max(room, 1), POLL_WAIT_S)
            except OffsetGone as error:
                raise BooksDamaged(f"{error}; see docs/runbooks/offsets-lost.md") from None
            except Retriable as error:
                lane.problems["read"] = str(error)
                await asyncio.sleep(TAKEOVER_PAUSE_S)
                continue
            lane.problems.pop("read", None)
            if records:
                for record in records:
                    intake.receive(record)
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
                async with asyncio.timeout(0.02):
                    await lane.progress.wait()
            except TimeoutError:
                continue

    # ---------------------------------------------------------------------------------------------------------- ticks

    async def _tick(self) -> None:
        lane, ticker = self.lane, self._ticker
        assert ticker is not None
        look_at = 0.0
        while True:
            try:
                # Not wait_for: until Python 3.12 it can swallow a cancellation, and the lane would never end.
                async with asyncio.timeout(IDLE_TICK_S):
                    await lane.work.wait()
            except TimeoutError:
                pass
            lane.work.clear()
            await ticker.tick()
            if lane.clock.monotonic() >= look_at:
                look_at = lane.clock.monotonic() + IDLE_TICK_S
                lane.measure()

    # ------------------------------------------------------------------------------------- membership (ports.Listener)

    async def assigned(self, membership: Membership, added: frozenset[Partition]) -> None:
        lane = self.lane
        lane.membership = membership
        if self._stopping.is_set():
            return  # nothing new is begun; the group has them back in a moment
        for partition in added:
            lane.closing.discard(partition.number)
            task = asyncio.create_task(self._take_over(partition.number, membership), name=str(partition.number))
            self._takeovers[partition.number] = task
            task.add_done_callback(self._taken_over)

    async def _take_over(self, number: int, membership: Membership) -> None:
        lane, member = self.lane, self._member
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
        self._intake.started(number)
        self._prove(number, book.low_water)
        member.start(Partition(lane.dispatch, number), book.low_water)
        read = book.history.records if book.history is not None else 0
        lane.metrics.takeover_seconds.labels(lane.name).observe(lane.clock.monotonic() - began)
        _log.info(
            "partition taken over",
            extra={"lane": lane.name, "partition": number, "from": book.low_water, "state_records": read},
        )

    def _prove(self, number: int, low_water: int) -> None:
        """Records below O are settled in Kafka, by whomever: what the recorder keeps of ours is of no use any more."""
        lane = self.lane
        settled = [e for e in lane.unproven if e.partition == number and e.offset < low_water]
        for entry in settled:
            lane.recorder.free(entry)
            lane.unproven.remove(entry)

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
        lane, ticker = self.lane, self._ticker
        gone = set(numbers)
        lane.ended = [entry for entry in lane.ended if entry.partition not in gone]
        lane.fresh = type(lane.fresh)(entry for entry in lane.fresh if entry.partition not in gone)
        for number in gone:
            book = lane.books.pop(number, None)
            if book is not None and ticker is not None:
                ticker.drop(book)
            self._damaged.pop(number, None)
        lane.closing -= gone
        lane.letting_go -= gone
        self._intake.forget(gone)
        lane.progress.set()

    # ------------------------------------------------------------------------------------------------------- draining

    async def _drain(self, numbers: Collection[int]) -> None:
        """Let what is under way end, within a bound; then begin no body any more, release what has not begun, and
        tick until all that is known is written. Only what a server owes its reply for stays open."""
        lane, ticker = self.lane, self._ticker
        assert ticker is not None
        drained = set(numbers) <= lane.letting_go  # their time is over already
        deadline = lane.clock.monotonic() + (0.0 if drained else lane.policy.drain_timeout_s)
        while any(self._under_way(numbers)) and self._ticking():
            left_s = deadline - lane.clock.monotonic()
            if left_s <= 0:
                break
            lane.work.set()
            await self._progress(min(left_s, 0.25))
        lane.letting_go |= set(numbers)
        try:
            async with asyncio.timeout(LAST_TICKS_S):
                await ticker.idle()
                self._release(numbers)
                await ticker.tick()
                while self._ticking() and any(e.stage >= Stage.ENDED for e in self._under_way(numbers)):
                    await ticker.tick()
        except TimeoutError:
            _log.warning("the last ticks before letting go took too long", extra={"lane": lane.name})
        except LogError as error:
            _log.warning("the last tick before letting go failed", extra={"lane": lane.name, "reason": str(error)})
            self._break(error)

    async def _drain_all(self, unless: Collection[asyncio.Future[Any]]) -> None:
        """At an orderly stop, before the member is closed. While the library closes it, it sends no heartbeat
        (librdkafka 2.16), and a drain that outlasts the session would go on when the partitions are another's.

        Raises what ends one of `unless`.
        """
        lane = self.lane
        self._stop_takeovers(list(self._takeovers))
        numbers = set(lane.books)
        lane.closing |= numbers
        draining = asyncio.ensure_future(self._drain(numbers))
        try:
            done, _ = await asyncio.wait({draining, *unless}, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                await future
        finally:
            draining.cancel()
            await asyncio.gather(draining, return_exceptions=True)

    def _ticking(self) -> bool:
        """Whether ticks can come through at all."""
        return self._ticks is not None and not self._ticks.done()

    def _break(self, error: BaseException) -> None:
        if self._broken is not None and not self._broken.done():
            self._broken.set_exception(error)

    async def _progress(self, timeout_s: float) -> None:
        lane = self.lane
        lane.progress.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await lane.progress.wait()
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
