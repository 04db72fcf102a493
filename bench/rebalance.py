"""How long a rebalance stops partitions: classic eager, classic cooperative, and the consumer protocol (KIP-848).

    python -m bench.rebalance [--drain-ms N]

Plain consumers on a real broker, not Postlane's: the protocols are what is compared. Three members, each a process,
read 12 partitions of a steady stream; then one joins, one leaves; a static one is away for two seconds, and goes for
good. A member waits `--drain-ms` in its revoke callback, as a sender does for a mail on its way. A partition is stopped
from the last record before the change to the first one after it. One JSON line a change; "nothing" is the noise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from postlane.local.kafka import KafkaCluster

PARTITIONS = 12
EVERY_S = 0.02  # a record for each partition
STOPPED_S = 0.1  # a longer pause than this between two records of a partition is a stop
WATCH_S = 16.0
LONG_WATCH_S = 60.0  # the broker's session time-out of the consumer protocol is 45 s
GONE = "static member goes for good"
AWAY_S = 2.0
PROTOCOLS: dict[str, dict[str, Any]] = {
    "eager (range)": {"group.protocol": "classic", "partition.assignment.strategy": "range"},
    "cooperative-sticky": {"group.protocol": "classic", "partition.assignment.strategy": "cooperative-sticky"},
    "consumer (KIP-848)": {"group.protocol": "consumer"},
}
CLASSIC = {"session.timeout.ms": 10_000, "heartbeat.interval.ms": 500}
_spawn = multiprocessing.get_context("spawn")


def member(conf: dict[str, Any], topic: str, drain_s: float, owned: Any, stop: Any, answer: Any) -> None:
    """The process of one member: says what it owns, and at the end when it read from which partition."""
    consumer = Consumer(conf)
    seen: list[tuple[int, float]] = []

    def assigned(_consumer: Any, partitions: list[Any]) -> None:
        for p in partitions:
            owned[p.partition] = 1

    def revoked(_consumer: Any, partitions: list[Any]) -> None:
        if partitions:
            time.sleep(drain_s)
            with contextlib.suppress(KafkaException):  # nothing was read yet
                consumer.commit(offsets=consumer.position(partitions), asynchronous=False)
        for p in partitions:
            owned[p.partition] = 0

    consumer.subscribe([topic], on_assign=assigned, on_revoke=revoked)
    while not stop.is_set():
        for message in consumer.consume(500, 0.01):
            if message.error() is None:
                seen.append((message.partition(), time.monotonic()))
    consumer.close()
    answer.send(seen)


class Group:
    """Members of one group."""

    def __init__(self, bootstrap: str, topic: str, protocol: dict[str, Any], drain_s: float, static: bool) -> None:
        self._topic, self._drain_s, self._static = topic, drain_s, static
        self._conf = {
            "bootstrap.servers": bootstrap,
            "group.id": f"g-{topic}",
            "enable.auto.commit": False,
            "auto.offset.reset": "latest",
            "fetch.wait.max.ms": 20,
            **protocol,
            **(CLASSIC if protocol["group.protocol"] == "classic" else {}),
        }
        self._members: dict[str, tuple[Any, Any, Any, Any]] = {}
        self.read_at: dict[int, list[float]] = defaultdict(list)

    def add(self, name: str) -> None:
        conf = {**self._conf, **({"group.instance.id": name} if self._static else {})}
        owned, stop = _spawn.Array("b", PARTITIONS), _spawn.Event()
        here, there = _spawn.Pipe(duplex=False)
        process = _spawn.Process(
            target=member, args=(conf, self._topic, self._drain_s, owned, stop, there), daemon=True
        )
        process.start()
        self._members[name] = (process, owned, stop, here)

    def take(self, name: str) -> None:
        process, _, stop, answer = self._members.pop(name)
        stop.set()
        for partition, at in answer.recv():
            self.read_at[partition].append(at)
        process.join(30)

    def take_all(self) -> None:
        for name in list(self._members):
            self.take(name)

    def until_even(self) -> None:
        """Every partition has one owner, and every member as many."""
        deadline = time.monotonic() + 90
        while True:
            owned = [[n for n in range(PARTITIONS) if flags[n]] for _, flags, _, _ in self._members.values()]
            if sorted(chain.from_iterable(owned)) == list(range(PARTITIONS)) and len({len(o) for o in owned}) == 1:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"no balance: {owned}")
            time.sleep(0.05)

    def stops(self, since: float, until: float) -> list[float]:
        """The longest pause of each partition that stopped within the time span, in seconds."""
        longest = []
        for number in range(PARTITIONS):
            inside = sorted(t for t in self.read_at[number] if since - 0.5 <= t <= until)
            longest.append(max((b - a for a, b in pairwise([*inside, until])), default=until - since))
        return sorted(pause for pause in longest if pause > STOPPED_S)


def measure(bootstrap: str, name: str, static: bool, drain_s: float) -> None:
    """Every change under one protocol, one printed line each."""
    topic = f"r{time.monotonic_ns()}"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
    ending = threading.Event()
    stream = threading.Thread(target=_produce, args=(bootstrap, topic, ending), daemon=True)
    stream.start()
    group = Group(bootstrap, topic, PROTOCOLS[name], drain_s, static)
    changes: list[tuple[str, Callable[[], None]]] = [("nothing", lambda: None)]
    if static:
        changes.append(("static member away for 2 s", lambda: _away(group)))
        changes.append((GONE, lambda: group.take("m2")))
    else:
        changes.append(("a member joins", lambda: group.add("m3")))
        changes.append(("a member leaves", lambda: group.take("m3")))
    spans = []
    try:
        for n in range(3):
            group.add(f"m{n}")
        group.until_even()
        time.sleep(2)
        for what, change in changes:
            began = time.monotonic()
            change()
            watch_s = LONG_WATCH_S if what == GONE else WATCH_S
            time.sleep(max(0.0, watch_s - (time.monotonic() - began)))
            spans.append((what, began, time.monotonic()))
    finally:
        group.take_all()
        ending.set()
        stream.join(30)
    for what, began, ended in spans:
        _say(name, what, group.stops(began, ended))


def _say(name: str, what: str, stops: list[float]) -> None:
    figures = {
        "protocol": name,
        "change": what,
        "stopped_partitions": len(stops),
        "longest_ms": round(1000 * max(stops, default=0.0)),
        "median_ms": round(1000 * statistics.median(stops)) if stops else 0,
        "stopped_partition_s": round(sum(stops), 2),
    }
    print(json.dumps(figures), flush=True)


def _away(group: Group) -> None:
    group.take("m1")
    time.sleep(AWAY_S)
    group.add("m1")


def _produce(bootstrap: str, topic: str, ending: threading.Event) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
    while not ending.wait(EVERY_S):
        for number in range(PARTITIONS):
            producer.produce(topic, b"x", partition=number)
        producer.poll(0)
    producer.flush(10)


def main() -> None:
    parser = argparse.ArgumentParser(description="Stop of partitions per rebalance, by group protocol.")
    parser.add_argument("--drain-ms", type=int, default=200, help="a member's wait in its revoke callback")
    drain_s = parser.parse_args().drain_ms / 1000
    with tempfile.TemporaryDirectory() as folder:
        cluster = KafkaCluster(Path(folder), brokers=1, port=0, tied=True)
        cluster.start()
        try:
            for name in PROTOCOLS:
                for static in (False, True):
                    measure(cluster.bootstrap_servers, name, static, drain_s)
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
