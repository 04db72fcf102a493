"""How many dispatch records of the owned partitions nobody has read yet: high watermark − position.

With `unsettled` this is what a lane has to do, and what autoscaling goes by. The committed lag is no measure of it: it
also counts the settled records that stand behind one slow mail. A control record at a partition's end counts as one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from postlane.eventlog.errors import LogError
from postlane.eventlog.ports import Partition
from postlane_sender import measures
from postlane_sender.lane import LaneState
from postlane_sender.link import Link

EVERY_S = 5.0
_log = logging.getLogger("postlane.sender")


async def watch_backlog(lanes: Sequence[LaneState], every_s: float = EVERY_S, *, links: Sequence[Link] = ()) -> None:
    """Look every `every_s` seconds until cancelled; what the brokers do not tell stays as it was told last."""
    while True:
        measures.say_links(links)
        for lane in lanes:
            measures.say_books(lane)
            try:
                lane.metrics.backlog.labels(lane.name).set(await unread(lane))
            except LogError as error:
                _log.debug("the backlog is not known", extra={"lane": lane.name, "reason": str(error)})
        await asyncio.sleep(every_s)


async def unread(lane: LaneState) -> int:
    """Records beyond what has been read of the partitions that are owned now. Raises LogError."""
    positions = {Partition(lane.dispatch, number): book.next_offset for number, book in lane.books.items()}
    ends = await lane.log.high_watermarks(list(positions)) if positions else {}
    return sum(max(0, end - positions[partition]) for partition, end in ends.items())
