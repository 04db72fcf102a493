"""How long a backup and a restore take: `python -m bench.backup [--records N]` (a million by default; minutes).

On an embedded Kafka of one broker: suppressions, requests and their keys, N each, and 1,000 templates.
Then a full backup, an incremental one after N/100 more requests, a verification, a restore under another prefix, and a
router started on it with an empty volume until it is ready. Prints one JSON document with the load of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import orjson

from postlane.core.identity import delivery_id, message_id_from_key
from postlane.core.policy import Config
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.murmur2 import partition_of
from postlane.eventlog.ports import Committed, Outgoing, Partition, Transaction
from postlane.eventlog.topics import TopicNames
from postlane.local import ports
from postlane.local.kafka import KafkaCluster
from postlane.ops.backup.archive import Archive
from postlane.ops.backup.catalogue import read_catalogue
from postlane.ops.backup.encrypt import Vault
from postlane.ops.backup.pending import Manner
from postlane.ops.backup.restore import Restorer
from postlane.ops.backup.store import DirectoryStore
from postlane.ops.backup.take import Taken, Taker, Wishes
from postlane.ops.topics import apply, plan

BATCH = 5_000
TEMPLATES = 1_000
OLD, NEW = TopicNames("old."), TopicNames("new.")
CONFIG = Config()
P = CONFIG.topics.partitions
READY_TIMEOUT_S = 600.0
BEGAN = datetime.now(UTC) - timedelta(days=3)
TEXT = "Your order is on its way. " * 12


def suppressions(count: int) -> Iterator[Outgoing]:
    for n in range(count):
        key = f"default/person{n}@example{n % 1000}.com".encode()
        yield _record(
            OLD.suppressions, None, key, {"tenant": "default", "address": f"person{n}", "reason": "bounced"}, n
        )


def templates() -> Iterator[Outgoing]:
    for n in range(TEMPLATES):
        body = {"id": f"t{n}", "version": 1, "subject": "Order {{ order }}", "text": TEXT * 4, "at": BEGAN}
        yield _record(OLD.templates, 0, f"t{n}/000001".encode(), body, n)


def mails(first: int, count: int, routed: bool, events: bool = False) -> Iterator[Outgoing]:
    """Requests, and of routed ones their key and, if wanted, the event that ended them."""
    for n in range(first, first + count):
        ident = message_id_from_key("default", str(n))
        key, to = ident.encode(), f"someone{n}@example{n % 1000}.com"
        number = partition_of(key, P)
        body = {"message_id": ident, "key": str(n), "sender": "shop@example.org", "to": [to], "subject": f"Order {n}"}
        yield _record(OLD.requests, number, key, {**body, "text": TEXT, "requested_at": BEGAN}, n)
        if routed:
            yield _record(OLD.seen, number, key, {"digest": f"{n:032x}", "at": BEGAN}, n)
        if events:
            event = {"type": "Delivered", "message_id": ident, "delivery_id": delivery_id(ident, to), "recipient": to}
            yield _record(OLD.events, number, key, {**event, "attempt": 1, "provider": "primary", "at": BEGAN}, n)


def _record(topic: str, number: int | None, key: bytes, body: dict[str, Any], n: int) -> Outgoing:
    kind = [("ce_specversion", b"1.0"), ("ce_type", b"postlane.Bench.v1"), ("ce_id", key)]
    at_ms = int(BEGAN.timestamp() * 1000) + n // 10
    number = partition_of(key, P) if number is None else number
    return Outgoing(topic, number, key, orjson.dumps(body, option=orjson.OPT_UTC_Z), kind, at_ms)


async def fill(log: KafkaLog, records: Iterator[Outgoing]) -> None:
    transactor = await log.transactor("bench.fill")
    while batch := list(islice(records, BATCH)):
        await transactor.commit(Transaction(batch, {}, None))
    await transactor.close()


async def positions(log: KafkaLog) -> None:
    """Everything so far is routed, and nothing is on its way."""
    requests = [Partition(OLD.requests, n) for n in range(P)]
    ends = await log.high_watermarks(requests)
    await log.admin.set_group_offsets(OLD.router_group, {p: Committed(o, "R1") for p, o in ends.items()})
    for lane in CONFIG.lanes:
        places = {Partition(OLD.dispatch(lane), n): Committed(0, "S1:0") for n in range(P)}
        await log.admin.set_group_offsets(OLD.sender_group(lane), places)


async def take(log: KafkaLog, store: DirectoryStore, vault: Vault, token: str) -> Taken:
    taker = Taker(log, log.admin, OLD, CONFIG, "bench", "0", store, vault, token, lambda: datetime.now(UTC))
    return await taker.take(Wishes())


class Meter:
    """Seconds, by the clock and of this process's CPU, since the last look."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def took(self, name: str) -> dict[str, float]:
        wall, cpu = self._wall, self._cpu
        self._wall, self._cpu = time.monotonic(), time.process_time()
        note = {f"{name}_s": self._wall - wall, f"{name}_cpu_s": self._cpu - cpu}
        print(note, file=sys.stderr, flush=True)
        return note


