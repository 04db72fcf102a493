"""Publishing and operating on a real Kafka: what lands on the topics, and what a lost broker means."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from postlane import AsyncPublisher, BrokerUnavailable, Mail, Publisher, PublishError, PublishRefused
from postlane.core.events import MailRequested
from postlane.core.identity import message_id_from_key
from postlane.eventlog.codec import decode, header
from postlane.eventlog.errors import Retriable
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.murmur2 import partition_of
from postlane.eventlog.ports import Partition, Received
from postlane.eventlog.topics import TopicNames
from postlane.local.kafka import KafkaCluster

pytestmark = pytest.mark.kafka
TIMEOUT_S = 60


class Installation:
    """A prefix of its own on the shared broker, with its topics."""

    def __init__(self, bootstrap_servers: str, folder: Path) -> None:
        self.names = TopicNames(f"{uuid.uuid4().hex[:8]}.")
        self.folder = folder
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("POSTLANE_")},
            "POSTLANE_BOOTSTRAP_SERVERS": bootstrap_servers,
            "POSTLANE_TOPIC_PREFIX": self.names.prefix,
            "POSTLANE_DATABASE_URL": f"sqlite:///{folder}/ledger.db",
        }

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from postlane.cli.main import main; main()", *arguments]
        return subprocess.Popen(
            command,
            env=self.environ,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, out, err

    def told(self, *arguments: str) -> Any:
        code, out, err = self.run(*arguments, "--json")
        assert code == 0, err
        return [json.loads(line) for line in out.splitlines()]

    def publisher(self, **more: Any) -> Publisher:
        return Publisher.from_env(self.environ, **more)

    def requests(self) -> list[Received]:
        return asyncio.run(self._read(self.names.requests))

    async def _read(self, topic: str) -> list[Received]:
        log = KafkaLog(self.environ["POSTLANE_BOOTSTRAP_SERVERS"])
        try:
            partitions = [Partition(topic, n) for n in range(await log.partition_count(topic))]
            found: list[Received] = []
            for partition, end in (await _ends(log, partitions)).items():
                async for records in log.read(partition, 0, end, deadline_s=TIMEOUT_S):
                    found += records
            return found
        finally:
            await log.close()


async def _ends(log: KafkaLog, partitions: list[Partition]) -> Mapping[Partition, int]:
    """Their ends, asked for again while a broker that came back is not their leader yet."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                return await log.high_watermarks(partitions)
            except Retriable:
                await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def installation(kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    made = Installation(kafka.bootstrap_servers, tmp_path_factory.mktemp("installation"))
    (told,) = made.told("topics", "apply")
    assert (len(told["created"]), told["left"]) == (told["topics"], [])
    return made


def mail(number: int = 0, **more: Any) -> Mail:
    return Mail(**{"sender": "shop@example.org", "to": f"u{number}@example.com", "subject": "S", "text": "T", **more})


def of_key(records: list[Received], key: str) -> list[Received]:
    ident = message_id_from_key("default", key).encode()
    return [record for record in records if record.key == ident]


def test_a_mail_is_on_record_where_its_receipt_says(installation: Installation) -> None:
    with installation.publisher() as publisher:
        receipt = publisher.publish(mail(), key="one")
    (record,) = of_key(installation.requests(), "one")
    assert (record.partition, record.offset) == (receipt.partition, receipt.offset)
    assert record.partition == partition_of(record.key or b"", 12)
    assert record.key == receipt.message_id.encode()
    assert header(record.headers, "ce_type") == b"postlane.MailRequested.v1"
    assert header(record.headers, "ce_id") == record.key
    read = decode(MailRequested, record.value)
    assert (read.message_id, read.key, read.to, read.subject) == (receipt.message_id, "one", ("u0@example.com",), "S")


def test_two_processes_and_one_key_are_one_mail(installation: Installation) -> None:
    arguments = (
        "send",
        "--from",
        "a@b.example",
        "--to",
        "x@y.example",
        "--subject",
        "S",
        "--text",
        "T",
        "--key",
        "two",
    )
    processes = [installation.start(*arguments, "--json") for _ in range(2)]
    told = [json.loads(process.communicate(timeout=TIMEOUT_S)[0]) for process in processes]
    assert told[0]["message_id"] == told[1]["message_id"] == message_id_from_key("default", "two")
    assert told[0]["partition"] == told[1]["partition"]
    assert len(of_key(installation.requests(), "two")) == 2  # the router drops the repeat by this id


async def test_the_async_publisher(installation: Installation) -> None:
    async with AsyncPublisher.from_env(installation.environ) as publisher:
        receipts = await asyncio.gather(*(publisher.publish(mail(i), key=f"async-{i}") for i in range(50)))
    assert [r.message_id for r in receipts] == [message_id_from_key("default", f"async-{i}") for i in range(50)]
    found = {record.key for record in await installation._read(installation.names.requests)}
    assert {r.message_id.encode() for r in receipts} <= found


def test_many_mails_in_order_with_bounded_memory(installation: Installation) -> None:
    count, size = 3000, 50_000
    text = "x" * size
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with installation.publisher() as publisher:
        mails = ((mail(i, text=text), f"many-{i}") for i in range(count))
        idents = [receipt.message_id for receipt in publisher.publish_many(mails)]
    assert idents == [message_id_from_key("default", f"many-{i}") for i in range(count)]
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) * 1024
    assert grown_bytes < count * size  # 150 MB were published; the buffer holds at most 64 MiB, and copies for the wire


