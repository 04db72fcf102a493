"""A stack of children: up together or not at all, killed and started by name, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from postlane.local import ports, services, stack
from postlane.local.errors import LocalError
from postlane.local.kafka import KafkaCluster
from postlane.local.practice import PracticeControl
from postlane.local.services import StackPlan
from postlane.local.stack import ChildSpec, Stack

FAKE = str(Path(__file__).with_name("fake_service.py"))


def fake(name: str, *extra: str, tier: int = 1, env: dict[str, str] | None = None) -> ChildSpec:
    port = ports.free_port()
    url = f"http://127.0.0.1:{port}"
    return ChildSpec(name, (sys.executable, FAKE, str(port), *extra), env or {}, f"{url}/readyz", url, tier)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Stack]:
    local = Stack(tmp_path / "data", tied=True)
    yield local
    local.down(grace_s=0.2)


def said(url: str | None) -> dict[str, str]:
    assert url is not None
    with urllib.request.urlopen(url, timeout=10) as answer:
        return dict(json.loads(answer.read()))


def children_of(folder: Path) -> list[int]:
    """Processes that have the folder open as their log, whatever the state file says."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.readlink(f"/proc/{process.pid}/fd/1").startswith(str(folder)):
                found.append(process.pid)
        except OSError:
            continue
    return found


def test_up_kill_start_down(local: Stack) -> None:
    specs = [fake("sender-1", "--ready-after", "3", env={"POSTLANE_INSTANCE_ID": "sender-1"}), fake("router-1")]
    local.up(lambda bootstrap: specs)
    assert local.is_up()
    assert local.names() == ["sender-1", "router-1"]
    assert said(local.url("sender-1"))["POSTLANE_INSTANCE_ID"] == "sender-1"
    first, router = local.pid("sender-1"), local.pid("router-1")

    local.kill("sender-1")
    assert local.pid("sender-1") is None
    assert local.exit_code("sender-1") == -signal.SIGKILL
    assert local.pid("router-1") == router
    assert not local.is_up()
    with pytest.raises(LocalError, match="sender-1 does not run"):
        local.kill("sender-1")

    local.start("sender-1")
    assert local.pid("sender-1") not in (None, first)
    assert said(local.url("sender-1"))["POSTLANE_INSTANCE_ID"] == "sender-1"
    again = local.pid("sender-1")
    local.start("sender-1")
    assert local.pid("sender-1") == again

    assert local.stop("router-1") is True
    assert local.exit_code("router-1") == 0
    assert local.log_path("router-1").read_text() == "stopping\n"
    assert local.down() == []
    assert local.names() == []
    assert children_of(local.data_dir) == []


def test_another_process_can_ask_and_stop(local: Stack) -> None:
    local.up(lambda bootstrap: [fake("sender-1")])
    other = Stack(local.data_dir)
    assert other.pid("sender-1") == local.pid("sender-1")
    assert other.url("sender-1") == local.url("sender-1")
    other.kill("sender-1", signal.SIGSTOP)
    other.kill("sender-1", signal.SIGCONT)
    assert other.down() == []
    assert not local.is_up()
    assert children_of(local.data_dir) == []


def test_a_second_up_is_refused_and_changes_nothing(local: Stack) -> None:
    local.up(lambda bootstrap: [fake("sender-1")])
    pid = local.pid("sender-1")
    with pytest.raises(LocalError, match=r"already runs in .* \(sender-1\)"):
        Stack(local.data_dir).up(lambda bootstrap: [fake("sender-1")])
    assert local.pid("sender-1") == pid
    assert said(local.url("sender-1")) == {}


def test_after_a_crash_of_everything_up_works_again(local: Stack) -> None:
    local.up(lambda bootstrap: [fake("sender-1")])
    local.kill("sender-1")
    local.up(lambda bootstrap: [fake("sender-1")])
    assert local.is_up()


def test_one_that_fails_takes_all_down_and_says_why(local: Stack) -> None:
    specs = [fake("practice", tier=0), fake("router-1"), fake("sender-1", "--fail", "2")]
    with pytest.raises(LocalError) as caught:
        local.up(lambda bootstrap: specs)
    assert caught.value.message == (
        "sender-1 ended while starting, exit code 2: configuration: lane bulk has no provider "
        f"(log: {local.log_path('sender-1')})."
    )
    assert local.names() == []
    assert children_of(local.data_dir) == []


def test_one_that_never_is_ready_is_told_with_its_reason(local: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "READY_TIMEOUT_S", 1.5)
    with pytest.raises(LocalError, match="router-1 was not ready after 2 s: waiting for topics"):
        local.up(lambda bootstrap: [fake("router-1", "--ready-after", "100000")])
    assert children_of(local.data_dir) == []


def test_a_lower_tier_is_ready_first_and_stopped_last(local: Stack) -> None:
    ready: list[str] = []
    launch = local._launch

    def note(spec: ChildSpec) -> None:
        ready.append(f"{spec.name} after {[name for name in local.names() if local.pid(name) is not None]}")
        launch(spec)

    local._launch = note  # type: ignore[method-assign]
    local.up(lambda bootstrap: [fake("router-1"), fake("practice", tier=0)])
    assert ready == ["practice after []", "router-1 after ['practice']"]
    assert local._tiers_from_the_top() == [["router-1"], ["practice"]]


