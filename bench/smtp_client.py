"""Mails a second and CPU a mail: our connections and bare aiosmtplib into the same `smtp-sink`, in one run.

    python bench/smtp_client.py [--mails N] [--connections N] [--rounds N] [--sink PATH]

`smtp-sink` is part of Postfix and need not run as a service. CPU is this process's, user and system.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import aiosmtplib
import uvloop

from postlane.core.policy import Provider
from postlane.core.smtp_events import Accepted, Closed
from postlane_sender.connection import Connection, Item, NotYet, Result, SessionLimits
from postlane_sender.session import open_session

BODY = b"Subject: bench\r\nFrom: from@x.example\r\n\r\n" + (b"x" * 70 + b"\r\n") * 57


@dataclass(slots=True, eq=False)
class BenchMail:
    envelope_from: str
    recipient: str
    size_bytes: int | None = len(BODY)
    eight_bit: bool | None = False


class Counting:
    """A listener that sends as fast as the connections take, until `left` is used up."""

    def __init__(self, mails: int) -> None:
        self.left = self.due = mails
        self.done = asyncio.Event()

    def ready(self, conn: Connection) -> None:
        if self.left:
            self.left -= 1
            conn.offer(BenchMail("from@x.example", f"to{self.left}@y.example"))

    def body_wanted(self, conn: Connection, item: Item) -> bytes | NotYet | None:
        return BODY

    def dot_sent(self, conn: Connection, item: Item) -> None:
        pass

    def finished(self, conn: Connection, item: Item, result: Result) -> None:
        if not isinstance(result, Accepted):
            raise SystemExit(f"not accepted: {result}")
        self.due -= 1
        if not self.due:
            self.done.set()

    def closed(self, conn: Connection, closed: Closed) -> None:
        if self.due:
            raise SystemExit(f"connection closed: {closed}")


async def ours(port: int, connections: int, mails: int, pipelining: bool) -> tuple[float, float]:
    sender = Counting(0)
    provider = Provider(name="sink", host="127.0.0.1", port=port, tls="none", pipelining=pipelining)
    limits = SessionLimits(mails_max=10**9)
    conns = [
        await open_session(provider, None, sender, limits=limits, ehlo_name="bench.example") for _ in range(connections)
    ]
    sender.left = sender.due = mails
    wall, cpu = time.perf_counter(), used_cpu_s()
    for conn in conns:
        while conn.can_offer:
            sender.ready(conn)
    await sender.done.wait()
    spent = time.perf_counter() - wall, used_cpu_s() - cpu
    for conn in conns:
        conn.abort("done")
    return spent


async def bare(port: int, connections: int, mails: int) -> tuple[float, float]:
    clients = [
        aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False, local_hostname="bench.example")
        for _ in range(connections)
    ]
    for client in clients:
        await client.connect()
        await client.ehlo()
    left = mails

    async def work(client: aiosmtplib.SMTP) -> None:
        nonlocal left
        while left:
            left -= 1
            await client.mail("from@x.example")
            await client.rcpt(f"to{left}@y.example")
            await client.data(BODY)

    wall, cpu = time.perf_counter(), used_cpu_s()
    await asyncio.gather(*map(work, clients))
    spent = time.perf_counter() - wall, used_cpu_s() - cpu
    for client in clients:
        client.close()
    return spent


def used_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def sink(program: str, connections: int) -> Iterator[int]:
    """Runs smtp-sink on a free port of 127.0.0.1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    user = ["-u", "nobody"] if os.getuid() == 0 else []
    process = subprocess.Popen([program, *user, "-m", str(connections * 2), f"127.0.0.1:{port}", "1024"])
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mails", type=int, default=20_000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sink", default="/usr/sbin/smtp-sink")
    args = parser.parse_args()
    with sink(args.sink, args.connections) as port:
        runs: dict[str, Callable[[], Coroutine[Any, Any, tuple[float, float]]]] = {
            "aiosmtplib": lambda: bare(port, args.connections, args.mails),
            "ours, by command": lambda: ours(port, args.connections, args.mails, pipelining=False),
            "ours, pipelined": lambda: ours(port, args.connections, args.mails, pipelining=True),
        }
        for round_number in range(args.rounds):
            for name, run in runs.items():
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    wall_s, cpu_s = runner.run(run())
                row = {
                    "round": round_number,
                    "name": name,
                    "mails_per_s": round(args.mails / wall_s),
                    "cpu_us_per_mail": round(cpu_s / args.mails * 1e6, 1),
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
