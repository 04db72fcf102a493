"""What only real Kafka can show of the adapter: hostile bytes, lost ownership, options, tokens, the admin's answers."""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import AsyncIterator
from pathlib import Path

import confluent_kafka
import pytest

from postlane.eventlog.admin import TopicState
from postlane.eventlog.admin_groups import GroupState
from postlane.eventlog.errors import OptionRefused, Unreachable
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.ports import Committed, Outgoing, Partition, Received, Transaction
from postlane.eventlog.records import HEADERS_UNREADABLE, read_token
from postlane.eventlog.topics import TopicSpec
from postlane.local.kafka import KafkaCluster
from postlane.local.ports import free_port
from tests.contract.log_benches import Recorder, joined, pump, record, unique, writes

pytestmark = pytest.mark.kafka


@pytest.fixture
async def log(kafka: KafkaCluster) -> AsyncIterator[KafkaLog]:
    made = KafkaLog(kafka.bootstrap_servers)
    yield made
    await made.close()


async def made_topic(log: KafkaLog, partitions: int = 1, **config: str) -> str:
    name = unique("kafka")
    await log.admin.create_topics([TopicSpec(name, partitions, {"cleanup.policy": "delete", **config}, (), ())], 1)
    return name


async def told(log: KafkaLog, topic: str, config: dict[str, str]) -> TopicState:
    """The controller has done it; the broker that is asked hears of it in a moment."""
    async with asyncio.timeout(10):
        while True:
            found = (await log.admin.topics()).get(topic)
            if found is not None and config.items() <= found.config.items():
                return found
            await asyncio.sleep(0.05)


def produce_raw(bootstrap_servers: str, topic: str, headers: list[tuple[bytes, bytes | None]]) -> None:
    """One record through librdkafka itself, which takes header names that Python's str cannot hold."""
    (path,) = (Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs").glob("librdkafka-*.so*")
    lib = ctypes.CDLL(str(path))
    lib.rd_kafka_conf_new.restype = lib.rd_kafka_new.restype = ctypes.c_void_p
    error = ctypes.create_string_buffer(512)
    conf = ctypes.c_void_p(lib.rd_kafka_conf_new())
    lib.rd_kafka_conf_set(conf, b"bootstrap.servers", bootstrap_servers.encode(), error, 512)
    producer = ctypes.c_void_p(lib.rd_kafka_new(0, conf, error, 512))
    arguments: list[object] = [1, ctypes.c_char_p(topic.encode()), 3, 0, 7, 2]  # topic, partition, flags: copy
    arguments += [4, ctypes.c_char_p(b"value"), ctypes.c_size_t(5)]
    for name, value in headers:
        size = ctypes.c_ssize_t(-1 if value is None else len(value))
        arguments += [9, ctypes.c_char_p(name), ctypes.c_char_p(value), size]
    assert lib.rd_kafka_producev(producer, *arguments, 0) == 0
    assert lib.rd_kafka_flush(producer, 10_000) == 0
    lib.rd_kafka_destroy(producer)


async def test_a_header_name_that_is_not_utf8_stops_nobody(kafka: KafkaCluster, log: KafkaLog) -> None:
    topic = await made_topic(log)
    appender = log.appender()
    for _ in range(40):  # until Python has specialised the reading code, which leaves out a check
        await appender.append(Outgoing(topic, 0, None, b"value", [("fine", b"1")]))
    for headers in ([(b"\xff\xfe", b"x"), (b"fine", b"2")], [(b"null", None)], [(b"", b"")]):
        await asyncio.to_thread(produce_raw, kafka.bootstrap_servers, topic, headers)
    found: list[Received] = []
    recorder = Recorder("a", [])
    member = await joined(log, unique("group"), topic, recorder)
    async with asyncio.timeout(20):
        while len(found) < 43:
            found += await member.poll(10, 0.1)
    assert [r.value for r in found] == [b"value"] * 43
    assert [list(r.headers) for r in found[39:]] == [
        [("fine", b"1")],
        [(HEADERS_UNREADABLE, b"")],
        [("null", None)],
        [("", b"")],
    ]


async def test_a_member_that_polls_too_late_is_told_that_it_lost_everything(kafka: KafkaCluster) -> None:
    options = {"session.timeout.ms": "1000", "heartbeat.interval.ms": "200", "max.poll.interval.ms": "1000"}
    log = KafkaLog(kafka.bootstrap_servers, options)
    topic = await made_topic(log)
    await log.appender().append(record(Partition(topic, 0), b"only"))
    journal: list[tuple[str, str, tuple[int, ...]]] = []
    recorder = Recorder("late", journal)
    member = await joined(log, unique("group"), topic, recorder)
    await pump(lambda: bool(recorder.owned), member)
    old = recorder.memberships[-1]
    await asyncio.to_thread(time.sleep, 1.5)  # nobody polls: that is the fault
    found = await pump(lambda: len(recorder.memberships) == 2, member)
    assert [what for _, what, _ in journal] == ["assigned", "lost", "assigned"]
    assert recorder.memberships[-1].member_id != old.member_id
    async with asyncio.timeout(20):
        while not any(r.value == b"only" for r in found[-1:]):  # it starts again where it is told to
            found += await member.poll(10, 0.1)
    await log.close()


async def test_the_membership_is_what_the_token_says(log: KafkaLog) -> None:
    topic = await made_topic(log, 3)
    recorder = Recorder("a", [])
    group = unique("group")
    member = await joined(log, group, topic, recorder, "static-1")
    assert member.membership is None
    await pump(lambda: bool(recorder.owned), member)
    membership = recorder.memberships[-1]
    assert read_token(membership.token) == (group, membership.generation, membership.member_id)
    assert membership.generation >= 1
    assert membership.member_id.startswith("static-1")
    assert membership.partitions == {Partition(topic, n) for n in range(3)}


@pytest.mark.parametrize("token", [b"", b"CGMDv2:", b"CGMDv3:\0\0\0\0g\0m\0\1", b"CGMDv2:\0\0\0\0g", None])
def test_a_token_that_cannot_be_read_is_refused(token: object) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_token(token)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("enable.auto.commit", "true"),
        ("isolation.level", "read_uncommitted"),
        ("group.id", "other"),
        ("transactional.id", "other"),
        ("acks", "1"),
        ("auto.offset.reset", "earliest"),
        ("no.such.option", "1"),
        ("linger.ms", "soon"),
        ("session.timeout.ms", "-4"),
    ],
)
def test_an_option_that_breaks_the_protocol_or_is_unknown_is_refused_by_name(option: str, value: str) -> None:
    with pytest.raises(OptionRefused, match=option.replace(".", r"\.")):
        KafkaLog("127.0.0.1:1", {option: value})


