"""Two processes with one instance id and data folders of their own, as on two machines: the newcomer is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from postlane.local import ports
from postlane.local.kafka import KafkaCluster

pytestmark = pytest.mark.kafka
PREFIX = "twins."


def start(service: str, folder: Path, kafka: KafkaCluster, port: int) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "POSTLANE_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "POSTLANE_TOPIC_PREFIX": PREFIX,
        "POSTLANE_INSTANCE_ID": "one-and-only",
        "POSTLANE_HTTP_PORT": str(port),
        "POSTLANE_DATA_DIR": str(folder),
        "POSTLANE_DATABASE_URL": f"sqlite:///{folder}/ledger.db",
    }
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", f"postlane_{service}"], env=environment, stdout=log, stderr=log)


def until_ready(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except OSError:
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)


@pytest.mark.parametrize("service", ["router", "sender", "ledger"])
def test_the_newcomer_ends_with_a_sentence_and_the_older_goes_on(
    service: str, kafka: KafkaCluster, tmp_path: Path
) -> None:
    made = subprocess.run(
        [str(Path(sys.executable).with_name("postlane")), "topics", "apply"],
        env={**os.environ, "POSTLANE_BOOTSTRAP_SERVERS": kafka.bootstrap_servers, "POSTLANE_TOPIC_PREFIX": PREFIX},
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr.decode()
    one, two = ports.free_ports(2)
    first = start(service, tmp_path / "a", kafka, one)
    running = [first]
    try:
        until_ready(first, one, tmp_path / "a")
        second = start(service, tmp_path / "b", kafka, two)
        running.append(second)
        assert second.wait(60) == 2
        said = (tmp_path / "b" / "log").read_text()
        assert "instance id one-and-only is already running at 127.0.0.1" in said
        assert first.poll() is None
        until_ready(first, one, tmp_path / "a")

        first.kill()  # a member of the group still, and not alive
        first.wait(10)
        third = start(service, tmp_path / "b", kafka, two)
        running.append(third)
        until_ready(third, two, tmp_path / "b")
        third.send_signal(signal.SIGTERM)
        assert third.wait(60) == 0
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait(10)