def test_a_missing_topic_is_refused(installation: Installation) -> None:
    environ = {**installation.environ, "POSTLANE_TOPIC_PREFIX": "nothing."}
    with pytest.raises(PublishRefused, match="topics apply"), Publisher.from_env(environ) as publisher:
        publisher.publish(mail())


def test_a_forked_child_publishes_too(installation: Installation) -> None:
    with installation.publisher() as publisher:
        publisher.publish(mail(), key="parent")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                publisher.publish(mail(), key="child")
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        publisher.publish(mail(), key="parent again")
    assert len(of_key(installation.requests(), "child")) == 1


# ------------------------------------------------------------------------------------------------------------ no broker


def test_every_command_ends_with_3_when_no_broker_answers(tmp_path: Path) -> None:
    down = Installation("127.0.0.1:1", tmp_path)
    (tmp_path / "list.csv").write_text("email,text\na@b.example,t\n")
    commands = [
        ("topics", "plan"),
        ("send", "--from", "a@b.example", "--to", "x@y.example", "--subject", "S", "--text", "T", "--timeout", "2"),
        ("import", "list.csv", "--from", "a@b.example"),
        ("suppress", "list"),
        ("template", "list"),
        ("pause", "--lane", "bulk"),
        ("cancel", "--campaign", "x"),
        ("status",),
        ("watch", "--count", "1", "--json"),
        ("doctor", "--no-connect"),
    ]
    began = time.monotonic()
    processes = [(command, down.start(*command)) for command in commands]
    ended = {command: (process.communicate(timeout=TIMEOUT_S), process.returncode) for command, process in processes}
    assert {command: code for command, (_, code) in ended.items()} == dict.fromkeys(commands, 3)
    assert time.monotonic() - began < TIMEOUT_S
    for command, ((_, err), _) in ended.items():
        assert err.startswith("postlane: "), command
        assert "Traceback" not in err


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[KafkaCluster]:
    """A broker that a test may stop."""
    cluster = KafkaCluster(tmp_path / "kafka", brokers=1, port=0, tied=True)
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.mark.slow
def test_a_broker_that_is_lost_and_comes_back(own_kafka: KafkaCluster, tmp_path: Path) -> None:
    """SIGSTOP: a hung broker answers nothing, so outcomes are unknown; then the same publisher goes on."""
    installation = Installation(own_kafka.bootstrap_servers, tmp_path)
    installation.told("topics", "apply")
    publisher = installation.publisher(timeout_s=3, connect_timeout_s=3)
    publisher.publish(mail(), key="before")
    pid = own_kafka.pid(0)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(PublishError) as caught:
            publisher.publish(mail(), key="during")
        assert time.monotonic() - began < TIMEOUT_S
        assert "key 'during'" in str(caught.value)
    finally:
        os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            publisher.publish(mail(), key="during")
            break
        except PublishError:
            assert time.monotonic() < deadline
    assert len(of_key(installation.requests(), "during")) in (1, 2)
    own_kafka.stop()
    # The first may be unknown (it could have been on its way); soon it is certain that nobody takes it.
    meant = [_failure(publisher, "after") for _ in range(3)]
    assert isinstance(meant[-1], BrokerUnavailable), meant
    try:
        publisher.close(timeout_s=1)
    except PublishError:
        pass


def _failure(publisher: Publisher, key: str) -> PublishError:
    with pytest.raises(PublishError) as caught:
        publisher.publish(mail(), key=key)
    return caught.value


# ------------------------------------------------------------------------------------------------------------ operators


