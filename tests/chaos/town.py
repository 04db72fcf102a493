"""The installation under test: three brokers, two routers, three senders, a ledger, two providers, as processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import yaml

from postlane.core.policy import Config, Topics
from postlane.eventlog.admin import KafkaAdmin
from postlane.eventlog.kafka_config import ClientConfig
from postlane.eventlog.topics import TopicNames, declare
from postlane.local import http_probe, ports
from postlane.local.errors import LocalError
from postlane.local.kafka import KafkaCluster
from postlane.local.practice import PracticeProcess
from postlane.local.processes import write_whole
from postlane.local.stack import ChildSpec, Stack
from postlane.local.supervisor import Supervisor
from tests.acceptance.rig import configuration
from tests.chaos import isolation

BROKERS = 3
PARTITIONS = 3
ROUTERS, SENDERS = 2, 3
LANES = ("transactional", "bulk")
SMALL_DISK_MB = {"broker": 512, "ledger": 160, "router": 48}  # the ledger's write-ahead log alone may take 64
BROKER_GID, SERVICE_GID = 60100, 60200  # BROKER_GID + i: see java/bin/java
_HERE = Path(__file__).parent
_PROVIDERS = ("primary", "backup")
_SETTINGS = {"log.segment.bytes": str(8 << 20), "log.index.size.max.bytes": str(1 << 20)}


def provider_host(name: str) -> str:
    return f"smtp.{name}.chaos.test" if isolation.inside() else ports.HOST


class Town:
    """`with Town(folder, seed) as town:`; everything in `folder`, and ended with the block."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.dice = random.Random(f"town-{seed}")
        self.names = TopicNames(f"c{uuid.uuid4().hex[:6]}.")
        env = dict(os.environ)
        if isolation.inside():
            env = {**env, "JAVA_HOME": str(_HERE / "java"), "CHAOS_JAVA": shutil.which("java") or "java"}
        self.kafka = KafkaCluster(folder / "kafka", brokers=BROKERS, port=0, env=env, settings=_SETTINGS)
        self.auth_file = folder / "practice-users"
        self.password_file = folder / "provider-password"
        self.set_password("first")
        self.practice = PracticeProcess(folder / "practice", _PROVIDERS, ("--auth-file", str(self.auth_file)))
        self.database = folder / "books" / "ledger.db"
        self.stack = Stack(folder / "stack")
        self.supervisor = Supervisor(self.stack, self.kafka)
        body = self._configuration()
        self.config = Config.model_validate(body)
        self._config_file = folder / "postlane.yaml"
        write_whole(self._config_file, yaml.safe_dump(body))

    # ----------------------------------------------------------------------------------------------- what there is

    @property
    def bootstrap(self) -> str:
        return self.kafka.bootstrap_servers

    @property
    def services(self) -> list[str]:
        return self.stack.names()

    def of(self, service: str) -> list[str]:
        """The processes of one service, e.g. sender-1 to sender-3."""
        return [name for name in self.services if name.startswith(service)]

    def gid(self, name: str) -> int:
        """By which the firewall knows a service; 0 where there are no namespaces."""
        return SERVICE_GID + self.services.index(name) if isolation.inside() else 0

    def broker_ports(self, i: int | None = None) -> list[int]:
        """Where brokers listen for clients and for each other."""
        nodes = self.kafka._nodes()
        return [node.broker_port for node in nodes if i is None or node.id == i]

    def controller_port(self, i: int) -> int:
        return self.kafka._nodes()[i].controller_port

    def broker_data(self, i: int) -> Path:
        return self.folder / "kafka" / f"broker-{i}" / "data"

    def data(self, name: str) -> Path:
        """What a service keeps beside itself."""
        return self.folder / "data" / name

    def log_of(self, name: str) -> Path:
        return self.stack.log_path(name)

    # ------------------------------------------------------------------------------------------------- up and down

    def __enter__(self) -> Town:
        with contextlib.ExitStack() as undo:
            undo.callback(self.down)
            if isolation.inside():
                self._mount()
            self.kafka.start()
            self.practice.start()
            asyncio.run(self._make_topics())
            for directory in ("env", "data", "books"):
                (self.folder / directory).mkdir(exist_ok=True)
            self.stack.up(lambda _: self._children())
            self.supervisor.start()
            undo.pop_all()
        return self

    def __exit__(self, *args: object) -> None:
        self.down()

    def down(self) -> None:
        self.supervisor.stop()
        for name in self.stack.names():
            if (pid := self.stack.pid(name)) is not None:
                os.kill(pid, signal.SIGCONT)
        for i in range(BROKERS):
            with contextlib.suppress(LocalError):
                if (pid := self.kafka.pid(i)) is not None:
                    os.kill(pid, signal.SIGCONT)
        self.stack.down(grace_s=10.0)
        self.practice.stop()
        for i in range(BROKERS):
            self.kafka.kill(i)  # the data is thrown away

    async def _make_topics(self) -> None:
        admin = KafkaAdmin(ClientConfig(self.bootstrap))
        await admin.create_topics(declare(self.names, LANES, Topics(partitions=PARTITIONS)), BROKERS)

    def _mount(self) -> None:
        """Names that can be taken away, and small disks that can be filled."""
        self.hosts = self.folder / "hosts"
        self.hosts.parent.mkdir(parents=True, exist_ok=True)
        self.names_resolve(True)
        self._mounted("--bind", str(self.hosts), "/etc/hosts")
        for path, size in self.small_disks().items():
            path.mkdir(parents=True, exist_ok=True)
            self._mounted("-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(path))

    def small_disks(self) -> dict[Path, int]:
        """The last broker, the ledger and the first router have disks of their own; MB of each."""
        return {
            self.broker_data(BROKERS - 1): SMALL_DISK_MB["broker"],
            self.database.parent: SMALL_DISK_MB["ledger"],
            self.data("router-1"): SMALL_DISK_MB["router"],
        }

    def names_resolve(self, yes: bool) -> None:
        lines = ["127.0.0.1 localhost"]
        if yes:
            lines += [f"127.0.0.1 {provider_host(name)}" for name in _PROVIDERS]
        self.hosts.write_text("\n".join(lines) + "\n")

    def _mounted(self, *arguments: str) -> None:
        subprocess.run(["mount", *arguments], check=True, timeout=10, capture_output=True)

    # ----------------------------------------------------------------------------------------------------- settings

    def set_password(self, password: str) -> None:
        """What the provider asks for from its next start on."""
        write_whole(self.auth_file, f"postlane:{password}\n")

    def tell_password(self, password: str) -> None:
        """What the senders are told."""
        write_whole(self.password_file, password)

    def _configuration(self) -> dict[str, object]:
        self.tell_password("first")
        body = configuration(self.practice.smtp_ports, topics={"partitions": PARTITIONS})
        lanes = body["lanes"]
        assert isinstance(lanes, dict)
        for lane in lanes.values():
            del lane["intent_ttl_s"]  # the default, and the default session: a busy machine's commits take seconds
        retry = body["retry"]
        assert isinstance(retry, dict)
        body["retry"] = {**retry, "expire_after_s": 432_000}  # an hour's step of a clock is not to end mails
        providers = body["providers"]
        assert isinstance(providers, dict)
        for name, provider in providers.items():
            provider |= {
                "host": provider_host(name),
                "username": "postlane",
                "password_file": str(self.password_file),
                # A server that says nothing costs a place for so long; the defaults are those of RFC 5321, minutes.
                "connect_timeout_s": 3,
                "command_timeout_s": 8,
                "data_timeout_s": 8,
                "dot_timeout_s": 10,
            }
        return body

    def _children(self) -> list[ChildSpec]:
        wanted = {"router": ROUTERS, "sender": SENDERS, "ledger": 1}
        named = [(service, f"{service}-{i + 1}") for service, count in wanted.items() for i in range(count)]
        return [self._child(service, name, index) for index, (service, name) in enumerate(named)]

    def _child(self, service: str, name: str, index: int) -> ChildSpec:
        port = ports.free_port()
        env = {
            "POSTLANE_BOOTSTRAP_SERVERS": self.bootstrap,
            "POSTLANE_TOPIC_PREFIX": self.names.prefix,
            "POSTLANE_CONFIG": str(self._config_file),
            "POSTLANE_INSTANCE_ID": name,
            "POSTLANE_HTTP_PORT": str(port),
            "POSTLANE_DATA_DIR": str(self.data(name)),
            "POSTLANE_DATABASE_URL": f"sqlite:///{self.database}",
        }
        self.variables(name)
        gid = str(SERVICE_GID + index if isolation.inside() else 0)
        command = (
            str(_HERE / "launch.sh"),
            str(self._variables_of(name)),
            gid,
            sys.executable,
            "-m",
            f"postlane_{service}",
        )
        url = f"http://{ports.HOST}:{port}"
        return ChildSpec(name, command, env, f"{url}/readyz", url)

    def _variables_of(self, name: str) -> Path:
        return self.folder / "env" / name

    def variables(self, name: str, **variables: str) -> None:
        """Environment variables that the service gets at its next starts, in place of those given before."""
        text = "".join(f"export {key}='{value}'\n" for key, value in variables.items())
        write_whole(self._variables_of(name), text)

    # --------------------------------------------------------------------------------------------------------- deeds

    def kill(self, name: str, signum: int = signal.SIGKILL) -> None:
        with contextlib.suppress(LocalError):  # it has just ended by itself
            self.stack.kill(name, signum)

    def signal_broker(self, i: int, signum: int) -> None:
        if (pid := self.kafka.pid(i)) is not None:
            os.kill(pid, signum)

    @contextlib.contextmanager
    def held_down(self, *names: str | int) -> Iterator[None]:
        """Whoever ends of these is not started again while the block runs; names of services, numbers of brokers."""
        self.supervisor.hold(names)
        try:
            yield
        finally:
            self.supervisor.let_go(names)

    def restart(self, name: str) -> None:
        """Stop it in order and start it again, as an operator does."""
        with self.held_down(name):
            self.stack.stop(name, grace_s=15)
        self.until_ready(name)

    def until_ready(self, name: str, timeout_s: float = 240.0) -> None:
        """Returns when the service can do its work; a deployment takes the next one then."""
        url = self.stack.spec(name).ready_url or ""
        deadline = time.monotonic() + timeout_s
        while http_probe.get(url).status != 200:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} was not ready within {timeout_s:.0f} s")
            time.sleep(0.1)

    def until_up(self, *names: str | int, timeout_s: float = 240.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not all(self.kafka.is_running(n) if isinstance(n, int) else self.stack.pid(n) for n in names):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{names} did not come back within {timeout_s:.0f} s")
            time.sleep(0.1)
