"""The declared ACLs against a broker that refuses everything else: enough for the whole pipeline, and no more.

Every service and the operator run under their own identity. What an identity was not given is tried with a plain
client, topic by topic, group by group, id by id.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)
from prometheus_client import CollectorRegistry

from postlane import Mail, Publisher
from postlane.bounce_keys import ReturnPaths
from postlane.clock import SystemClock
from postlane.core.identity import delivery_id
from postlane.core.policy import Bounces
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.topics import TopicNames
from postlane.ops.acls import IDENTITIES, acls
from postlane.telemetry.metrics import ProducerMetrics
from postlane.telemetry.tracing import OFF
from postlane_producer.bounces import BounceIntake
from tests.acceptance.checker import read_topic
from tests.hostile.world import World
from tests.unit import dsn_samples as samples

pytestmark = pytest.mark.kafka

CALL_TIMEOUT_S = 20.0
REFUSED = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError._NOENT,  # what may not be described has no leader to ask
)
long = pytest.mark.skipif(not os.environ.get("POSTLANE_LONG_TESTS"), reason="set POSTLANE_LONG_TESTS=1")


# ----------------------------------------------------------------------------------------------------- it is enough


def test_the_pipeline_works_from_publish_to_delivered(world: World) -> None:
    """Through retries, dead letters, a suppression, a template and a replay, and every accepted mail is settled."""
    rig, kafka = world.rig, world.kafka
    world.postlane("operator", "suppress", "add", "gone@example.com")
    world.postlane("operator", "template", "put", "hello", "--subject", "Hi {{ name }}", "--text", "Dear {{ name }}")
    rig.practice.control.add_fault("reply", "rcpt", code=451, text="4.3.0 later", recipient="slow@*", count=2)
    refused = rig.practice.control.add_fault("reply", "rcpt", code=550, text="5.7.1 policy", recipient="refused@*")

    def mail(to: str, **more: Any) -> Mail:
        return Mail(sender="shop@example.org", to=[to], subject="Order", text="On its way.", **more)

    wanted = {
        "plain": (mail("ada@example.com"), "delivered"),
        "bulk": (mail("bulk@example.com", lane="bulk"), "delivered"),
        "slow": (mail("slow@example.com"), "delivered"),
        "refused": (mail("refused@example.com"), "dead_lettered"),
        "gone": (mail("gone@example.com"), "suppressed"),
    }
    with Publisher(
        kafka.sasl_servers, topic_prefix=rig.names.prefix, kafka=kafka.options("publisher"), timeout_s=CALL_TIMEOUT_S
    ) as publisher:
        receipts = {name: publisher.publish(m, name) for name, (m, _) in wanted.items()}
    accepted = {receipt.message_id: wanted[name][0] for name, receipt in receipts.items()}
    accepted |= {
        world.postlane(
            "operator", "send", "--from", "shop@example.org", "--to", "eve@example.com", "--template", "hello",
            "--data", '{"name": "Eve"}',
        )[0]["message_id"]: mail("eve@example.com")
    }  # fmt: skip
    rig.accepted |= accepted
    books = rig.until_settled()
    assert not books.problems(rig.accepted)
    for name, (_, state) in wanted.items():
        (ident,) = books.by_message[receipts[name].message_id]
        assert books.deliveries[ident].terminal == [state], name

    _until_health_is_told(world)
    rig.practice.control.remove_fault(refused)
    (done,) = world.postlane("operator", "dead-letters", "replay", "--yes")
    assert done["replayed"] == 1, done
    again = receipts["refused"].message_id
    rig.until(
        lambda b: any("delivered" in b.deliveries[d].terminal for d in b.by_message[again]), "the replay is delivered"
    )


def test_the_gateway_publishes_and_takes_a_bounce(world: World, tmp_path: Path) -> None:
    """With the rights of its identity: the mail is delivered, bounces later, and its address is left alone."""
    rig, options, to = world.rig, world.kafka.options("gateway"), "left@example.com"
    (tmp_path / "key").write_text("a-secret-of-this-test")
    bounces = Bounces(address="bounces@bounces.example", key_file=tmp_path / "key")
    paths = ReturnPaths(bounces, SystemClock())
    with Publisher(
        world.kafka.sasl_servers, topic_prefix=rig.names.prefix, kafka=options, timeout_s=CALL_TIMEOUT_S
    ) as publisher:
        mail = Mail(sender="shop@example.org", to=[to], subject="Order", text="On its way.")
        ident = delivery_id(publisher.publish(mail).message_id, to)
        rig.until(lambda b: b.deliveries[ident].terminal == ["delivered"], "delivered")

        async def bounce() -> None:
            log = KafkaLog(world.kafka.sasl_servers, options)
            metrics = ProducerMetrics(CollectorRegistry())
            appender = log.appender()
            intake = BounceIntake(
                appender, rig.names, paths, suppress=True, clock=SystemClock(), tracer=OFF, metrics=metrics
            )
            taken = await intake.take(samples.postfix(to, samples.mail(to, ident)), paths.of(ident), trusted=False)
            assert taken.outcomes == ("suppressed",)
            await appender.close()
            await log.close()

        asyncio.run(bounce())
        rig.until(lambda b: b.deliveries[ident].terminal == ["delivered", "bounced"], "bounced")
        again = delivery_id(publisher.publish(mail).message_id, to)
        rig.until(lambda b: b.deliveries[again].terminal == ["suppressed"], "suppressed")


@long
def test_the_operator_can_do_what_an_operator_does(world: World, tmp_path: Path) -> None:
    assert world.postlane("operator", "topics", "plan", "--check") == []
    (status,) = world.postlane("operator", "status")
    assert status["kafka"]["missing_topics"] == []
    assert {"router-1"} == set(status["router"]["routers"])
    world.postlane("operator", "pause", "--campaign", "autumn")
    world.postlane("operator", "resume", "--campaign", "autumn")
    world.postlane("operator", "cancel", "--campaign", "autumn")
    listed = {(s["tenant"], s["address"]) for s in world.postlane("operator", "suppress", "list")}
    assert listed == {("default", "gone@example.com"), ("*", "left@example.com")}
    world.postlane("operator", "suppress", "remove", "left@example.com", "--tenant", "*")
    world.postlane("operator", "suppress", "add", "every@example.com", "--tenant", "*")
    (one,) = world.postlane("operator", "suppress", "list", "--tenant", "*")
    assert one["address"] == "every@example.com"
    rows = tmp_path / "people.csv"
    rows.write_text("email,name\nzoe@example.com,Zoe\n")
    world.postlane("operator", "import", str(rows), "--from", "shop@example.org", "--template", "hello")
    (doctor,) = world.postlane("operator", "doctor", code=None)
    skipped = [check for check in doctor["checks"] if check["verdict"] == "skip" and "authoriz" in str(check).lower()]
    assert skipped == []


@long
def test_the_operator_can_make_the_topics_of_an_installation(world: World) -> None:
    world.kafka.allow(acls(TopicNames("new."), tuple(world.rig.config.lanes), ("operator",)))
    mine, world.rig.names = world.rig.names, TopicNames("new.")
    try:
        (made,) = world.postlane("operator", "topics", "apply")
        assert len(made["created"]) == made["topics"]
        assert world.postlane("operator", "topics", "plan", "--check") == []
    finally:
        world.rig.names = mine


# ------------------------------------------------------------------------------------------------------- and no more


def test_no_topic_can_be_written_that_was_not_given(world: World) -> None:
    told: dict[tuple[str, str], int | None] = {}
    wanted = {}
    for identity in IDENTITIES:
        producer = Producer(world.client(identity, **{"message.timeout.ms": 10_000, "enable.idempotence": False}))
        for topic in world.topics:
            if not world.may(identity, "topic", topic, "Write"):
                wanted[identity, topic] = KafkaError.TOPIC_AUTHORIZATION_FAILED
                producer.produce(topic, b"forged", b"key", on_delivery=_note(told, (identity, topic)))
        producer.flush(CALL_TIMEOUT_S)
    assert told == wanted
    forged = [
        m.topic() for t in world.topics for m in read_topic(world.kafka.plain_servers, t) if m.value() == b"forged"
    ]
    assert forged == []


def test_no_topic_can_be_read_that_was_not_given(world: World) -> None:
    for identity in IDENTITIES:
        forbidden = {t for t in world.topics if not world.may(identity, "topic", t, "Read")}
        consumer = Consumer(
            world.client(identity, **{"group.id": f"postlane-{identity}-x", "auto.offset.reset": "earliest"})
        )
        unseen = KafkaError.TOPIC_AUTHORIZATION_FAILED
        refused = {
            t for t in forbidden if _error_of(consumer.list_topics(t, timeout=CALL_TIMEOUT_S).topics[t]) == unseen
        }
        consumer.assign([TopicPartition(topic, 0, 0) for topic in forbidden - refused])
        for message in _messages(consumer) if refused != forbidden else ():
            error = message.error()
            assert error is not None, (identity, message.topic())
            if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                refused.add(message.topic())
            if len(refused) == len(forbidden):
                break
        consumer.close()
        assert refused == forbidden, identity


def test_no_group_can_be_joined_that_was_not_given(world: World) -> None:
    """Joining takes partitions away from a service."""
    names, lanes = world.rig.names, tuple(world.rig.config.lanes)
    groups = [names.router_group, f"{names.prefix}ledger", *(names.sender_group(lane) for lane in lanes)]
    for identity in IDENTITIES:
        for group in groups:
            if world.may(identity, "group", group, "Read"):
                continue
            consumer = Consumer(world.client(identity, **{"group.id": group, "session.timeout.ms": 6000}))
            consumer.subscribe([names.requests])
            codes = (m.error().code() for m in _messages(consumer) if m.error() is not None)
            assert KafkaError.GROUP_AUTHORIZATION_FAILED in codes, (identity, group)
            consumer.close()


@long
def test_no_transactional_id_can_be_taken_that_was_not_given(world: World) -> None:
    """InitProducerId fences whoever has the id: it would stop that service."""
    names = world.rig.names
    ids = [f"{names.prefix}router.router-1", f"{names.prefix}replay.cli.0", f"{names.templates}.writer"]
    ids += [f"{names.prefix}sender.{lane}.sender-1" for lane in world.rig.config.lanes]
    for identity in IDENTITIES:
        for ident in ids:
            if world.may(identity, "transactional_id", ident, "Write"):
                continue
            producer = Producer(world.client(identity, **{"transactional.id": ident}))
            with pytest.raises(KafkaException) as refused:
                producer.init_transactions(CALL_TIMEOUT_S)
            code = refused.value.args[0].code()
            assert code == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, (identity, ident)


def test_nobody_can_delete_records_or_topics_or_change_who_may_what(world: World) -> None:
    topic = world.rig.names.requests
    for identity in IDENTITIES:
        admin = AdminClient(world.client(identity))
        futures = [
            *admin.delete_topics([topic]).values(),
            *admin.delete_records([TopicPartition(topic, 0, 1)]).values(),
            *admin.create_topics([NewTopic("elsewhere", 1, 1)]).values(),
            *admin.create_acls([_everything(identity)]).values(),
        ]
        if identity != "operator":
            futures += admin.incremental_alter_configs([_forgetting(topic)]).values()
        for future in futures:
            with pytest.raises(KafkaException) as refused:
                future.result(CALL_TIMEOUT_S)
            assert refused.value.args[0].code() in REFUSED, identity


@long
def test_a_backup_needs_no_more_than_its_rights(world: World, tmp_path: Path) -> None:
    world.postlane("backup", "backup", str(tmp_path / "kept"))
    assert any((tmp_path / "kept").iterdir())


@long
def test_a_wrong_password_is_nobody(world: World) -> None:
    client = AdminClient({**world.client("operator"), "sasl.password": "wrong"})
    with pytest.raises(KafkaException):
        client.list_topics(timeout=3)


def test_the_command_says_that_it_may_not(world: World) -> None:
    """A publisher that tries an operator's work is told so in a sentence, and nothing happens."""
    before = len(read_topic(world.kafka.plain_servers, world.rig.names.suppressions))
    world.postlane("publisher", "suppress", "add", "victim@example.com", code=1)
    assert len(read_topic(world.kafka.plain_servers, world.rig.names.suppressions)) == before


