"""How many events a second one ledger process folds, into SQLite and into PostgreSQL.

    python -m bench.ledger [--mails N] [--alone]

`fold`: from the bytes of records in memory to committed rows, decoding included. `kafka`: a ledger process that
catches up with a full topic on a real broker, which shares the machine; time counts from its first committed batch
to its last. A mail is four events (requested, routed, attempted, delivered), its key a random UUID, which is the hard
case for the indexes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.throwaway_postgresql import NoPostgreSQL, ThrowawayPostgreSQL

from postlane.core import events as ev
from postlane.core.identity import delivery_id, message_id_from_key
from postlane.eventlog.codec import encode, headers
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.ports import Outgoing, Partition, Received
from postlane.eventlog.topics import TopicNames, TopicSpec
from postlane.local.kafka import KafkaCluster
from postlane.ops import books as queries
from postlane.ops.books_database import open_database
from postlane.ops.books_schema import books
from postlane_ledger.batch import prepare
from postlane_ledger.bootstrap import collect_garbage_seldom
from postlane_ledger.fold import Fold
from postlane_ledger.ledger import LedgerSettings
from postlane_ledger.migrate import upgrade

PARTITIONS = 12
IN_FLIGHT = 500  # mails whose events are mixed
NAMES = TopicNames("bench.")
BARS = {"sqlite": 20_000, "postgresql": 10_000}


def life(number: int) -> list[ev.Fact]:
    """The four events of a mail that is delivered at once."""
    at = datetime.now(UTC)
    message = message_id_from_key("default", f"bench-{number}-{random.random()}")
    to = f"ada.{number}@example{number % 50}.com"
    ids = {"message_id": message, "delivery_id": delivery_id(message, to), "recipient": to, "at": at, "attempt": 1}
    reply = ev.ReplyInfo(code=250, enhanced="2.0.0", text="Ok: queued as 4F2X1c0zqWz9rV")
    return [
        ev.Requested(
            message_id=message, at=at, tenant="default", lane="bulk", key=f"bench-{number}", campaign="bench",
            sender="Shop <shop@example.org>", subject=f"Order {number} is on its way", recipients=1, requested_at=at,
        ),
        ev.Routed(**ids, lane="bulk"),
        ev.Attempted(**ids, provider="primary"),
        ev.Delivered(**ids, provider="primary", reply=reply),
    ]  # fmt: skip


def records(mails: int) -> Iterator[Outgoing]:
    """Events of `mails` mails as the log holds them: those of IN_FLIGHT mails mixed, a mail in one partition."""
    for start in range(0, mails, IN_FLIGHT):
        lives = [life(number) for number in range(start, min(mails, start + IN_FLIGHT))]
        for step in range(4):
            for number, events in enumerate(lives):
                event: Any = events[step]
                key = event.message_id.encode()
                head = headers(type(event), "bench", f"{start}-{number}-{step}", event.at)
                yield Outgoing(NAMES.events, number % PARTITIONS, key, encode(event), head)


def received(outgoing: Iterator[Outgoing]) -> list[Received]:
    offsets = [0] * PARTITIONS
    found = []
    for out in outgoing:
        number = out.partition or 0
        found.append(Received(out.topic, number, offsets[number], 0, out.key, out.value, out.headers))
        offsets[number] += 1
    return found


def fold(url: str, log: list[Received]) -> dict[str, Any]:
    """The fold path alone."""
    collect_garbage_seldom()  # as the process does
    engine = open_database(url)
    upgrade(engine)
    folding = Fold(engine, books(), NAMES.events, lambda: 0)
    expected = folding.begin(dict.fromkeys(range(PARTITIONS), 0))
    size = LedgerSettings("", "", "").batch_events_max
    began, cpu_began = time.perf_counter(), time.process_time()
    for start in range(0, len(log), size):
        expected.update(folding.apply(prepare(log[start : start + size]), expected).next_offsets)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    engine.dispose()
    return {"events_per_s": round(len(log) / seconds), "cpu_us_per_event": round(cpu_s / len(log) * 1e6, 1)}


async def publish(bootstrap: str, mails: int) -> int:
    cluster = KafkaLog(bootstrap)
    await cluster.admin.create_topics([TopicSpec(NAMES.events, PARTITIONS, {}, (), ())], 1)
    appender = cluster.appender()
    for count, record in enumerate(records(mails), 1):
        appender.append_soon(record)
        if count % 5_000 == 0:
            await appender.flush(60)
    await appender.flush(60)
    ends = await cluster.high_watermarks([Partition(NAMES.events, n) for n in range(PARTITIONS)])
    await cluster.close()
    return sum(ends.values())


def through_kafka(bootstrap: str, url: str, folder: Path, count: int) -> dict[str, Any]:
    """A ledger process that catches up."""
    engine = open_database(url)
    upgrade(engine)
    engine.dispose()
    env = {
        **os.environ,
        "POSTLANE_BOOTSTRAP_SERVERS": bootstrap,
        "POSTLANE_TOPIC_PREFIX": NAMES.prefix,
        "POSTLANE_DATABASE_URL": url,
        "POSTLANE_DATA_DIR": str(folder),
        "POSTLANE_INSTANCE_ID": f"bench-{url.partition(':')[0]}",
        "POSTLANE_HTTP_PORT": "0",
    }
    with (folder / "ledger.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "postlane_ledger"], env=env, stderr=log)
    try:
        return _watch(process, url, count)
    finally:
        process.terminate()
        process.wait(60)


def _watch(process: subprocess.Popen[bytes], url: str, count: int) -> dict[str, Any]:
    first: tuple[float, int, float] | None = None
    while True:
        folded, at = sum(queries.offsets(url, NAMES.events).values()), time.monotonic()
        if first is None and folded:
            first = at, folded, _cpu_s(process.pid)
        if first is not None and folded >= count:
            done, cpu_s = count - first[1], _cpu_s(process.pid) - first[2]
            rate = round(done / (at - first[0])) if at > first[0] else 0
            return {"events_per_s": rate, "cpu_us_per_event": round(cpu_s / done * 1e6, 1) if done else 0}
        if process.poll() is not None:
            raise RuntimeError(f"the ledger ended with {process.returncode}")
        time.sleep(0.05)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(mails: int, alone: bool = False) -> list[dict[str, Any]]:
    """Rows {name, value, unit, bar, holds, cpu_us_per_event}; PostgreSQL is left out where there is none."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        urls: dict[str, list[str]] = {"sqlite": [f"sqlite:///{folder}/{n}.db" for n in "ab"]}
        server: ThrowawayPostgreSQL | None = None
        kafka: KafkaCluster | None = None
        try:
            try:
                server = ThrowawayPostgreSQL()
                server.start()
                urls["postgresql"] = [server.new_database() for _ in "ab"]
            except NoPostgreSQL as reason:
                print(f"no PostgreSQL: {reason}", file=sys.stderr)
            log = received(records(mails))
            for kind, (url, _) in urls.items():
                found.append(_row(f"ledger fold, {kind}", fold(url, log), BARS[kind]))
            if not alone:
                kafka = KafkaCluster(folder / "kafka", brokers=1, port=0, tied=True)
                kafka.start()
                count = asyncio.run(publish(kafka.bootstrap_servers, mails))
                for kind, (_, url) in urls.items():
                    figures = through_kafka(kafka.bootstrap_servers, url, folder, count)
                    found.append(_row(f"ledger through Kafka, {kind}", figures, BARS[kind]))
        finally:
            if kafka is not None:
                kafka.stop(grace_s=5.0)
            if server is not None:
                server.remove()
    return found


def _row(name: str, figures: dict[str, Any], bar: int) -> dict[str, Any]:
    value = figures["events_per_s"]
    row = {"name": name, "value": value, "unit": "events/s", "bar": f">= {bar}", "holds": value >= bar}
    return {**row, "cpu_us_per_event": figures["cpu_us_per_event"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--mails", type=int, default=75_000)
    parser.add_argument("--alone", action="store_true", help="without Kafka")
    chosen = parser.parse_args()
    for row in run(chosen.mails, chosen.alone):
        print(json.dumps(row))
