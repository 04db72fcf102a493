"""Faults that are really injected: each test compares per id what was accepted, recorded and witnessed."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from postlane.core.events import DispatchReady
from postlane.local.errors import LocalError
from postlane.local.kafka import KafkaCluster
from tests.acceptance.checker import read_topic
from tests.acceptance.rig import Rig

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def test_a_zombie_sends_nothing_new(kafka: KafkaCluster, tmp_path: Path) -> None:
    """SIGSTOP beyond the session time-out, another takes over and settles everything, SIGCONT."""
    with Rig(kafka.bootstrap_servers, tmp_path, senders=2) as rig:
        rig.practice.control.add_fault("delay", "rcpt", delay_s=0.3, id="slow")
        rig.publish(150)
        rig.publish(150, lane="bulk")
        rig.until(lambda b: b.count("delivered") > 20, "some are delivered")
        rig.stack.kill("sender-1", signal.SIGSTOP)
        rig.practice.control.remove_fault("slow")
        books = rig.until_settled()
        assert books.problems(rig.accepted) == []
        copies = {ident: d.copies for ident, d in books.deliveries.items()}
        rig.stack.kill("sender-1", signal.SIGCONT)
        rig.publish(20)
        after = rig.until_settled()
        # The frozen process's own last write may still arrive, as what was recorded as doubt; nothing new begins.
        assert after.problems(rig.accepted) == []
        assert {i: n for i, n in ((i, after.deliveries[i].copies) for i in copies) if n != copies[i]} == {}


def test_the_broker_is_killed_and_comes_back(tmp_path: Path) -> None:
    cluster = KafkaCluster(tmp_path / "kafka", brokers=1, port=0, tied=True)
    cluster.start()
    try:
        with Rig(cluster.bootstrap_servers, tmp_path, senders=2) as rig:
            rig.publish(200)
            rig.publish(200, lane="bulk")
            cluster.kill(0)
            time.sleep(2.0)  # the outage itself
            cluster.start_broker(0)
            rig.publish(50)
            deadline = time.monotonic() + 120
            while not (books := rig.books()).settled(rig.accepted) and time.monotonic() < deadline:
                rig.revive()  # a static member whose rejoin was cut off is fenced by its own ghost, and ends
                time.sleep(0.5)
            assert books.problems(rig.accepted) == []
            assert books.count("delivered") + books.count("uncertain") == 450
    finally:
        cluster.stop(grace_s=5.0)


def test_a_rebalance_storm(kafka: KafkaCluster, tmp_path: Path) -> None:
    """For 30 s senders come and go every 2 s, in order and by SIGKILL, under load."""
    with Rig(kafka.bootstrap_servers, tmp_path, senders=3) as rig:
        ends = time.monotonic() + 30
        turn = 0
        while time.monotonic() < ends:
            name = f"sender-{turn % 3 + 1}"
            if rig.stack.pid(name) is not None:
                if turn % 2:
                    rig.stack.stop(name, grace_s=10)
                else:
                    rig.stack.kill(name)
            rig.publish(20)
            rig.publish(20, lane="bulk")
            rig.stack.start(name)
            turn += 1
            time.sleep(max(0.0, min(2.0, ends - time.monotonic())))
        books = rig.until_settled(timeout_s=120)
        assert books.problems(rig.accepted) == []


def test_an_orderly_stop_leaves_nothing_uncertain(kafka: KafkaCluster, tmp_path: Path) -> None:
    with Rig(kafka.bootstrap_servers, tmp_path, senders=2) as rig:
        for _ in range(3):
            rig.publish(100, lane="bulk")
            assert rig.stack.stop("sender-1", grace_s=20)
            assert rig.stack.exit_code("sender-1") == 0
            rig.stack.start("sender-1")
        books = rig.until_settled()
        assert books.problems(rig.accepted) == []
        assert books.summary() == {"delivered": 300, "copies": 300, "doubts": 0}


def test_the_router_is_killed(kafka: KafkaCluster, tmp_path: Path) -> None:
    with Rig(kafka.bootstrap_servers, tmp_path) as rig:
        for _ in range(4):
            rig.publish(150)
            rig.stack.kill("router-1")
            rig.publish(50)
            rig.stack.start("router-1")
        books = rig.until_settled()
        assert books.problems(rig.accepted) == []
        assert books.summary() == {"delivered": 800, "copies": 800, "doubts": 0}


def test_poison_goes_to_the_dead_letters(kafka: KafkaCluster, tmp_path: Path) -> None:
    """In every topic that mails travel through, among good mails: nothing is blocked, the bytes stay as they were."""
    poison = [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"delivery_id":1e999}',
        b'{"a":1,"a":2}',
        b"null",
        b"\0" * 64,
    ]
    with Rig(kafka.bootstrap_servers, tmp_path) as rig:
        producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        topics = (rig.names.requests, rig.names.dispatch("transactional"), rig.names.delay("1s"))
        rig.publish(20)
        for topic in topics:
            for n, value in enumerate(poison):
                producer.produce(
                    topic, value, f"poison-{n}", partition=n % 4, headers=[("ce_type", b"x"), ("n", b"\xff")]
                )
        producer.flush(10)
        rig.publish(20)
        expected = len(topics) * len(poison)
        books = rig.until(
            lambda b: b.settled(rig.accepted) and len(b.dead_letters) >= expected, "the poison is put aside"
        )
        assert books.problems(rig.accepted) == []
        assert books.count("delivered") == 40
        assert sorted(value or b"" for _, value, _ in books.dead_letters) == sorted(poison * len(topics))
        for key, _, headers in books.dead_letters:
            assert (key or b"").startswith(b"poison-")
            assert headers["n"] == b"\xff"
            assert headers["kafka_dlt-original-topic"].decode() in topics


def test_a_hot_domain_does_not_hold_up_another(kafka: KafkaCluster, tmp_path: Path) -> None:
    def limited(body: dict[str, Any]) -> None:
        body["limits"] = {"domains": {"hot.example": {"rate_per_s": 8}}}

    with Rig(kafka.bootstrap_servers, tmp_path, config=limited, lanes=("transactional",)) as rig:
        hot = rig.publish(60, domain="hot.example")
        cool = rig.publish(200, domain="cool.example")
        books = rig.until(lambda b: all(_delivered(b, m) for m in cool), "the healthy domain is delivered", 20)
        waiting = [m for m in hot if not _delivered(books, m)]
        assert len(waiting) >= 30, "the hot domain was not limited"
        books = rig.until_settled(timeout_s=90)
        assert books.problems(rig.accepted) == []
        # Nothing was lost, no attempt was spent by waiting.
        assert all(e["attempt"] <= 1 for d in books.deliveries.values() for e in d.events)


def _delivered(books: Any, message: str) -> bool:
    return any("delivered" in books.deliveries[d].terminal for d in books.by_message[message])


def test_an_outage_longer_than_the_retry_schedule(kafka: KafkaCluster, tmp_path: Path) -> None:
    """No attempt is spent while no provider is healthy: the mails wait in Kafka and go out when it is back."""
    with Rig(kafka.bootstrap_servers, tmp_path) as rig:
        rig.publish(10)
        rig.until_settled()
        rig.practice.control.outage()
        rig.publish(200)
        rig.publish(100, lane="bulk")
        schedule_s = 0.2 + 0.4 + 0.8 + 1.6 + 2  # what give_up_after: 6 attempts would take
        time.sleep(schedule_s * 2)
        assert rig.books().count("dead_lettered") == 0
        rig.practice.control.recover()
        books = rig.until_settled()
        assert books.problems(rig.accepted) == []
        assert books.count("delivered") + books.count("uncertain") == 310
        assert books.count("dead_lettered") == 0


def test_failover_to_the_next_provider(kafka: KafkaCluster, tmp_path: Path) -> None:
    with Rig(kafka.bootstrap_servers, tmp_path, listeners=("primary", "backup")) as rig:
        rig.publish(50)
        rig.until_settled()
        rig.practice.control.outage("primary")
        rig.publish(200)
        books = rig.until_settled()
        assert books.problems(rig.accepted) == []
        assert books.count("delivered") == 250
        assert {c.server for c in rig.practice.control.ledger()} == {"primary", "backup"}


@pytest.mark.parametrize("action", ["accept_drop", "drop"])
def test_the_connection_ends_after_the_dot(kafka: KafkaCluster, tmp_path: Path, action: str) -> None:
    """`resend`: at least once, copies within the doubts. `park`: at most once, a person decides."""
    with Rig(kafka.bootstrap_servers, tmp_path) as rig:
        rig.practice.control.add_fault(action, "dot", probability=0.2, seed=7, count=20)
        rig.publish(100)
        rig.publish(100, lane="bulk")
        books = rig.until_settled()
        assert books.problems(rig.accepted) == []
        resent = [d for d in books.deliveries.values() if d.resent]
        parked = [d for d in books.deliveries.values() if "uncertain" in d.terminal]
        assert len(resent) + len(parked) >= 10
        assert all("delivered" in d.terminal for d in resent)
        if action == "accept_drop":
            assert all(d.copies == 2 for d in resent if d.doubts == 1)
            assert all(d.copies == 1 for d in parked)
        else:
            assert all(d.copies == 0 for d in parked)


def test_what_the_books_forgot_is_not_guessed(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Fail closed: offsets reset behind the sender's back do not become a second mailing."""
    with Rig(kafka.bootstrap_servers, tmp_path, lanes=("transactional",)) as rig:
        rig.publish(50)
        rig.until_settled()
        rig.stack.stop("sender-1")
        _delete_group(kafka.bootstrap_servers, rig.names.sender_group("transactional"))
        with pytest.raises(LocalError, match="has no position"):
            rig.stack.start("sender-1")
        assert sum(d.copies for d in rig.books().deliveries.values()) == 50