# -------------------------------------------------------------------------------------------------------------- how


def _until_health_is_told(world: World) -> None:
    """The senders observe, the health service merges and says so."""
    deadline = time.monotonic() + CALL_TIMEOUT_S
    while not read_topic(world.kafka.plain_servers, world.rig.names.health):
        assert time.monotonic() < deadline, "nothing in mail.health"
        time.sleep(0.2)


def _note(told: dict[tuple[str, str], int | None], place: tuple[str, str]) -> Callable[[Any, Any], None]:
    return lambda error, _: told.update({place: error.code() if error else None})


def _error_of(topic: Any) -> int | None:
    return topic.error.code() if topic.error is not None else None


def _messages(consumer: Consumer) -> Iterator[Any]:
    """What a consumer is told, errors among it, for at most CALL_TIMEOUT_S."""
    deadline = time.monotonic() + CALL_TIMEOUT_S
    while time.monotonic() < deadline:
        message = consumer.poll(0.5)
        if message is not None:
            yield message


def _forgetting(topic: str) -> ConfigResource:
    entry = ConfigEntry("retention.ms", "1", incremental_operation=AlterConfigOpType.SET)
    return ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])


def _everything(identity: str) -> AclBinding:
    allow, everyone = AclPermissionType.ALLOW, ResourcePatternType.LITERAL
    return AclBinding(ResourceType.TOPIC, "*", everyone, f"User:{identity}", "*", AclOperation.ALL, allow)
