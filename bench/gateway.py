"""What HTTP costs a publisher: mails through one gateway process, one in a request and a hundred in a request, beside
the SDK in a process of its own. Client, gateway and broker share the machine."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from bench.sender import new_names, row
from postlane.core.api_keys import digest, new_key
from postlane.core.policy import Topics
from postlane.eventlog.admin import KafkaAdmin
from postlane.eventlog.kafka_config import ClientConfig
from postlane.eventlog.topics import TopicNames, declare
from postlane.local import http_probe, ports

CONNECTIONS = 32
BATCH = 100
KEY = new_key(bytes(32))
MAIL = {"sender": "shop@example.org", "to": "ada@example.com", "subject": "Order", "text": "On its way. " * 60}
SDK = """
import sys, time
from postlane import Mail, Publisher
servers, prefix, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Publisher(servers, topic_prefix=prefix) as publisher:
    publisher.publish(Mail(sender="shop@example.org", to="a@example.com", text="t"))
    began = time.monotonic()
    mails = ((Mail(sender="shop@example.org", to="ada@example.com", subject="Order", text="On its way. " * 60),
              f"sdk-{n}") for n in range(count))
    for _ in publisher.publish_many(mails): pass
    print(count / (time.monotonic() - began))
"""


def run(bootstrap: str, folder: Path, count: int, rounds: int = 3) -> list[dict[str, Any]]:
    """The median of interleaved rounds."""
    names = new_names()
    admin = KafkaAdmin(ClientConfig(bootstrap))
    asyncio.run(admin.create_topics(declare(names, ("transactional",), Topics()), 1))
    figures: dict[str, list[float]] = {"sdk": [], "one": [], "batch": []}
    with _gateway(bootstrap, names, folder) as port:
        for number in range(rounds):
            figures["sdk"].append(_sdk(bootstrap, names, count))
            figures["one"].append(asyncio.run(_ask(port, count // 4, 1, f"one-{number}")))
            figures["batch"].append(asyncio.run(_ask(port, count, BATCH, f"batch-{number}")))
    middle = {name: statistics.median(values) for name, values in figures.items()}
    detail = f"SDK {middle['sdk']:.0f} mails/s, {CONNECTIONS} connections"
    return [
        row("gateway, a mail a request", middle["one"], "mails/s", None, detail=detail),
        row(f"gateway, {BATCH} mails a request", middle["batch"], "mails/s", None, detail=detail),
        row(f"gateway, {BATCH} mails a request ÷ SDK in a process", middle["batch"] / middle["sdk"], "ratio", None),
    ]


def _sdk(bootstrap: str, names: TopicNames, count: int) -> float:
    command = [sys.executable, "-c", SDK, bootstrap, names.prefix, str(count)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)


@contextmanager
def _gateway(bootstrap: str, names: TopicNames, folder: Path) -> Iterator[int]:
    port, probe = ports.free_port(), ports.free_port()
    keys = folder / "keys.yaml"
    keys.write_text(f"keys: [{{name: bench, sha256: {digest(KEY)}}}]\n")
    env = {
        **os.environ,
        "POSTLANE_BOOTSTRAP_SERVERS": bootstrap,
        "POSTLANE_TOPIC_PREFIX": names.prefix,
        "POSTLANE_GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "POSTLANE_GATEWAY_KEYS_FILE": str(keys),
        "POSTLANE_HTTP_PORT": str(probe),
        "POSTLANE_DATA_DIR": str(folder / "gateway"),
    }
    process = subprocess.Popen([sys.executable, "-m", "postlane_producer"], env=env, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while http_probe.get(f"http://127.0.0.1:{probe}/readyz").status != 200:
            assert time.monotonic() < deadline, "the gateway is not ready"
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(60)


async def _ask(port: int, count: int, per_request: int, name: str) -> float:
    """Mails a second over CONNECTIONS connections, each with one request at a time."""
    waiting = iter(range(0, count, per_request))

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for first in waiting:
            mails = [orjson.dumps({**MAIL, "key": f"{name}-{n}"}) for n in range(first, first + per_request)]
            writer.write(_request(mails))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith((b"HTTP/1.1 202", b"HTTP/1.1 200")), head
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            body = await reader.readexactly(length)
            assert body.count(b'"message_id"') == per_request
        writer.close()

    began = time.monotonic()
    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return count / (time.monotonic() - began)


def _request(mails: list[bytes]) -> bytes:
    single = len(mails) == 1
    body = mails[0] if single else b"\n".join(mails)
    path, kind = ("/v1/mails", "json") if single else ("/v1/mails/batch", "x-ndjson")
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/{kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
