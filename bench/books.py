"""The books alone: a sender's loop on real Kafka with SMTP replaced by an instant yes."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from typing import Any

from bench.stack import dispatches, make_topics
from postlane.clock import SystemClock
from postlane.core.books import Entry
from postlane.core.events import DispatchReady
from postlane.core.policy import Config, Lane, Provider
from postlane.core.replies import Reply
from postlane.core.smtp_events import Accepted
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.tables import ControlTable
from postlane.eventlog.topics import TopicNames
from postlane.telemetry.metrics import Metrics
from postlane_sender.lane import Composed, LaneState, Placed
from postlane_sender.loop import LaneLoop
from postlane_sender.recorder import NoRecorder

PLACES = 1024
YES = Reply(250, "2.0.0", "ok")


class Instant:
    """A courier whose server has always said yes already."""

    def __init__(self, lane: LaneState, places: int) -> None:
        self.lane = lane
        self.places = places

    def place(self, mail: DispatchReady) -> str | Placed:
        if self.places <= 0:
            return Placed.BUSY
        self.places -= 1
        return "instant"

    def start(self, entry: Entry) -> None: ...

    def proceed(self, entry: Entry) -> None:
        if isinstance(self.lane.may_write(entry), bytes):
            self.lane.dot_sent(entry)
            self.places += 1
            self.lane.finished(entry, Accepted(entry, YES))

    def ticked(self) -> None: ...

    def withdraw(self, entry: Entry) -> None:
        self.places += 1

    def usable(self) -> bool:
        return True

    async def close(self, timeout_s: float) -> None: ...


def lane_state(log: KafkaLog, names: TopicNames, config: Config, **more: Any) -> LaneState:
    return LaneState(
        name="bulk",
        policy=config.lanes["bulk"],
        config=config,
        names=names,
        log=log,
        clock=SystemClock(),
        dice=random.Random(1),
        instance="bench",
        boot=str(uuid.uuid4()),
        control=ControlTable(),
        recorder=NoRecorder(),
        metrics=Metrics("sender").sender,
        **more,
    )


async def run(bootstrap: str, count: int = 60_000, body_bytes: int = 1000) -> dict[str, Any]:
    names = TopicNames(f"b{uuid.uuid4().hex[:6]}.")
    await make_topics(bootstrap, names, ("bulk",))
    log = KafkaLog(bootstrap, {})
    appender = log.appender()
    for n, record in enumerate(dispatches(names, "bulk", count, 12, body_bytes)):
        appender.append_soon(record)
        if n % 2000 == 0:
            await appender.flush(30)
    await appender.flush(60)
    config = Config(
        lanes={"bulk": Lane(in_doubt="park", providers=("instant",))},
        providers={"instant": Provider(name="instant", host="127.0.0.1", port=1, tls="none")},
    )
    lane = lane_state(log, names, config, compose=lambda mail: Composed("a@b.c", mail.recipient, b"x"))
    lane.courier = Instant(lane, PLACES)
    loop = LaneLoop(lane)
    await loop.start()
    started = time.perf_counter()
    cpu = time.process_time()
    running = asyncio.create_task(loop.run())
    done = lane.metrics.outcomes_total.labels("bulk", "Delivered")
    first = None
    while done._value.get() < count:
        await asyncio.sleep(0.02)
        if first is None and done._value.get() > 0:
            first, cpu, n0 = time.perf_counter(), time.process_time(), done._value.get()
        if running.done():
            running.result()
    took = time.perf_counter() - (first or started)
    cpu = time.process_time() - cpu
    loop.stop()
    await running
    await log.close()
    return {
        "mails": count,
        "seconds": took,
        "per_s": (count - n0) / took,
        "cpu_us": cpu / (count - n0) * 1e6,
        "tick_sum": lane.metrics.tick_seconds.labels("bulk")._sum.get(),
    }


if __name__ == "__main__":
    import gc
    import sys

    import uvloop

    gc.set_threshold(100_000, 50, 1000)

    print(uvloop.run(run(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 60_000)))
