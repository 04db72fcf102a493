"""Consumer offsets lost, or reset to the beginning by mistake: no mail is sent again, per id, by the witness."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
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
from tests.acceptance.rig import Rig

pytestmark = pytest.mark.kafka
COUNT = 40
WAIT_S = 150.0
SHUT = ("not a router's", "no committed position", "not ours", "offsets were lost")
Mistake = Callable[[AdminClient, Rig, str], None]


def copies(rig: Rig) -> dict[str, int]:
    found: dict[str, int] = {}
    for copy in rig.practice.control.ledger():
        if copy.accepted and copy.delivery is not None:
            found[copy.delivery] = found.get(copy.delivery, 0) + 1
    return found


def groups(rig: Rig) -> list[str]:
    return [rig.names.router_group, rig.names.sender_group("transactional")]


def positions(rig: Rig, group: str) -> dict[Partition, Committed]:
    return dict(asyncio.run(KafkaAdmin(ClientConfig(rig.bootstrap)).group_offsets(group)))


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


@pytest.mark.parametrize("mistake", [reset_to_beginning, forget])
def test_nothing_is_sent_again(kafka: KafkaCluster, tmp_path: Path, mistake: Mistake) -> None:
    with Rig(kafka.bootstrap_servers, tmp_path / "rig", lanes=("transactional",)) as rig:
        # Some went straight, some through the delay topics, where nothing but the position stops a second round.
        later = {"code": 451, "text": "4.2.1 later", "recipient": "*@slow.example", "count": 8}
        rig.practice.control.add_fault("reply", "rcpt", **later)
        sent = rig.publish(COUNT - 8) + rig.publish(8, domain="slow.example")
        rig.until_settled(WAIT_S)
        before = copies(rig)
        assert len(before) == COUNT
        assert set(before.values()) == {1}
        names = list(rig.stack.names())
        for name in names:
            rig.stack.stop(name)
        held = {group: positions(rig, group) for group in groups(rig)}
        assert all(held.values())
        do(mistake, rig)
        for name in names:
            rig.stack.launch(name)
        for name in names:
            until_unready(rig, name, SHUT)
        assert copies(rig) == before, "a mail was sent again"
        books = rig.books()
        assert all(len(books.deliveries[d].terminal) == 1 for m in sent for d in books.by_message[m])

        # Put right: the positions that a backup has (or, here, that they were), and everything goes on.
        for name in names:
            rig.stack.stop(name)
        do(lambda _, at, group: asyncio.run(_put_back(at, group, held[group])), rig)
        for name in names:
            rig.stack.start(name)
        more = rig.publish(5)
        rig.until_settled(WAIT_S)
        now = copies(rig)
        assert {d: n for d, n in now.items() if d in before} == before
        assert len(now) == COUNT + len(more)


async def _put_back(rig: Rig, group: str, known: dict[Partition, Committed]) -> None:
    try:
        await KafkaAdmin(ClientConfig(rig.bootstrap)).set_group_offsets(group, known)
    except LogError as error:
        raise KafkaException(str(error)) from None
