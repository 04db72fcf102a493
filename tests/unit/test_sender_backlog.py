"""What a sender says of the records that nobody has read yet: autoscaling goes by it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from postlane.core.books import Book
from postlane.core.policy import Lane as LanePolicy
from postlane.eventlog.errors import Retriable
from postlane.eventlog.ports import Partition
from postlane.telemetry.metrics import SenderMetrics
from postlane_sender.backlog import unread, watch_backlog
from postlane_sender.lane import LaneState

DISPATCH = "mail.dispatch.bulk"


@dataclass
class Ends:
    """A log that knows only where its partitions end."""

    ends: dict[int, int]
    failing: bool = False
    asked: list[set[int]] = field(default_factory=list)

    async def high_watermarks(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        self.asked.append({p.number for p in partitions})
        if self.failing:
            raise Retriable("no broker")
        return {p: self.ends[p.number] for p in partitions}


class Lane:
    """What the backlog looks at of a lane."""

    name = "bulk"
    dispatch = DISPATCH
    policy = LanePolicy(providers=("primary",))

    def __init__(self, log: Ends, positions: Mapping[int, int]) -> None:
        self.log = log
        self.metrics = SenderMetrics(CollectorRegistry())
        self.books = {number: Book(number, low_water=0, state_floor=0, state_end=0) for number in positions}
        for number, position in positions.items():
            self.books[number].next_offset = position

    @property
    def told(self) -> float:
        return float(cast(Any, self.metrics.backlog.labels("bulk"))._value.get())


async def test_it_counts_from_the_position_not_from_the_low_water_mark_and_only_what_is_owned() -> None:
    log = Ends({0: 100, 1: 7, 2: 1000})
    assert await unread(cast(LaneState, Lane(log, {0: 90, 1: 7}))) == 10
    assert log.asked == [{0, 1}]


async def test_who_owns_nothing_asks_nothing_and_says_none() -> None:
    log = Ends({})
    assert await unread(cast(LaneState, Lane(log, {}))) == 0
    assert log.asked == []


async def test_brokers_that_do_not_answer_leave_the_last_word_and_end_nothing() -> None:
    log = Ends({0: 100})
    lane = Lane(log, {0: 40})
    watching = asyncio.create_task(watch_backlog([cast(LaneState, lane)], every_s=0.001))
    await _until(lambda: lane.told == 60)
    log.failing, seen = True, len(log.asked)
    await _until(lambda: len(log.asked) > seen + 3)
    assert lane.told == 60
    log.failing, log.ends = False, {0: 45}
    await _until(lambda: lane.told == 5)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


async def _until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a gauge has no event
            await asyncio.sleep(0.001)
