"""The tick: one Kafka transaction that writes down what has come about and what is about to be tried.

1. Snapshot: the membership as it was captured at the assignment, unchanged for the whole tick.
2. Outcomes: for every delivery that ended its record in `mail.state`, its event, and its next hop or dead letter.
3. Intents: for deliveries about to be sent, no more than the courier has places for.
4. Positions: for every partition that 2 and 3 wrote for, and every one whose O moved: O, with S in the metadata.
5. Commit. Committed: bodies may be written. Aborted: everything is as before. Unknown: rebuild, re-read, reconcile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from postlane.core.books import Book, Entry, Stage
from postlane.eventlog.errors import Aborted, CommitUnknown, Retriable
from postlane.eventlog.ports import Transaction, Transactor
from postlane_sender import measures, tracing
from postlane_sender.admission import Admission
from postlane_sender.draft import Draft, Drafter
from postlane_sender.lane import LaneState
from postlane_sender.unknown import what_happened

REBUILD_PAUSE_S = 0.25
ABORT_PAUSE_FIRST_S = 0.02
ABORT_PAUSE_MAX_S = 1.0
TICK_LATE_S = 5.0  # after so long a tick in flight is a reason to be unready
_log = logging.getLogger("postlane.sender")


class Ticker:
    """Commits ticks one at a time, and brings their result into the books."""

    def __init__(self, lane: LaneState, transactor: Transactor, admission: Admission) -> None:
        self._lane = lane
        self._transactor = transactor
        self._admission = admission
        self._drafter = Drafter(lane, admission)
        self._busy = asyncio.Lock()
        self._aborts = 0
        self._began: float | None = None
        if lane.failpoints.point == "in_commit":
            transactor.before_commit = lambda: lane.failpoints.hit("in_commit")  # type: ignore[attr-defined]

    async def tick(self) -> bool:
        """One tick, unless there is nothing to say. True when something was committed. Raises Fenced, Fatal."""
        async with self._busy:
            draft = self._drafter.draft()
            if draft is None:
                return False
            self._began = self._lane.clock.monotonic()
            try:
                return await self._commit(draft)
            finally:
                self._began = None

    async def idle(self) -> None:
        """Returns when no tick is in flight."""
        async with self._busy:
            pass

    def late(self) -> str | None:
        """Why no tick comes through, or None."""
        began = self._began
        late_s = 0.0 if began is None else self._lane.clock.monotonic() - began
        return f"the tick in flight was begun {late_s:.0f} s ago" if late_s > TICK_LATE_S else None

    # --------------------------------------------------------------------------------------------------------- step 5

    async def _commit(self, draft: Draft) -> bool:
        lane = self._lane
        lane.failpoints.hit("before_intent")
        started = lane.clock.monotonic()
        transaction = Transaction(draft.records, draft.offsets, draft.membership)
        try:
            ends = await self._transactor.commit(transaction)
        except Aborted as error:
            await self._aborted(draft, error)
            return False
        except CommitUnknown as error:
            _log.warning("a commit is unknown", extra={"lane": lane.name, "reason": str(error)})
            await self._find_out(draft)
            return True
        self._aborts = 0
        lane.problems.pop("tick", None)
        lane.failpoints.hit("after_commit")
        lane.metrics.tick_seconds.labels(lane.name).observe(lane.clock.monotonic() - started)
        lane.metrics.tick_records.labels(lane.name).observe(len(draft.records))
        state_ends = {p.number: end for p, end in ends.items() if p.topic == lane.state}
        self._apply(draft, state_ends, draft.books)
        lane.courier.ticked()
        if draft.later:
            await self._transactor.commit(Transaction(draft.later, {}, None))
        return True

    async def _aborted(self, draft: Draft, error: Aborted) -> None:
        """Nothing of it happened; again after a pause that grows, and unready until one comes through."""
        lane = self._lane
        self._roll_back(draft, draft.books)
        lane.metrics.fenced_total.labels(lane.name).inc()
        lane.problems["tick"] = f"the last tick was aborted: {error}"
        _log.warning("tick aborted", extra={"lane": lane.name, "reason": str(error), "in_a_row": self._aborts + 1})
        pause_s = min(ABORT_PAUSE_FIRST_S * 2 ** min(self._aborts, 16), ABORT_PAUSE_MAX_S)
        self._aborts += 1
        await asyncio.sleep(pause_s)

    def _apply(self, draft: Draft, ends: dict[int, int], numbers: Collection[int]) -> None:
        """The tick was committed for these partitions."""
        lane = self._lane
        for number in numbers:
            book = draft.books[number]
            entries = draft.noted.get(number, [])
            if lane.books.get(number) is not book:
                continue  # lost meanwhile: what it held is another's
            book.committed(entries, ends.get(number))
            for entry in entries:
                if entry.stage is Stage.STARTED:
                    lane.courier.proceed(entry)
                elif entry.stage is Stage.SETTLED:  # not one that ended just now, while an earlier one proceeded
                    self._let_go(book, entry)
        lane.progress.set()

    def _let_go(self, book: Book, entry: Entry) -> None:
        """Its outcome is in Kafka: nothing of it is kept, also where it has to stay in the book because O is below."""
        lane = self._lane
        self._admission.over(entry)
        lane.recorder.free(entry)
        measures.settled(lane, entry)
        book.held_bytes -= entry.weight_bytes
        entry.body = entry.raw = entry.mail = entry.decision = None

    def _roll_back(self, draft: Draft, numbers: Collection[int]) -> None:
        """Nothing of the tick happened for these partitions: as before, and the envelopes are taken back."""
        lane = self._lane
        again: list[Entry] = []
        for number in numbers:
            book = draft.books[number]
            if lane.books.get(number) is not book:
                continue
            entries = draft.noted.get(number, [])
            book.rolled_back(entries)
            for entry in entries:
                if entry.stage is Stage.FRESH:
                    self._take_back(entry)
                    again.append(entry)
                else:
                    lane.ended.append(entry)
        lane.fresh.extendleft(sorted(again, key=lambda entry: entry.offset, reverse=True))
        lane.work.set()
        lane.progress.set()

    def _take_back(self, entry: Entry) -> None:
        self._lane.courier.withdraw(entry)
        self._admission.over(entry)
        tracing.end(entry, None, "its intent was not committed")
        entry.trace = None
        entry.body = None

    def drop(self, book: Book) -> None:
        """The partition is another's: open conversations are cancelled, nothing of it is said or heard any more."""
        lane = self._lane
        for entry in book.all_entries():
            if entry.stage in (Stage.STARTING, Stage.STARTED):
                lane.courier.withdraw(entry)
                tracing.end(entry, None, "the partition was given up")
            self._admission.over(entry)
            if entry.slot >= 0:
                # The slot says that a body was begun: until the outcome is seen in Kafka, by whomever it was
                # written, an earlier life's missing slot must not read as "never begun".
                lane.unproven.append(entry)
            entry.stage = Stage.SETTLED  # for this process: no late result or timer speaks for it any more
            entry.body = entry.raw = entry.mail = entry.decision = None

    # ------------------------------------------------------------------------------------- a commit of unknown outcome

    async def _find_out(self, draft: Draft) -> None:
        """Rebuild the producer (which settles what it left open), read what really happened, reconcile.

        No tick and no body meanwhile; none ever again where another process turns out to be us (Fenced).
        """
        lane = self._lane
        lane.gate_open = False
        lane.problems["commit"] = "the outcome of a commit is unknown; asking the log"
        lane.metrics.rebuilds_total.labels(lane.name, "commit_unknown").inc()
        try:
            happened = await self._reread(draft) if lane.rules.reread_unknown_commit else await self._forget()
        except asyncio.CancelledError:
            self._open_gate()  # nobody waits for the answer: its partitions are being let go of; the next tick rebuilds
            raise
        self._open_gate()
        self._apply(draft, happened, [n for n in draft.books if n in happened])
        self._roll_back(draft, [n for n in draft.books if n not in happened])
        self._resume()

    def _open_gate(self) -> None:
        self._lane.gate_open = True
        self._lane.problems.pop("commit", None)

    def _resume(self) -> None:
        """Whoever asked for a body while the gate was closed was told NOT_YET: ask again."""
        lane = self._lane
        for book in lane.books.values():
            for entry in book.entries:
                if entry.stage is Stage.STARTED and not entry.begun:
                    lane.courier.proceed(entry)

    async def _reread(self, draft: Draft) -> dict[int, int]:
        while True:
            await self._rebuild()
            try:
                return await what_happened(self._lane, draft)
            except Retriable as error:
                _log.warning("asking the log waits", extra={"lane": self._lane.name, "reason": str(error)})
                await asyncio.sleep(REBUILD_PAUSE_S)

    async def _forget(self) -> dict[int, int]:
        await self._rebuild()
        return {}

    async def _rebuild(self) -> None:
        while True:
            try:
                await self._transactor.rebuild()
                return
            except Retriable as error:
                _log.warning("the producer's rebuild waits", extra={"lane": self._lane.name, "reason": str(error)})
                await asyncio.sleep(REBUILD_PAUSE_S)
