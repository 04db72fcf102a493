"""A commit of unknown outcome: what of a draft is really in the log, partition by partition."""

from __future__ import annotations

from collections.abc import Iterable

from postlane.core.books import Entry, Found, History, Stage
from postlane.eventlog.ports import Partition
from postlane_sender.draft import Draft
from postlane_sender.lane import LaneState
from postlane_sender.takeover import BooksDamaged, read_state

REREAD_DEADLINE_S = 30.0


async def what_happened(lane: LaneState, draft: Draft) -> dict[int, int]:
    """For each partition whose records of the draft are in the state topic: the end that was read to.

    To be asked when nothing can come any more: after InitProducerId has settled what the old producer left open.
    Raises Retriable, BooksDamaged.
    """
    found: dict[int, int] = {}
    for number, entries in draft.noted.items():
        if lane.books.get(number) is not draft.books[number]:
            continue  # it is another's: nothing more is said of it here
        state = Partition(lane.state, number)
        end = (await lane.log.high_watermarks([state]))[state]
        start = draft.ends_before[number]
        history = History()
        if start < end:
            async for batch in lane.log.read(state, start, end, deadline_s=REREAD_DEADLINE_S):
                for record in batch:
                    read_state(history, record)
        if _all_there(history, entries, lane):  # the records of a transaction are there as a whole or not at all
            found[number] = end
    return found


def _all_there(history: History, entries: Iterable[Entry], lane: LaneState) -> bool:
    verdicts = {_is_there(history, entry, lane) for entry in entries if entry.stage is not Stage.SETTLED}
    if len(verdicts) > 1:
        raise BooksDamaged(
            "half of a transaction is in the state topic; sending stops. See docs/runbooks/offsets-lost.md"
        )
    return verdicts == {True}


def _is_there(history: History, entry: Entry, lane: LaneState) -> bool:
    found, intent = history.find(entry)
    if entry.stage is Stage.SETTLING:
        return found is Found.SETTLED
    return intent is not None and intent.instance == lane.instance and intent.boot == lane.boot
