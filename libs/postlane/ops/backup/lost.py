"""The cut when consumer offsets were lost or reset: what is on its way is told by the books alone.

A sender's position only saves reading: with the whole state topic, which outlives the dispatch topics, its books say
of every dispatch record whether it was settled. The router's place in `mail.requests` is behind the last request that
one of its events names as its source. Its places in the delay topics are not needed: of each delivery the furthest
record is pending, unless a book or an event ended it. This is only right while routers and senders stand still.
"""

from __future__ import annotations

from collections.abc import Mapping

from postlane.core.policy import Config
from postlane.eventlog.codec import header
from postlane.eventlog.ports import Log, Partition
from postlane.eventlog.topics import TopicNames
from postlane.ops.backup.manifest import Positions
from postlane.ops.backup.plan import Copied, Cut, Watch, plain, settled_ends

READ_DEADLINE_S = 3_600.0


async def cut_from_books(log: Log, admin: Watch, names: TopicNames, config: Config, counts: Mapping[str, int]) -> Cut:
    """Ends as they are, the router's positions in `mail.requests` from its events, no others. Raises EndNotReached."""
    copied = Copied.of(names, tuple(config.lanes))
    ends = await settled_ends(admin, [Partition(t, n) for t in copied.all() for n in range(counts[t])])
    requests = plain(names, copied.requests)
    routed = {
        number: await _routed(log, admin, Partition(copied.events, number), ends, f"{copied.requests}/{number}/")
        for number in range(counts[copied.events])
    }
    seen = {number: ends[Partition(copied.seen, number)] for number in range(counts[copied.seen])}
    return Cut(Positions(router={requests: routed}, marks={plain(names, copied.seen): seen}), ends)


async def _routed(log: Log, admin: Watch, events: Partition, ends: Mapping[Partition, int], source: str) -> int:
    """The offset behind the last request that an event names: its `ce_id` is `topic/partition/offset/n`."""
    low = (await admin.low_watermarks([events]))[events]
    last = -1
    async for batch in log.read(events, low, ends[events], deadline_s=READ_DEADLINE_S):
        for record in batch:
            ident = (header(record.headers, "ce_id") or b"").decode("utf-8", "replace")
            if ident.startswith(source):
                offset = ident[len(source) :].partition("/")[0]
                if offset.isdigit() and offset.isascii():
                    last = max(last, int(offset))
    return last + 1