def test_a_refused_option_does_not_show_its_value() -> None:
    with pytest.raises(OptionRefused) as refused:
        KafkaLog("127.0.0.1:1", {"sasl.passwort": "hunter2-secret"})
    assert "hunter2-secret" not in str(refused.value)
    log = KafkaLog("127.0.0.1:1", {"sasl.password": "hunter2-secret"})
    assert "hunter2-secret" not in repr(log._config)


async def test_a_cluster_that_does_not_answer_is_unreachable() -> None:
    log = KafkaLog(f"127.0.0.1:{free_port()}")
    log.admin._timeout_s = 1.0
    with pytest.raises(Unreachable):
        await log.partition_count("any")
    with pytest.raises(Unreachable):
        await log.admin.cluster()
    await log.close()


async def test_the_admin_tells_topics_as_they_are_and_alters_them(log: KafkaLog) -> None:
    name = await made_topic(log, 2, **{"retention.ms": "60000"})
    found = (await log.admin.topics([name, "kafka-nowhere"]))[name]
    assert (found.partitions, found.replication, found.under_replicated, found.offline) == (2, 1, 0, 0)
    assert found.config == {"cleanup.policy": "delete", "retention.ms": "60000"}
    await log.admin.set_topic_config(name, {"retention.ms": "120000", "segment.ms": "60000"})
    again = await told(log, name, {"segment.ms": "60000"})
    assert again.config == {"cleanup.policy": "delete", "retention.ms": "120000", "segment.ms": "60000"}
    await log.admin.create_topics([TopicSpec(name, 9, {}, (), ())], 1)  # exists: left as it is
    assert await log.partition_count(name) == 2


async def test_a_topic_that_was_created_can_be_used_at_once(log: KafkaLog) -> None:
    """The controller answers before a broker has heard of the topic: found by tests on a machine that was busy."""
    for _ in range(25):
        name = unique("at-once")
        await log.admin.create_topics([TopicSpec(name, 3, {}, (), ())], 1)
        assert await log.partition_count(name) == 3
        assert set((await log.high_watermarks([Partition(name, n) for n in range(3)])).values()) == {0}


async def test_the_admin_tells_who_is_in_a_group_and_what_it_committed(log: KafkaLog) -> None:
    topic = await made_topic(log, 2)
    group = unique("group")
    assert (await log.admin.groups([group]))[group] == GroupState(group, "Dead")
    recorder = Recorder("a", [])
    member = await log.member(group, [topic], recorder, instance_id="pod-0", client_id="postlane-sender@host")
    recorder.member = member
    await pump(lambda: bool(recorder.owned), member)
    state = (await log.admin.groups([group]))[group]
    assert state.state == "Stable"
    (found,) = state.members
    assert (found.instance_id, found.client_id, found.host) == ("pod-0", "postlane-sender@host", "127.0.0.1")
    assert found.member_id == recorder.memberships[-1].member_id
    assert found.partitions == {Partition(topic, 0), Partition(topic, 1)}
    transactor = await log.transactor(unique("tx"))
    one = Partition(topic, 1)
    await transactor.commit(Transaction([], {one: Committed(0, "S")}, member.membership))
    assert await member.committed([one]) == {one: Committed(0, "S")}  # waits until it is stable
    assert await log.admin.group_offsets(group, [Partition(topic, 0), one]) == {one: Committed(0, "S")}


async def test_the_last_stable_offset_is_told_apart_from_the_high_watermark(log: KafkaLog) -> None:
    partition = Partition(await made_topic(log), 0)
    transactor = await log.transactor(unique("tx"))
    await transactor.commit(writes(partition, b"1"))
    producer = transactor._producer

    def leave_open() -> None:
        producer.begin_transaction()
        transactor._produce([record(partition, b"open")])
        producer.flush(10)

    await transactor._worker.call(leave_open)
    assert await log.admin.last_stable_offsets([partition]) == {partition: 2}
    assert await log.admin.high_watermarks([partition]) == {partition: 3}


async def test_a_cluster_tells_its_brokers(kafka: KafkaCluster, log: KafkaLog) -> None:
    found = await log.admin.cluster()
    assert [f"{b.host}:{b.port}" for b in found.brokers] == [kafka.bootstrap_servers]
    config = await log.admin.broker_config(found.brokers[0].id, ["offsets.retention.minutes", "no.such"])
    assert config == {"offsets.retention.minutes": "30240"}


async def test_a_closed_log_can_be_closed_again(kafka: KafkaCluster) -> None:
    log = KafkaLog(kafka.bootstrap_servers)
    topic = await made_topic(log)
    transactor = await log.transactor(unique("tx"))
    tail = log.tail(topic, lambda _: None)
    await tail.ready(10)
    for it in (transactor, tail, log, log):
        await it.close()
