"""A stack to break: real Kafka, services as processes, a practice SMTP server as witness, in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import yaml

from postlane.eventlog.topics import TopicNames
from postlane.local import http_probe, ports
from postlane.local.errors import LocalError
from postlane.local.kafka import KafkaCluster
from postlane.local.practice.process import PracticeProcess
from postlane.local.processes import write_whole
from postlane.local.stack import ChildSpec, Stack
from postlane.local.supervisor import Supervisor
from postlane.ops.drill.prometheus import Prometheus, PrometheusProcess, installed
from postlane.ops.drill.relay import Relay

PARTITIONS = 4
LANES = ("transactional", "bulk")
LISTENERS = ("primary", "backup")
RUNAWAY_TENANT, RUNAWAY_PER_S = "drill-runaway", 40.0
_COMMAND_TIMEOUT_S = 120.0
_STOP_GRACE_S = 15.0
_LEDGER_FILES = ("ledger.db", "ledger.db-wal", "ledger.db-shm")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a scenario needs of it."""

    senders: int = 2
    routers: int = 1
    relay: bool = False
    auth: bool = False
    session_timeout_ms: int = 10_000
    rules: Path | None = None


class ThrowawaySite:
    """`with ThrowawaySite(kafka, folder, wanted) as site:` — everything is ready when the block begins, and ended
    with it. Kafka stays. Raises LocalError when the machine does not allow it."""

    def __init__(self, kafka: KafkaCluster, folder: Path, wanted: Wanted) -> None:
        self.name = "the throwaway stack"
        self.kafka, self.folder, self.wanted = kafka, folder, wanted
        self.names = TopicNames(f"drill-{uuid.uuid4().hex[:8]}.")
        self.lanes, self.listeners, self.options = LANES, LISTENERS, dict[str, str]()
        self.recipients_domain, self.sender = "example.com", "drill@example.org"
        self.database_url: str | None = f"sqlite:///{folder / 'ledger.db'}"
        self.prometheus: Prometheus | None = None
        self.relay: Relay | None = None
        self._config_file = folder / "postlane.yaml"
        self._auth_file = folder / "practice-users"
        self._stack = Stack(folder / "stack", env=_clean(os.environ), tied=True)
        self._supervisor = Supervisor(self._stack)  # as a container's restart policy does
        self._undo = contextlib.ExitStack()
        self._prepared = False
        write_whole(self._auth_file, "".join(f"{name}:first\n" for name in LISTENERS))
        extra = ("--auth-file", str(self._auth_file)) if wanted.auth else ()
        self._practice = PracticeProcess(folder / "practice", LISTENERS, extra)
        self.witness = self._practice.control

    # ------------------------------------------------------------------------------------------------ up and down

    def __enter__(self) -> ThrowawaySite:
        try:
            self.prepare()
            self._undo.callback(self._down)
            self._stack.up(lambda _: self._children(self.wanted.senders, self.wanted.routers))
            self._supervisor.start()
            self._watch()
        except BaseException:
            self._undo.close()
            raise
        return self

    def prepare(self) -> ThrowawaySite:
        """The witness, the settings and the topics, but no service yet; the first half of entering the block."""
        if self._prepared:
            return self
        self._prepared = True
        self._practice.start()
        self._undo.callback(self._practice.stop)
        if self.wanted.relay:
            self.relay = self._undo.enter_context(Relay(self._practice.smtp_ports[LISTENERS[0]]))
        write_whole(self._config_file, yaml.safe_dump(self._config()))
        for name in LISTENERS:
            self.tell_password(name, "first")
        self.command("topics", "apply", "--json")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _down(self) -> None:
        self._supervisor.stop()
        for name in self._stack.names():
            if (pid := self._stack.pid(name)) is not None:
                os.kill(pid, signal.SIGCONT)
        self._stack.down(_STOP_GRACE_S)

    def _watch(self) -> None:
        if self.wanted.rules is None or installed() is None:
            return
        targets: dict[str, list[str]] = {}
        for name in self._stack.names():
            url = self._stack.url(name)
            if url is not None:
                targets.setdefault(f"postlane-{name.partition('-')[0]}", []).append(url.removeprefix("http://"))
        process = PrometheusProcess(self.folder / "prometheus", self.wanted.rules, targets)
        self.prometheus = self._undo.enter_context(process).client

    # ------------------------------------------------------------------------------------------------- what it has

    @property
    def bootstrap(self) -> str:
        return self.kafka.bootstrap_servers

    @property
    def abilities(self) -> frozenset[str]:
        able = {"witness", "kill:sender", "kill:router", "kill:ledger", "brokers", "own"}
        return frozenset(able | ({"relay"} if self.wanted.relay else set()) | ({"auth"} if self.wanted.auth else set()))

    def of(self, service: str) -> list[str]:
        return [name for name in self._stack.names() if name.partition("-")[0] == service]

    def kill(self, name: str) -> None:
        self._supervisor.hold([name])
        with contextlib.suppress(LocalError):  # it has just ended by itself
            self._stack.kill(name)

    def launch(self, name: str) -> None:
        self._stack.launch(name)
        self._supervisor.let_go([name])

    @property
    def restarts(self) -> int:
        return self._supervisor.starts.total()

    def is_ready(self, name: str) -> bool:
        ready_url = self._stack.spec(name).ready_url
        return self._stack.pid(name) is not None and ready_url is not None and http_probe.get(ready_url).status == 200

    # ---------------------------------------------------------------------------------------- only a throwaway stack

    def command(self, *arguments: str, prefix: str | None = None) -> str:
        """Run `postlane …` against this stack as an operator would; its stdout. LocalError when it fails."""
        argv = [sys.executable, "-c", "from postlane.cli.main import main; main()", *arguments]
        env = {**_clean(os.environ), **self._environment()}
        if prefix is not None:
            env["POSTLANE_TOPIC_PREFIX"] = prefix
        done = subprocess.run(
            argv, env=env, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False, cwd=self.folder
        )
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise LocalError(f"postlane {arguments[0]} ended with {done.returncode}: {said}")
        return done.stdout

    def lose_ledger_database(self) -> None:
        """The ledger's files are gone."""
        for name in _LEDGER_FILES:
            (self.folder / name).unlink(missing_ok=True)

    def expire_password(self, provider: str, new: str) -> None:
        """From now on the provider takes only the new password, and who used the old one is logged out."""
        lines = [f"{name}:{new if name == provider else 'first'}\n" for name in LISTENERS]
        write_whole(self._auth_file, "".join(lines))
        if (pid := self._practice.pid) is not None:
            os.kill(pid, signal.SIGHUP)

    def tell_password(self, provider: str, password: str) -> None:
        """What an operator does: put the new password where the senders read it."""
        write_whole(self.folder / f"password-{provider}", password)

    def sibling(self, folder: Path) -> ThrowawaySite:
        """An empty installation on the same brokers, under a prefix of its own: what a restore goes into."""
        return ThrowawaySite(self.kafka, folder, Wanted(senders=1, session_timeout_ms=self.wanted.session_timeout_ms))

    def _environment(self) -> dict[str, str]:
        return {
            "POSTLANE_BOOTSTRAP_SERVERS": self.bootstrap,
            "POSTLANE_TOPIC_PREFIX": self.names.prefix,
            "POSTLANE_CONFIG": str(self._config_file),
            "POSTLANE_DATABASE_URL": self.database_url or "",
            "POSTLANE_DATA_DIR": str(self.folder / "command"),
        }

    def _children(self, senders: int, routers: int) -> list[ChildSpec]:
        counts = {"router": routers, "sender": senders}
        named = [(service, f"{service}-{i + 1}") for service, count in counts.items() for i in range(count)]
        return [self._child(service, name) for service, name in (*named, ("ledger", "ledger"))]

    def _child(self, service: str, name: str) -> ChildSpec:
        port = ports.free_port()
        env = {
            **self._environment(),
            "POSTLANE_INSTANCE_ID": name,
            "POSTLANE_HTTP_PORT": str(port),
            "POSTLANE_DATA_DIR": str(self.folder / "data" / name),
            "POSTLANE_KAFKA_SESSION_TIMEOUT_MS": str(self.wanted.session_timeout_ms),
        }
        url = f"http://{ports.HOST}:{port}"
        return ChildSpec(name, (sys.executable, "-m", f"postlane_{service}"), env, f"{url}/readyz", url)

    def _config(self) -> dict[str, object]:
        """Retries and time-outs are short, so that a drill of seconds shows what hours show in production."""
        smtp = dict(self._practice.smtp_ports)
        if self.relay is not None:
            smtp[LISTENERS[0]] = self.relay.port
        common: dict[str, object] = {
            "host": ports.HOST,
            "tls": "none",
            "connections": 8,
            "connect_timeout_s": 3,
            "command_timeout_s": 5,
            "data_timeout_s": 5,
            "dot_timeout_s": 8,
            "breaker_failures": 3,
            "breaker_probe_max_s": 3,
        }
        providers = {name: {**common, "port": port} for name, port in smtp.items()}
        if self.wanted.auth:
            for name, provider in providers.items():
                provider |= {"username": name, "password_file": str(self.folder / f"password-{name}")}
        # An intent lives shorter than the session of its sender: docs/adr/0003.
        ttl_s = min(7.0, 0.5 * self.wanted.session_timeout_ms / 1000)
        lane = {"providers": list(smtp), "intent_ttl_s": ttl_s, "drain_timeout_s": 5}
        return {
            "lanes": {"transactional": {**lane, "in_doubt": "resend"}, "bulk": {**lane, "in_doubt": "park"}},
            "providers": providers,
            "retry": {"first_s": 1, "factor": 2, "max_s": 5, "jitter": 0.2, "give_up_after": 12},
            "limits": {"tenants": {RUNAWAY_TENANT: {"rate_per_s": RUNAWAY_PER_S}}},
            "topics": {"partitions": PARTITIONS, "replication": self.kafka.brokers},
        }


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    """Nothing that the caller has set for another installation reaches this one."""
    return {name: value for name, value in environ.items() if not name.startswith(("POSTLANE_", "OTEL_"))} | {
        name: value for name, value in environ.items() if name == "POSTLANE_CACHE_DIR"
    }


def said(text: str) -> dict[str, object]:
    """The answer of a command that was asked for JSON."""
    return dict(json.loads(text.strip().splitlines()[-1]))