def test_a_stubborn_child_is_killed_and_named(local: Stack) -> None:
    local.up(lambda bootstrap: [fake("sender-1", "--stubborn"), fake("router-1")])
    assert local.down(grace_s=0.3) == ["sender-1"]
    assert children_of(local.data_dir) == []


def test_topics_that_cannot_be_made_stop_everything(local: Stack) -> None:
    def refuse(bootstrap: str) -> None:
        raise LocalError("The topics could not be made.")

    with pytest.raises(LocalError, match="topics could not be made"):
        local.up(lambda bootstrap: [fake("router-1")], apply_topics=refuse)
    assert children_of(local.data_dir) == []


def test_an_unknown_child_is_told_with_the_known_ones(local: Stack) -> None:
    local.up(lambda bootstrap: [fake("sender-1")])
    with pytest.raises(LocalError, match=r"no child 'sender-2' \(it has: sender-1\)"):
        local.pid("sender-2")


@pytest.mark.kafka
def test_with_kafka_and_the_practice_server(tmp_path: Path) -> None:
    """The real lower half of a stack: Kafka, topics, practice; services stand in."""
    plan = StackPlan(tmp_path / "data", routers=1, senders=2, optional=())
    env = {k: v for k, v in os.environ.items() if not k.startswith("POSTLANE_") or k == "POSTLANE_CACHE_DIR"}
    local = Stack(plan.data_dir, env=services.inherited(env), tied=True)
    kafka = KafkaCluster(plan.data_dir / "kafka", port=0, env=env, tied=True)
    asked: list[str] = []

    def children(bootstrap: str) -> list[ChildSpec]:
        found = []
        for spec in services.children(plan, bootstrap, env):
            argv = spec.argv
            if spec.name != services.PRACTICE:
                argv = (sys.executable, FAKE, spec.env["POSTLANE_HTTP_PORT"])
            found.append(ChildSpec(spec.name, argv, spec.env, spec.ready_url, spec.url, spec.tier))
        return found

    try:
        local.up(children, kafka, asked.append)
        assert asked == [kafka.bootstrap_servers]
        assert local.names() == ["practice", "router-1", "sender-1", "sender-2", "ledger"]
        heard = said(local.url("sender-2"))
        assert heard["POSTLANE_BOOTSTRAP_SERVERS"] == kafka.bootstrap_servers
        assert heard["POSTLANE_INSTANCE_ID"] == "sender-2"
        assert heard["POSTLANE_DATA_DIR"] == str(plan.data_dir / "services" / "sender-2")
        assert heard["POSTLANE_DATABASE_URL"] == f"sqlite:///{plan.data_dir / 'postlane.db'}"
        assert heard["POSTLANE_CONFIG"] == str(plan.data_dir / "postlane.yaml")
        health = PracticeControl(local.url("practice") or "").health()
        assert set(health["smtp"]) == {"primary", "backup"}
        text = (plan.data_dir / "postlane.yaml").read_text()
        assert all(f"port: {of['port']}," in text for of in health["smtp"].values())
    finally:
        assert local.down() == []
    assert not kafka.is_running()
    assert children_of(plan.data_dir) == []


def test_the_command_in_the_foreground_goes_down_with_sigterm(tmp_path: Path) -> None:
    """`postlane up` with fake services on the path and without a broker: what is tried is the command's life."""
    program = tmp_path / "up.py"
    program.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from postlane.cli import local as cli\n"
        "from postlane.local.stack import ChildSpec\n"
        f"FAKE, PORT = {FAKE!r}, {ports.free_port()}\n"
        "class NoKafka:\n"
        "    brokers, bootstrap_servers = 1, 'nowhere:1'\n"
        "    def __init__(self, *a, **k): pass\n"
        "    def start(self): pass\n"
        "    def stop(self, **k): return []\n"
        "    def is_running(self): return False\n"
        "    def pid(self, i): return None\n"
        "    def log_path(self, i): return Path('none')\n"
        "cli.KafkaCluster = NoKafka\n"
        "cli._apply_topics = lambda *a: None\n"
        "cli.children = lambda *a: [ChildSpec('sender-1', (sys.executable, FAKE, str(PORT)), {},\n"
        "    f'http://127.0.0.1:{PORT}/readyz', f'http://127.0.0.1:{PORT}')]\n"
        "cli.up()\n"
    )
    folder = tmp_path / "data"
    command = [sys.executable, str(program), "--data-dir", str(folder), "--json"]
    popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert popen.stdout is not None
    document = json.loads(popen.stdout.readline())
    assert [child["name"] for child in document["children"]] == ["sender-1"]
    assert children_of(folder) == [document["children"][0]["pid"]]
    popen.send_signal(signal.SIGTERM)
    _, errors = popen.communicate(timeout=60)
    assert popen.returncode == 0, errors
    assert "Stopping" in errors
    assert children_of(folder) == []
    assert not (folder / "stack.json").exists()
