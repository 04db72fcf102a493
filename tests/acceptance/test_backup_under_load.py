"""A backup while everything is at work: every request is in it once, as ended, on its way, or not routed yet.

Restored by a process that is killed and started again, without any service: the target is compared with what the backup
says it should be, and its books with the books of the log that it came from, per id.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest

from postlane.core.identity import split_delivery_id
from postlane.eventlog.errors import LogError
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.ports import Partition
from postlane.eventlog.topics import DELAY_STEPS, TopicNames
from postlane.local.kafka import KafkaCluster
from postlane.ops.backup.archive import Archive
from postlane.ops.backup.catalogue import read_catalogue
from postlane.ops.backup.encrypt import Vault
from postlane.ops.backup.pending import Manner
from postlane.ops.backup.restore import Restorer
from postlane.ops.backup.scratch import Compared, compare
from postlane.ops.backup.store import DirectoryStore
from tests.acceptance.checker import TERMINAL, read_topic
from tests.acceptance.rig import PARTITIONS, Rig

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(not os.environ.get("POSTLANE_TEST_DISASTERS"), reason="some minutes: make disasters"),
]
BACKUPS = 3
KILLS_MAX = 2
MAILS_MAX = 3_000
COMMAND = [sys.executable, "-c", "from postlane.cli.main import main; main()"]


def command(rig: Rig, prefix: str, *args: str) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        "POSTLANE_BOOTSTRAP_SERVERS": rig.bootstrap,
        "POSTLANE_TOPIC_PREFIX": prefix,
        "POSTLANE_CONFIG": str(rig.folder / "postlane.yaml"),
        "POSTLANE_DATABASE_URL": rig.database_url,
    }
    return subprocess.Popen([*COMMAND, *args], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def done(process: subprocess.Popen[str]) -> dict[str, object]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return dict(json.loads(out))


def at_work(rig: Rig) -> int:
    """Publishes until three backups were made; how many mails."""
    stop, count = threading.Event(), 0

    def publish() -> None:
        nonlocal count
        while not stop.wait(0.02) and count < MAILS_MAX:
            count += (
                len(rig.publish(50)) + len(rig.publish(10, domain="slow.example")) + len(rig.publish(5, lane="bulk"))
            )

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        for _ in range(BACKUPS):
            done(command(rig, rig.names.prefix, "backup", str(rig.folder / "backups"), "--json"))
    finally:
        stop.set()
        publisher.join(timeout=60)
    return count


def restore_with_kills(rig: Rig, prefix: str, archive: Archive) -> int:
    """`postlane restore`, killed each time it has got on a little; how often."""
    args = ("restore", str(rig.folder / "backups"), "--from-prefix", rig.names.prefix, "--yes", "--json")
    kills = 0
    while True:
        process = command(rig, prefix, *args)
        if kills < KILLS_MAX and asyncio.run(_gets_on(rig, prefix, process)):
            os.kill(process.pid, signal.SIGKILL)
            process.communicate(timeout=30)
            kills += 1
            continue
        done(process)
        return kills


async def _gets_on(rig: Rig, prefix: str, process: subprocess.Popen[str]) -> bool:
    """Whether it wrote something more; it may end before."""
    log, cluster = Partition(f"{prefix}mail.restores", 0), KafkaLog(rig.bootstrap)

    async def end() -> int:
        try:
            return (await cluster.high_watermarks([log]))[log]
        except LogError:  # it is not there yet
            return 0

    try:
        first = await end()
        while process.poll() is None:
            if await end() > first + 25:
                return True
            await asyncio.sleep(0.02)
        return False
    finally:
        await cluster.close()


async def compared(rig: Rig, prefix: str, archive: Archive) -> Compared:
    log = KafkaLog(rig.bootstrap)
    try:
        restorer = Restorer(log, log.admin, TopicNames(prefix), rig.config, archive)
        made = await restorer.look(list(archive.topics), Manner.UNCERTAIN, datetime.now(UTC))
        assert made.done is not None
        return await compare(log, TopicNames(prefix), archive, made, rig.config.topics.dispatch_days)
    finally:
        await log.close()


def test_every_request_is_in_a_backup_once_in_one_state(kafka: KafkaCluster, tmp_path: Path) -> None:
    with Rig(kafka.bootstrap_servers, tmp_path / "rig", senders=2, routers=2) as rig:
        rig.practice.control.add_fault("reply", "rcpt", code=451, text="4.2.1 later", recipient="*@slow.example")
        count = at_work(rig)
        store = DirectoryStore(rig.folder / "backups")
        catalogue = read_catalogue(store, Vault(None))
        assert [m.full for m in catalogue.manifests] == [True, *[False] * (BACKUPS - 1)]
        archive = Archive(store, Vault(None), catalogue.chain(catalogue.before(None)))
        archive.check()
        prefix = f"{rig.names.prefix}new."
        kills = restore_with_kills(rig, prefix, archive)
        differences = asyncio.run(compared(rig, prefix, archive)).differences
        offsets = asyncio.run(_positions(rig, prefix))
    assert kills, "nothing was killed"
    assert not differences

    names = TopicNames(prefix)
    requests = {m.key(): (m.partition(), m.offset()) for m in read_topic(rig.bootstrap, names.requests)}
    assert 0 < len(requests) <= count
    unrouted = {key for key, (number, offset) in requests.items() if offset >= offsets[number]}
    seen = Counter(m.key() for m in read_topic(rig.bootstrap, names.seen) if not m.key().startswith(b"@"))
    assert max(seen.values()) == 1
    ended: dict[str, str] = {}
    for message in read_topic(rig.bootstrap, names.events):
        event = orjson.loads(message.value())
        if event["type"] in TERMINAL:
            ended[event["delivery_id"]] = event["type"]
    on_their_way: Counter[str] = Counter()
    for topic in (*map(names.dispatch, rig.config.lanes), *(names.delay(step) for step, _ in DELAY_STEPS)):
        for message in read_topic(rig.bootstrap, topic):
            on_their_way[orjson.loads(message.value())["delivery_id"]] += 1
    assert on_their_way, "nothing was on its way: the backup proves nothing"
    assert set(on_their_way.values()) == {1}, "a delivery is on its way twice"
    assert not set(on_their_way) & set(ended), "an ended delivery is on its way"
    routed = {split_delivery_id(d)[0].encode() for d in (*on_their_way, *ended)}
    for key in requests:
        # Routed before the point: its key is known and its delivery is somewhere. After it: neither, once it is routed.
        assert (key in routed) == (key in seen), key
        assert key in seen or key in unrouted, f"{key!r} is lost"


async def _positions(rig: Rig, prefix: str) -> dict[int, int]:
    log = KafkaLog(rig.bootstrap)
    try:
        names = TopicNames(prefix)
        partitions = [Partition(topic, n) for topic in (names.requests, *names.delays) for n in range(PARTITIONS)]
        found = await log.admin.group_offsets(names.router_group, partitions)
        assert len(found) == PARTITIONS * (1 + len(DELAY_STEPS))
        return {p.number: c.offset for p, c in found.items() if p.topic == names.requests}
    finally:
        await log.close()
