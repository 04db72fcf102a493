"""What the image and docker-compose.yml run, run as they say without a container engine: the same commands with the
same variables, as a user without rights, on a root that cannot be written, with secrets as files.

Not tried here: building the image, the network of containers, the limits of resources.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from tests.throwaway_postgresql import NoPostgreSQL, ThrowawayPostgreSQL
from tests.unit.test_compose_file import BODY, OURS, ROOT

from postlane.core.api_keys import digest, new_key
from postlane.local import ports
from postlane.local.kafka import KafkaCluster
from postlane.local.practice import PracticeControl
from postlane.service import PORTS

pytestmark = pytest.mark.kafka

USER = 10001
PREFIX = "containers."
# A mount namespace of its own: root read-only, the data folder writable, then a user that may read and write nothing
# but it (reading is needed where the checkout or Python lives in somebody's home).
CONTAINED = f"""
mount --bind "$1" "$1"; mount -o remount,ro,bind /; shift
exec setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs \
  --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search --bounding-set=-all,+dac_read_search "$@"
"""


def test_the_image_is_made_of_what_is_locked() -> None:
    text = (ROOT / "Dockerfile").read_text()
    installs = re.findall(r"pip install ([^\\\n]*)", text)
    assert len(installs) == 3
    for options in installs:
        assert "--require-hashes" in options or "--no-index" in options, options
    assert re.search(r"^ARG BASE=", text, re.M)
    assert len(re.findall(r"^FROM \$\{BASE\}", text, re.M)) == 2
    assert text.rindex("FROM") == text.index("FROM ${BASE} AS service"), "what `docker build .` makes is the service"
    kept = (ROOT / ".dockerignore").read_text().split()
    for copied in re.findall(r"^COPY (?!--from)(.*)$", text, re.M):
        for source in copied.split()[:-1]:
            assert f"!{source}" in kept, f"{source} is not sent to the build"


class Containers:
    """The services of the compose file as plain processes."""

    def __init__(self, bootstrap: str, database_url: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="postlane-containers-"))
        self.folder.chmod(0o755)
        self._bootstrap = bootstrap
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.http = {name: ports.free_port() for name in (*OURS, "practice")}
        self._smtp = {2525: ports.free_port(), 2526: ports.free_port()}
        self.api = ports.free_port()
        self.key = new_key(bytes(32))
        (self.folder / "gateway-keys.yaml").write_text(f"keys: [{{name: shop, sha256: {digest(self.key)}}}]\n")
        (self.folder / "database-url").write_text(database_url)
        config = yaml.safe_load(BODY["configs"]["postlane"]["content"])
        for provider in config["providers"].values():
            provider.update(host="127.0.0.1", port=self._smtp[provider["port"]])
        (self.folder / "postlane.yaml").write_text(yaml.safe_dump(config))

    def environment(self, name: str) -> dict[str, str]:
        """The image's variables, the compose file's, and what is elsewhere on this machine."""
        image = dict(re.findall(r"(POSTLANE_\w+|PYTHON\w+)=(\S+)", (ROOT / "Dockerfile").read_text()))
        given = {k: str(v) for k, v in BODY["services"][name]["environment"].items()}
        here = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "POSTLANE_BOOTSTRAP_SERVERS": self._bootstrap,
            "POSTLANE_TOPIC_PREFIX": PREFIX,
            "POSTLANE_CONFIG": str(self.folder / "postlane.yaml"),
            "POSTLANE_DATABASE_URL_FILE": str(self.folder / "database-url"),
            "POSTLANE_DATA_DIR": str(self._data(name)),
            "POSTLANE_HTTP_HOST": "127.0.0.1",
        }
        if name == "gateway":
            here |= {"POSTLANE_GATEWAY_LISTEN": f"127.0.0.1:{self.api}"}
            here |= {"POSTLANE_GATEWAY_KEYS_FILE": str(self.folder / "gateway-keys.yaml")}
        port = {"POSTLANE_HTTP_PORT": str(self.http[name])} if name in self.http else {}
        return {**image, **given, **here, **port}

    def _data(self, name: str) -> Path:
        data = self.folder / name
        if not data.exists():
            data.mkdir()
            shutil.chown(data, USER if os.geteuid() == 0 else os.geteuid())
        return data

    def command(self, name: str) -> list[str]:
        words = [str(word) for word in BODY["services"][name]["command"]]
        there = {"/data/": f"{self._data(name)}/", "0.0.0.0": "127.0.0.1", "8025": str(self.http["practice"])}
        there |= {f"={old}": f"={new}" for old, new in self._smtp.items()}
        for old, new in there.items():
            words = [word.replace(old, new) for word in words]
        return words

    def _contained(self, name: str, words: list[str]) -> list[str]:
        if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None:
            return words
        script = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", CONTAINED, "sh"]
        return [*script, str(self._data(name)), *words]

    def run(self, name: str) -> subprocess.CompletedProcess[bytes]:
        """One that ends by itself."""
        words = self._contained(name, self.command(name))
        return subprocess.run(words, env=self.environment(name), capture_output=True, timeout=90, check=False)

    def start(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                self._contained(name, self.command(name)), env=self.environment(name), stdout=log, stderr=log
            )

    def healthy(self, name: str) -> bool:
        """The health check of the compose file."""
        port = self.http[name]
        [*probe, url] = BODY["services"][name]["healthcheck"]["test"][1:]
        url = re.sub(r":\d+/", f":{port}/", url)
        return (
            subprocess.run([*probe, url], env=self.environment(name), capture_output=True, timeout=30).returncode == 0
        )

    def until_healthy(self, name: str, timeout_s: float = 90.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.healthy(name):
            log = (self.folder / f"{name}.log").read_text()
            assert self._processes[name].poll() is None, f"{name} ended: {log[-2000:]}"
            assert time.monotonic() < deadline, f"{name} is not healthy: {log[-2000:]}"
            time.sleep(0.3)

    def publish(self, mail: dict[str, str]) -> str:
        """Through the gateway; its message id."""
        about = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        url = f"http://127.0.0.1:{self.api}/v1/mails"
        with urllib.request.urlopen(urllib.request.Request(url, orjson.dumps(mail), about), timeout=30) as answer:
            return str(orjson.loads(answer.read())["message_id"])

    def user_of(self, name: str) -> int:
        status = Path(f"/proc/{self._processes[name].pid}/status").read_text()
        return int(re.search(r"^Uid:\s+(\d+)", status, re.M)[1])  # type: ignore[index]

    def stop(self, name: str) -> int:
        process = self._processes.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(70)

    def close(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def database_url() -> Iterator[str]:
    """PostgreSQL, as in the compose file, where there is one."""
    try:
        server = ThrowawayPostgreSQL()
        server.start()
    except NoPostgreSQL:
        yield "sqlite:////tmp/postlane-containers.db"
        return
    try:
        yield server.new_database()
    finally:
        server.remove()


@pytest.fixture
def containers(kafka: KafkaCluster, database_url: str) -> Iterator[Containers]:
    made = Containers(kafka.bootstrap_servers, database_url)
    yield made
    made.close()


def test_publish_to_delivered_with_what_the_compose_file_runs(containers: Containers) -> None:
    topics = containers.run("topics")
    assert topics.returncode == 0, topics.stderr.decode()
    for name in ("practice", *OURS):
        containers.start(name)
    for name in ("practice", *OURS):
        containers.until_healthy(name)
    if os.geteuid() == 0 and shutil.which("setpriv"):
        assert {containers.user_of(name) for name in OURS} == {USER}

    message_id = containers.publish({"sender": "shop@example.org", "to": "ada@example.com", "text": "t"})
    witness = PracticeControl(f"http://127.0.0.1:{containers.http['practice']}")
    story: dict[str, Any] = {}
    deadline = time.monotonic() + 60
    while story.get("state") != "delivered" and time.monotonic() < deadline:
        time.sleep(0.2)
        asked = subprocess.run(
            [str(Path(sys.executable).with_name("postlane")), "status", message_id, "--json"],
            env=containers.environment("ledger"), capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        if asked.returncode == 0:
            story = orjson.loads(asked.stdout)["deliveries"][0]
    assert story.get("state") == "delivered"
    assert [entry.rcpts for entry in witness.ledger()] == [("ada@example.com",)]
    for name in reversed(OURS):
        assert containers.stop(name) == 0, f"{name} does not end in order"


def test_the_image_healthcheck_finds_the_service_by_itself(containers: Containers) -> None:
    """Without POSTLANE_HTTP_PORT it looks at the default ports; nothing listening is unhealthy."""
    text = (ROOT / "Dockerfile").read_text()
    command = orjson.loads(re.search(r"HEALTHCHECK .* CMD (\[.*\])", text)[1])  # type: ignore[index]
    environment = {**containers.environment("router"), "POSTLANE_HTTP_PORT": str(ports.free_port())}
    nobody = subprocess.run(command, env=environment, capture_output=True, timeout=30, check=False)
    assert nobody.returncode == 1
    assert b"nothing answers" in nobody.stdout
    assert PORTS.keys() >= set(OURS.values())
