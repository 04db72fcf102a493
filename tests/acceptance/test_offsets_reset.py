"""Consumer offsets lost, or reset to the beginning by mistake: no mail is sent again, per id, by the witness."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from postlane.eventlog.admin import KafkaAdmin
from postlane.eventlog.errors import LogError
from postlane.eventlog.kafka_config import ClientConfig
from postlane.eventlog.ports import Committed, Partition
from postlane.local import http_probe
from postlane.local.kafka import KafkaCluster
from tests.acceptance.rig import PARTITIONS, Rig
from tests.acceptance.test_lost_cluster import Restored, copies, ended, postlane, types

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(not os.environ.get("POSTLANE_TEST_DISASTERS"), reason="some minutes: make disasters"),
]
COUNT = 40
WAIT_S = 150.0
SHUT = ("not a router's", "no committed position", "not ours", "has no position for")
Mistake = Callable[[AdminClient, Rig, str], None]


def groups(rig: Rig) -> list[str]:
    return [rig.names.router_group, rig.names.sender_group("transactional")]


def positions(rig: Rig, group: str) -> dict[Partition, Committed]:
    names = rig.names
    topics = (names.requests, *names.delays) if group == names.router_group else (names.dispatch("transactional"),)
    partitions = [Partition(topic, n) for topic in topics for n in range(PARTITIONS)]
    return dict(asyncio.run(KafkaAdmin(ClientConfig(rig.bootstrap)).group_offsets(group, partitions)))


def reset_to_beginning(client: AdminClient, rig: Rig, group: str) -> None:
    """What `kafka-consumer-groups.sh --reset-offsets --to-earliest --all-topics --execute` does."""
    beginning = [TopicPartition(p.topic, p.number, 0) for p in positions(rig, group)]
    for future in client.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, beginning)]).values():
        for tp in future.result(timeout=20).topic_partitions:
            if tp.error is not None:
                raise KafkaException(tp.error)


def forget(client: AdminClient, rig: Rig, group: str) -> None:
    """What `offsets.retention.minutes` does to a group that was scaled to zero for too long."""
    for future in client.delete_consumer_groups([group]).values():
        future.result(timeout=20)


def do(mistake: Mistake, rig: Rig) -> None:
    """To every group, as soon as its static members are forgotten."""
    client = AdminClient({"bootstrap.servers": rig.bootstrap})
    for group in groups(rig):
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                mistake(client, rig, group)
                break
            except KafkaException:
                assert time.monotonic() < deadline, f"{group} still has members"
                time.sleep(0.2)


def until_unready(rig: Rig, name: str, words: tuple[str, ...]) -> str:
    """What /readyz says, as soon as it says one of these."""
    url, deadline, said = rig.stack.spec(name).ready_url or "", time.monotonic() + WAIT_S, ""
    while True:
        answer = http_probe.get(url)
        said = f"{answer.status} {answer.text}"
        if answer.status == 503 and any(word in said for word in words):
            return said
        assert time.monotonic() < deadline, f"{name}: {said}"
        time.sleep(0.1)


def send(rig: Rig) -> dict[str, int]:
    """Some straight, some through the delay topics, where nothing but the position stops a second round."""
    later = {"code": 451, "text": "4.2.1 later", "recipient": "*@slow.example", "count": 8}
    rig.practice.control.add_fault("reply", "rcpt", **later)
    rig.publish(COUNT - 8)
    rig.publish(8, domain="slow.example")
    rig.until_settled(WAIT_S)
    before = copies(rig)
    assert len(before) == COUNT
    assert set(before.values()) == {1}
    return before


def stays_shut(rig: Rig, before: dict[str, int]) -> None:
    """Routers and senders are started; they say why they do nothing, and nothing is sent."""
    names = list(rig.stack.names())
    for name in names:
        rig.stack.launch(name)
    for name in names:
        until_unready(rig, name, SHUT)
    assert copies(rig) == before, "a mail was sent again"
    for name in names:
        rig.stack.stop(name)


def stop(rig: Rig) -> None:
    for name in rig.stack.names():
        rig.stack.stop(name)


def test_reset_to_the_beginning_and_on_by_the_books(kafka: KafkaCluster, tmp_path: Path) -> None:
    """The way of docs/disaster.md: a backup that goes by the books, restored under another prefix."""
    with Rig(kafka.bootstrap_servers, tmp_path / "old", lanes=("transactional",)) as old:
        before = send(old)
        later = old.publish(3, send_at=datetime.now(UTC) + timedelta(hours=2))
        old.until(lambda b: all("Scheduled" in types(b, d) for d in ended(b, later)), "three wait", WAIT_S)
        stop(old)
        unrouted = old.publish(4)
        do(reset_to_beginning, old)
        stays_shut(old, before)
        refused = postlane(old, "backup", str(tmp_path / "backups"), code=4)
        assert "--positions-lost" in refused["said"]
        until_at_rest(old, "backup", str(tmp_path / "backups"), "--positions-lost")
        with Restored(old, tmp_path / "new") as new:
            made = ["restore", str(tmp_path / "backups"), "--from-prefix", old.names.prefix, "--pending", "fresh"]
            dry = postlane(new, *made, "--dry-run")
            assert dry["pending"] == {"transactional": {"scheduled": 3}}
            assert dry["unrouted"] == 4
            postlane(new, *made, "--yes")
            new.start_services()
            postlane(new, "resume", "--lane", "transactional")
            new.until(lambda b: all(b.deliveries[d].terminal for d in ended(b, unrouted)), "they are sent", WAIT_S)
            now = copies(new)
    assert {delivery: n for delivery, n in now.items() if delivery in before} == before
    assert sorted(now.values()) == [1] * (COUNT + 4)


def test_forgotten_groups_start_nothing(kafka: KafkaCluster, tmp_path: Path) -> None:
    with Rig(kafka.bootstrap_servers, tmp_path / "rig", lanes=("transactional",)) as rig:
        before = send(rig)
        stop(rig)
        held = {group: positions(rig, group) for group in groups(rig)}
        assert all(held.values())
        do(forget, rig)
        stays_shut(rig, before)
        do(lambda _, at, group: asyncio.run(_put_back(at, group, held[group])), rig)
        for name in rig.stack.names():
            rig.stack.start(name)
        more = rig.publish(5)
        rig.until_settled(WAIT_S)
        now = copies(rig)
    assert {delivery: n for delivery, n in now.items() if delivery in before} == before
    assert len(now) == COUNT + len(more)


def until_at_rest(rig: Rig, *args: str) -> None:
    """Run a command as soon as the groups have forgotten their static members."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            postlane(rig, *args)
            return
        except AssertionError as error:
            if "at work" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


async def _put_back(rig: Rig, group: str, known: dict[Partition, Committed]) -> None:
    try:
        await KafkaAdmin(ClientConfig(rig.bootstrap)).set_group_offsets(group, known)
    except LogError as error:
        raise KafkaException(str(error)) from None