async def measure(bootstrap: str, folder: Path, count: int, vault: Vault, events: bool) -> dict[str, Any]:
    log = KafkaLog(bootstrap)
    try:
        want, found = await plan(log.admin, OLD, CONFIG)
        await apply(log.admin, want, found)
        meter = Meter()
        for records in (suppressions(count), templates(), mails(0, count, routed=True, events=events)):
            await fill(log, records)
        await positions(log)
        figures: dict[str, Any] = {"records_each": count, **meter.took("filled")}
        store = DirectoryStore(folder / "backups")
        full = await take(log, store, vault, "full")
        figures |= {"full_records": full.manifest.records, "full_bytes": full.stored_bytes, **meter.took("full")}
        await fill(log, mails(count, count // 100, routed=False))
        meter = Meter()
        more = await take(log, store, vault, "more")
        figures |= {"incremental_records": more.manifest.records, **meter.took("incremental")}
        catalogue = read_catalogue(store, vault)
        archive = Archive(store, vault, catalogue.chain(catalogue.before(None)))
        archive.check()
        figures |= meter.took("verify")
        archive.check_stored()
        restorer = Restorer(log, log.admin, NEW, CONFIG, archive)
        made = await restorer.look(list(archive.topics), Manner.UNCERTAIN, datetime.now(UTC))
        figures |= meter.took("restore_plan")
        result = await restorer.run(made)
        figures |= meter.took("restore_write")
        figures["restored_records"] = sum(result["written"].values())
        figures["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    finally:
        await log.close()
    return figures


def router_ready(bootstrap: str, folder: Path) -> float:
    """Seconds until a router with an empty volume is ready on what was restored."""
    port = ports.free_port()
    env = {
        **os.environ,
        "POSTLANE_BOOTSTRAP_SERVERS": bootstrap,
        "POSTLANE_TOPIC_PREFIX": NEW.prefix,
        "POSTLANE_INSTANCE_ID": "bench",
        "POSTLANE_DATA_DIR": str(folder / "router"),
        "POSTLANE_HTTP_PORT": str(port),
    }
    began = time.monotonic()
    with (folder / "router.log").open("wb") as said:
        router = subprocess.Popen([sys.executable, "-m", "postlane_router"], env=env, stderr=said, cwd=folder)
        try:
            while time.monotonic() - began < READY_TIMEOUT_S:
                try:
                    with urlopen(f"http://{ports.HOST}:{port}/readyz", timeout=2) as answer:
                        if answer.status == 200:
                            return time.monotonic() - began
                except (URLError, OSError):
                    pass
                time.sleep(0.1)
            raise RuntimeError(f"not ready in {READY_TIMEOUT_S} s: {(folder / 'router.log').read_text()[-500:]}")
        finally:
            router.terminate()
            router.wait(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--encrypt", action="store_true")
    parser.add_argument("--events", action="store_true", help="and an event for each mail")
    parser.add_argument("--dir", type=Path, help="where the broker and the backups go [a temporary directory]")
    chosen = parser.parse_args()
    vault = Vault(bytes(32) if chosen.encrypt else None)
    before = os.getloadavg()
    with tempfile.TemporaryDirectory(dir=chosen.dir) as name:
        folder = Path(name)
        cluster = KafkaCluster(folder / "kafka", 1, 0, tied=True)
        cluster.start()
        try:
            figures = asyncio.run(measure(cluster.bootstrap_servers, folder, chosen.records, vault, chosen.events))
            figures["router_ready_s"] = router_ready(cluster.bootstrap_servers, folder)
        finally:
            cluster.stop()
    figures = {name: round(value, 1) if isinstance(value, float) else value for name, value in figures.items()}
    figures |= {
        "cpus": os.cpu_count(),
        "load_before_after": [round(before[0], 1), round(os.getloadavg()[0], 1)],
        "encrypted": chosen.encrypt,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
