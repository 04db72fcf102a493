"""What a sender does against a real SMTP server in C, beside bare aiosmtplib and a naive Kafka consumer, in one run."""

from __future__ import annotations

import asyncio
import signal
import time
import uuid
from collections import deque
from pathlib import Path
from typing import Any

import aiosmtplib
import orjson
from confluent_kafka import Consumer, TopicPartition

from bench.processes import SenderProcess, throughput, until
from bench.smtp_client import bare, sink
from bench.stack import dispatches, make_topics
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.topics import TopicNames
from postlane.local.practice import PracticeProcess

BODY_BYTES = 3600  # about 4 KB on the wire
CONNECTIONS = 32
SINK = "/usr/sbin/smtp-sink"


def new_names() -> TopicNames:
    return TopicNames(f"b{uuid.uuid4().hex[:6]}.")


async def fill(bootstrap: str, names: TopicNames, count: int, body_bytes: int = BODY_BYTES) -> None:
    """`count` dispatch records in the topic of lane `bulk`."""
    log = KafkaLog(bootstrap, {})
    await make_topics(bootstrap, names, ("bulk",))
    appender = log.appender()
    for n, record in enumerate(dispatches(names, "bulk", count, 12, body_bytes)):
        appender.append_soon(record)
        if n % 2000 == 0:
            await appender.flush(60)
    await appender.flush(60)
    await log.close()


# ----------------------------------------------------------------------------------- beside what people use today


def beside_others(bootstrap: str, folder: Path, count: int = 20_000, rounds: int = 3) -> list[dict[str, Any]]:
    """Full books ÷ bare aiosmtplib ÷ a naive consumer; the median of interleaved rounds."""
    figures: dict[str, list[float]] = {"ours": [], "bare": [], "naive": []}
    for _ in range(rounds):
        with sink(SINK, CONNECTIONS) as port:
            names = new_names()
            asyncio.run(fill(bootstrap, names, count))
            with SenderProcess(bootstrap, names, folder / names.prefix, port) as sender:
                figures["ours"].append(throughput([sender], count))
            spent, _ = asyncio.run(bare(port, CONNECTIONS, count))
            figures["bare"].append(count / spent)
            figures["naive"].append(asyncio.run(naive(bootstrap, names, port, count)))
    ours, plain, simple = (sorted(values)[rounds // 2] for values in figures.values())
    more = {"detail": {name: [round(v) for v in values] for name, values in figures.items()}}
    return [
        row("sender with full books ÷ bare aiosmtplib", ours / plain, "ratio", 2.0, **more),
        row("sender with full books ÷ naive Kafka consumer", ours / simple, "ratio", 2.5, **more),
    ]


async def naive(bootstrap: str, names: TopicNames, port: int, count: int) -> float:
    """Poll, send with aiosmtplib, commit each second: no books. Mails a second."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": f"{names.prefix}naive", "auto.offset.reset": "earliest",
         "enable.auto.commit": False}
    )  # fmt: skip
    topic = names.dispatch("bulk")
    consumer.assign([TopicPartition(topic, n, 0) for n in range(12)])
    clients = [aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False, local_hostname="b.example")
               for _ in range(CONNECTIONS)]  # fmt: skip
    for client in clients:
        await client.connect()
        await client.ehlo()
    waiting: deque[dict[str, Any]] = deque()
    done = 0

    async def work(client: aiosmtplib.SMTP) -> None:
        nonlocal done
        while done < count:
            if not waiting:
                await asyncio.sleep(0.001)
                continue
            mail = waiting.popleft()
            head = f"From: {mail['content']['sender']}\r\nTo: {mail['recipient']}\r\nSubject: x\r\n\r\n"
            await client.mail(mail["content"]["sender"])
            await client.rcpt(mail["recipient"])
            await client.data((head + mail["content"]["text"].replace("\n", "\r\n")).encode())
            done += 1

    async def read() -> None:
        loop, committed = asyncio.get_running_loop(), time.monotonic()
        while done < count:
            if len(waiting) < 1000:
                for message in await loop.run_in_executor(None, consumer.consume, 500, 0.05):
                    waiting.append(orjson.loads(message.value()))
            else:
                await asyncio.sleep(0.005)
            if time.monotonic() - committed > 1:
                committed = time.monotonic()
                consumer.commit(asynchronous=True)

    began = time.perf_counter()
    await asyncio.gather(read(), *(work(client) for client in clients))
    rate = count / (time.perf_counter() - began)
    consumer.close()
    for client in clients:
        client.close()
    return rate


# -------------------------------------------------------------------------------------------- backlog, scale, kill


def backlog(bootstrap: str, folder: Path, large: int = 1_000_000, small: int = 10_000) -> list[dict[str, Any]]:
    """Throughput and memory do not depend on how much waits."""
    rates: dict[int, list[float]] = {small: [], large: []}
    names = new_names()
    asyncio.run(fill(bootstrap, names, large, body_bytes=400))
    few = 20_000
    peak = 0.0
    with sink(SINK, CONNECTIONS) as port:
        for turn in range(3):
            other = new_names()
            asyncio.run(fill(bootstrap, other, small, body_bytes=400))
            with SenderProcess(bootstrap, other, folder / other.prefix, port) as sender:
                rates[small].append(throughput([sender], small))
            with SenderProcess(bootstrap, names, folder / names.prefix / str(turn), port) as sender:
                rates[large].append(throughput([sender], few))
                peak = max(peak, sender.rss_mb())
    ratio = sorted(rates[large])[1] / sorted(rates[small])[1]
    return [
        row("sender RSS with a backlog of 1,000,000", peak, "MB", 150, below=True),
        row("throughput at 1,000,000 backlog ÷ at 10,000", ratio, "ratio", 0.95, detail=str(rates)),
    ]


def scale(bootstrap: str, folder: Path, count: int = 12_000) -> list[dict[str, Any]]:
    """Two senders ÷ one, against a server that takes 20 ms: as many connections as the cores bear, and few."""
    name = "2 senders ÷ 1 sender against a 20 ms server"
    rows = []
    with PracticeProcess(folder / "practice") as practice:
        practice.control.add_fault("delay", "dot", delay_s=0.02)
        for connections, bar, title in ((CONNECTIONS, 1.9, name), (8, None, f"{name}, 8 connections each")):
            rates = {n: _rate(bootstrap, folder, practice.smtp_port, n, connections, count) for n in (1, 2)}
            rows.append(row(title, rates[2] / rates[1], "ratio", bar, detail=str(rates)))
            count //= 2
    return rows


def _rate(bootstrap: str, folder: Path, port: int, replicas: int, connections: int, count: int) -> float:
    """Mails a second that so many senders bring to the server together."""
    names = new_names()
    asyncio.run(fill(bootstrap, names, count))
    senders = [
        SenderProcess(
            bootstrap, names, folder / names.prefix, port, name=f"sender-{n}", connections=connections
        ).start()
        for n in range(replicas)
    ]
    try:
        until(lambda: all(s.delivered() > 50 for s in senders), "all are sending")
        return throughput(senders, count, skip=0.3)
    finally:
        for sender in senders:
            sender.end(signal.SIGTERM)


def row(name: str, value: float, unit: str, bar: float | None, *, below: bool = False, **more: Any) -> dict[str, Any]:
    """One line of bench/results.json."""
    holds = None if bar is None else (value <= bar if below else value >= bar)
    text = None if bar is None else f"{'<=' if below else '>='} {bar:,g}"
    return {"name": name, "value": round(value, 3), "unit": unit, "bar": text, "holds": holds, **more}