def test_topics_are_compared_and_put_right(installation: Installation) -> None:
    assert installation.told("topics", "plan") == []
    topic = installation.names.seen

    async def change() -> None:
        log = KafkaLog(installation.environ["POSTLANE_BOOTSTRAP_SERVERS"])
        await log.admin.set_topic_config(topic, {"retention.ms": "60000"})
        await log.close()

    asyncio.run(change())
    (difference,) = installation.told("topics", "plan")
    assert (difference["topic"], difference["setting"], difference["actual"]) == (topic, "retention.ms", "60000")
    assert installation.run("topics", "plan", "--check")[0] == 1
    (told,) = installation.told("topics", "apply")
    assert [d["topic"] for d in told["altered"]] == [topic]
    assert installation.told("topics", "plan") == []
    (installation.folder / "more.yaml").write_text("topics: {partitions: 24}\n")
    grown = Installation(installation.environ["POSTLANE_BOOTSTRAP_SERVERS"], installation.folder)
    grown.environ = {**installation.environ, "POSTLANE_CONFIG": "more.yaml"}
    code, out, err = grown.run("topics", "apply", "--json")
    assert code == 1
    assert {d["action"] for d in json.loads(out)["left"]} == {"refuse"}
    assert "keeps one partition number" in err


def test_suppressions_templates_and_orders(installation: Installation) -> None:
    installation.told("suppress", "add", "Ada@Example.com", "bob@example.com", "--tenant", "t1")
    installation.told("suppress", "remove", "ada@example.com", "--tenant", "t1")
    assert [s["address"] for s in installation.told("suppress", "list", "--tenant", "t1")] == ["bob@example.com"]
    (installation.folder / "list.txt").write_text("x1@example.com\nnobody\nx2@example.com\n")
    (told,) = installation.told("suppress", "import", "list.txt", "--tenant", "t2")
    assert (told["added"], told["rejected"]) == (2, 1)
    refused = json.loads((installation.folder / "list.txt.rejected.ndjson").read_text())
    assert (refused["line"], refused["offset"], refused["row"]) == (2, 15, "nobody")

    put = ("template", "put", "welcome", "--subject", "Hi {{ name }}")
    assert installation.told(*put, "--text", "one")[0]["version"] == 1
    assert installation.told(*put, "--text", "one")[0]["created"] is False
    assert installation.told(*put, "--text", "two")[0]["version"] == 2
    assert installation.told("template", "get", "welcome", "--version", "1")[0]["text"] == "one"
    assert [t["version"] for t in installation.told("template", "list", "--all")] == [1, 2]
    assert installation.run("template", "get", "nothing")[0] == 1

    installation.told("pause", "--campaign", "spring", "--reason", "wrong price")
    installation.told("cancel", "--campaign", "summer")
    orders = {(o["action"], o["name"]) for o in installation.told("status")[0]["orders"]}
    assert {("pause", "spring"), ("cancel", "summer")} <= orders
    assert installation.told("resume", "--campaign", "spring")[0]["was_paused"] is True
    orders = {(o["action"], o["name"]) for o in installation.told("status")[0]["orders"]}
    assert ("pause", "spring") not in orders


def test_an_import_killed_in_the_middle_goes_on(installation: Installation) -> None:
    """SIGKILL: nothing is said, nothing is saved but what a checkpoint wrote; every row is on record in the end."""
    count = 4000
    rows = "".join(f"kill{i}@example.com,n{i}\n" for i in range(count))
    (installation.folder / "kill.csv").write_text("email,name\n" + rows)
    arguments = ("import", "kill.csv", "--from", "s@b.example", "--template", "w", "--campaign", "kill", "--json")
    process = installation.start(*arguments, "--rate", "1000")
    progress = installation.folder / "kill.csv.progress.json"
    deadline = time.monotonic() + TIMEOUT_S
    while not progress.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    (told,) = installation.told(*arguments[:-1])
    assert told["published_before"] > 0
    assert told["published_before"] + told["published"] == count
    found = {record.key for record in installation.requests()}
    wanted = {message_id_from_key("default", f"kill/kill{i}@example.com").encode() for i in range(count)}
    assert wanted <= found
    assert not progress.exists()


def test_status_and_doctor_on_a_cluster_without_services(installation: Installation) -> None:
    (told,) = installation.told("status")
    assert told["kafka"] == {
        "bootstrap_servers": installation.environ["POSTLANE_BOOTSTRAP_SERVERS"],
        "brokers": 1,
        "missing_topics": [],
    }
    assert set(told["lanes"]) == {"transactional", "bulk"}
    assert told["router"]["waiting"] > 0
    assert told["router"]["oldest_age_s"] is not None
    assert "no ledger" in told["ledger"]["error"]
    assert len(told["partitions"]) == 24
    code, out, _ = installation.run("doctor", "--json", "--no-connect")
    report = json.loads(out)
    assert [c for c in report["checks"] if c["verdict"] == "fail"] == []
    assert (code, report["ok"]) == (0, True)
    assert {c["name"]: c["verdict"] for c in report["checks"]}["topic-missing"] == "ok"
    missing = Installation(installation.environ["POSTLANE_BOOTSTRAP_SERVERS"], installation.folder)
    code, out, _ = missing.run("doctor", "--json", "--no-connect")
    assert code == 1
    assert [c["do"] for c in json.loads(out)["checks"] if c["name"] == "topic-missing"] == [
        "run `postlane topics apply`"
    ]
