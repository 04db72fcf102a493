"""How many requests a second one router process routes, on real Kafka, with its memory of keys on.

The broker shares the machine. Requests of about 1 KB to one recipient each are published first, then one router
process starts; time counts from its first committed transaction to its last.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

from postlane.core.events import MailRequested
from postlane.core.identity import message_id_from_key
from postlane.core.policy import Topics
from postlane.eventlog.codec import encode, headers
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.ports import Outgoing, Partition
from postlane.eventlog.topics import TopicNames, declare
from postlane.local.kafka import KafkaCluster

REQUESTS = 100_000
BODY = "It left our house today and will be with you within two days. " * 10


def request(number: int) -> Outgoing:
    """One request of about 1 KB."""
    at = datetime.now(UTC)
    key = f"bench-{number}"
    message = MailRequested(
        message_id=message_id_from_key("default", key),
        key=key,
        sender="Shop <shop@example.org>",
        to=(f"ada.{number}@example.com",),
        subject=f"Order {number} is on its way",
        text=BODY,
        headers={"X-Order": str(number)},
        campaign="bench",
        requested_at=at,
    )
    trace = [("traceparent", f"00-{uuid4().hex}-{uuid4().hex[:16]}-01".encode())]
    ident = message.message_id
    wire_headers = headers(MailRequested, "bench", ident, at, trace)
    return Outgoing(NAMES.requests, None, ident.encode(), encode(message), wire_headers)


NAMES = TopicNames("bench.")


async def _publish(cluster: KafkaLog, count: int, partitions: int) -> None:
    specs = declare(NAMES, ("transactional", "bulk"), Topics(partitions=partitions))
    await cluster.admin.create_topics(specs, 1)
    appender = cluster.appender()
    for number in range(count):
        appender.append_soon(request(number))
        if number % 2000 == 1999:
            await appender.flush(30)
    await appender.flush(60)


async def _routed(cluster: KafkaLog, partitions: int) -> int:
    topics = [Partition(NAMES.seen, p) for p in range(partitions)]
    return sum((await cluster.high_watermarks(topics)).values())


async def _measure(bootstrap: str, broker: int, folder: Path, count: int, partitions: int) -> dict[str, Any]:
    cluster = KafkaLog(bootstrap)
    try:
        await _publish(cluster, count, partitions)
        env = {
            **os.environ,
            "POSTLANE_BOOTSTRAP_SERVERS": bootstrap,
            "POSTLANE_TOPIC_PREFIX": NAMES.prefix,
            "POSTLANE_DATA_DIR": str(folder),
            "POSTLANE_INSTANCE_ID": "bench",
            "POSTLANE_HTTP_PORT": "0",
        }
        command = [sys.executable, "-m", "postlane_router"]
        if os.environ.get("BENCH_PROFILE"):
            command = [sys.executable, "-m", "cProfile", "-o", os.environ["BENCH_PROFILE"], "-m", "postlane_router"]
        with (folder / "router.log").open("wb") as log:
            process = subprocess.Popen(command, env=env, stderr=log)  # noqa: ASYNC220
            try:
                figures = await _watch(cluster, process, broker, count, partitions)
                return {**figures, **_metrics(folder / "router.log")}
            finally:
                process.terminate()
                process.wait(30)
    finally:
        await cluster.close()


async def _watch(
    cluster: KafkaLog, process: subprocess.Popen[bytes], broker: int, count: int, partitions: int
) -> dict[str, Any]:
    began: tuple[float, int, float, float] | None = None
    while True:
        routed, at, cpu_s = await _routed(cluster, partitions), time.monotonic(), _cpu_s(process.pid)
        if began is None and routed:
            began = at, routed, cpu_s, _cpu_s(broker)
        if began is not None and routed >= count:
            seconds = at - began[0]
            done = count - began[1]
            return {
                "requests": count,
                "seconds": round(seconds, 2),
                "requests_per_s": round(done / seconds),
                "router_cpu_us_per_request": round((cpu_s - began[2]) / done * 1e6, 1),
                "broker_cpu_us_per_request": round((_cpu_s(broker) - began[3]) / done * 1e6, 1),
            }
        if process.poll() is not None:
            raise RuntimeError(f"the router ended with {process.returncode}")
        await asyncio.sleep(0.05)


def _metrics(log: Path) -> dict[str, Any]:
    """Transactions, and what one took, by the router's own metrics."""
    (address,) = (line["http"] for line in map(json.loads, log.read_text().splitlines()) if "http" in line)
    with urlopen(f"http://{address}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    found = {name: float(value) for name, value in (x.rsplit(" ", 1) for x in lines if not x.startswith("#"))}
    count = found["postlane_router_batch_seconds_count"]
    return {
        "transactions": round(count),
        "requests_per_transaction": round(found["postlane_router_batch_records_sum"] / count),
        "commit_ms": round(found["postlane_router_batch_seconds_sum"] / count * 1000, 1),
    }


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(count: int = REQUESTS, partitions: int = 12) -> dict[str, Any]:
    """The figures of one run."""
    with tempfile.TemporaryDirectory(prefix="bench-router-") as folder:
        kafka = KafkaCluster(Path(folder) / "kafka", brokers=1, port=0, tied=True)
        kafka.start()
        try:
            return asyncio.run(_measure(kafka.bootstrap_servers, kafka.pid() or 0, Path(folder), count, partitions))
        finally:
            log = Path(folder) / "router.log"
            if log.exists():
                print(log.read_text()[-4000:], file=sys.stderr)
            kafka.stop(grace_s=5.0)


if __name__ == "__main__":
    print(run(*(int(word) for word in sys.argv[1:])))