def _delete_group(bootstrap: str, group: str) -> None:
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": bootstrap})
    deadline = time.monotonic() + 20
    while True:
        try:
            admin.delete_consumer_groups([group])[group].result(10)
            return
        except Exception:
            assert time.monotonic() < deadline, "the group does not become empty"
            time.sleep(0.5)


def test_nothing_of_a_record_is_lost_on_its_way_to_the_dead_letters(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Refused for good by policy: the record rests with its reason, reply and provider."""
    with Rig(kafka.bootstrap_servers, tmp_path, lanes=("transactional",)) as rig:
        rig.practice.control.add_fault("reply", "rcpt", code=550, text="5.7.1 blocked", recipient="*@blocked.example")
        rig.practice.control.add_fault("reply", "rcpt", code=550, text="5.1.1 unknown", recipient="*@unknown.example")
        rig.publish(5, domain="blocked.example")
        rig.publish(5, domain="unknown.example")
        books = rig.until_settled()
        assert books.problems(rig.accepted) == []
        assert (books.count("dead_lettered"), books.count("bounced")) == (5, 5)
        for _, value, headers in books.dead_letters:
            assert DispatchReady.model_validate_json(value or b"").recipient.endswith("@blocked.example")
            assert headers["postlane-reason"] == b"policy"
        assert len(read_topic(kafka.bootstrap_servers, rig.names.dead_letters)) == 5
