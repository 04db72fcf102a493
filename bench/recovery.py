"""What it costs to come back, and how long a mail is on its way: kill, takeover, latency."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from bench.books import Instant, lane_state
from bench.processes import SenderProcess, until
from bench.sender import CONNECTIONS, SINK, fill, new_names, row
from bench.smtp_client import sink
from bench.stack import dispatches, make_topics
from postlane import Mail, Publisher
from postlane.core.policy import Config, Lane, Provider
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.topics import TopicNames
from postlane.local.practice import PracticeProcess
from postlane_sender.lane import Composed
from postlane_sender.loop import LaneLoop

Rows = list[dict[str, Any]]


def kill(bootstrap: str, folder: Path, count: int = 20_000) -> Rows:
    """Uncertain deliveries after SIGKILL at full load, 32 connections: the same instance comes back."""
    found = {recorder: _kill(bootstrap, folder, count, recorder) for recorder in (True, False)}
    return [
        row("uncertain after SIGKILL at full load, with the flight recorder", found[True], "mails", 32, below=True),
        row("uncertain after SIGKILL at full load, without it", found[False], "mails", None),
    ]


def _kill(bootstrap: str, folder: Path, count: int, recorder: bool) -> int:
    names = new_names()
    asyncio.run(fill(bootstrap, names, count))
    with sink(SINK, CONNECTIONS) as port:
        sender = SenderProcess(bootstrap, names, folder / names.prefix, port).start()
        until(lambda: sender.delivered() > count * 0.3, "it is under full load")
        before = sender.delivered()
        sender.end(signal.SIGKILL)
        if not recorder:
            shutil.rmtree(sender.folder / "data")
        sender.start()
        until(lambda: sender.delivered() > (count - before) * 0.98 - 500, "it has caught up")
        time.sleep(9)  # an intent's time to live, and its tick
        uncertain = outcomes(sender, "Uncertain")
        sender.end(signal.SIGTERM)
    return uncertain


def outcomes(sender: SenderProcess, kind: str) -> int:
    """Dispatch records that this life of a sender settled so."""
    with urlopen(f"http://127.0.0.1:{sender.http_port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = re.search(rf'^postlane_sender_outcomes_total{{lane="bulk",outcome="{kind}"}} ([0-9.e+]+)', text, re.M)
    return round(float(found[1])) if found else 0


def takeover(bootstrap: str, folder: Path, history: int = 1_000_000) -> Rows:
    """A partition with `history` settled mails changes hands while one is waiting."""
    return asyncio.run(_takeover(bootstrap, history))


async def _takeover(bootstrap: str, history: int) -> Rows:
    names = new_names()
    log = KafkaLog(bootstrap, {})
    await make_topics(bootstrap, names, ("bulk",), partitions=1)
    await _append(log, names, history)
    first = _loop(log, names, "first")
    await first.start()
    running = asyncio.create_task(first.run())
    await _delivered(first, history)
    first.stop()
    await running
    await _append(log, names, 1)
    second = _loop(log, names, "second")
    owned: list[float] = []
    assigned = second.assigned

    async def noted(*args: Any) -> None:
        owned.append(time.perf_counter())
        await assigned(*args)

    second.assigned = noted  # type: ignore[method-assign]
    await second.start()
    running = asyncio.create_task(second.run())
    await _delivered(second, 1)
    took = time.perf_counter() - owned[-1]
    state = second.lane.books[0]
    read = state.state_end - state.state_floor
    second.stop()
    await running
    span = second.lane.policy.max_span
    return [
        row("takeover with 1,000,000 mails of history: state records read", read, "records", 3 * span, below=True),
        row("takeover with 1,000,000 mails of history: ownership to the first mail", took, "s", 1.0, below=True),
    ]


async def _append(log: KafkaLog, names: TopicNames, count: int) -> None:
    appender = log.appender()
    for n, record in enumerate(dispatches(names, "bulk", count, 1, 100)):
        appender.append_soon(record)
        if n % 2000 == 0:
            await appender.flush(60)
    await appender.flush(60)


def _loop(log: KafkaLog, names: TopicNames, instance: str) -> LaneLoop:
    config = Config(
        lanes={"bulk": Lane(in_doubt="park", providers=("instant",))},
        providers={"instant": Provider(name="instant", host="127.0.0.1", port=1, tls="none")},
    )
    lane = lane_state(log, names, config, compose=lambda mail: Composed("a@b.c", mail.recipient, b"x"))
    lane.instance = instance
    lane.courier = Instant(lane, 1024)
    return LaneLoop(lane)


async def _delivered(loop: LaneLoop, count: int) -> None:
    done = loop.lane.metrics.outcomes_total.labels("bulk", "Delivered")
    while done._value.get() < count:  # noqa: ASYNC110 - a counter has no event
        await asyncio.sleep(0.005)


def latency(bootstrap: str, folder: Path, per_s: int = 500, seconds: int = 20, warm_up_s: int = 20) -> Rows:
    """From the call of publish to the SMTP server's ledger, through router and sender, at a steady rate.

    The first `warm_up_s` are sent and not counted: they hold the takeover of all partitions and the compiling of the
    broker's code, which on two cores takes a third of the machine.
    """
    names = new_names()
    asyncio.run(make_topics(bootstrap, names, ("bulk",)))
    with PracticeProcess(folder / "practice") as practice:
        sender = SenderProcess(bootstrap, names, folder / "s", practice.smtp_port).start()
        env = {**sender._env, "POSTLANE_INSTANCE_ID": "router-1", "POSTLANE_HTTP_PORT": "0"}
        with (folder / "router.log").open("wb") as log:
            router = subprocess.Popen([sys.executable, "-m", "postlane_router"], env=env, stderr=log)
        try:
            sent: dict[str, float] = {}
            with Publisher(bootstrap, topic_prefix=names.prefix) as publisher:
                publisher.publish(Mail(sender="b@example.org", to=["w@example.com"], text="x", lane="bulk"))
                until(lambda: sender.delivered() == 1, "the pipeline is warm", 60)
                waiting = []
                began = time.time()
                for n in range(per_s * (warm_up_s + seconds)):
                    if (pause := began + n / per_s - time.time()) > 0:
                        time.sleep(pause)
                    mail = Mail(
                        sender="b@example.org", to=[f"r{n}@example.com"], subject="x", text="y" * 1000, lane="bulk"
                    )
                    waiting.append((time.time(), publisher.publish_soon(mail)))
                sent = {future.result(30).message_id: at for at, future in waiting}
            until(lambda: sender.delivered() > len(sent), "all are delivered", 60)
        finally:
            for process in (router, sender.process):
                if process is not None:
                    process.terminate()
                    process.wait(60)
        arrived = {e.delivery.split(".")[0]: e.at for e in practice.control.ledger() if e.delivery}
    counted = list(sent.items())[per_s * warm_up_s :]
    took = sorted(1000 * (arrived[message] - at) for message, at in counted)
    return [
        row("publish → accepted at 500 mails/s, p50", took[len(took) // 2], "ms", 50, below=True),
        row("publish → accepted at 500 mails/s, p99", took[int(len(took) * 0.99)], "ms", 150, below=True),
    ]
