"""A real Apache Kafka on this machine: one broker, or three that keep everything three times."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from postlane.local import broker_config, class_archive, diagnosis, ports, processes, wire
from postlane.local.broker_config import Node
from postlane.local.errors import LocalError
from postlane.local.jars import KAFKA_VERSION, ensure_jars
from postlane.local.java import Java, find_java
from postlane.local.processes import ProcessId

BROKERS_MAX = 3
FREE_DISK_MIN_MB = 256
READY_TIMEOUT_S = 90.0
FORMAT_TIMEOUT_S = 60.0
STOP_GRACE_S = 20.0
_PROBE_TIMEOUT_S = 2.0
_POLL_S = 0.05

_log = logging.getLogger(__name__)


class KafkaCluster:
    """A cluster of combined brokers and controllers that lives in a folder, and outlives this process.

    `data_dir` holds everything: data, pid files, logs, and which ports were given. Any later process that names the
    same folder can ask, stop and start it. `brokers` is 1 or 3 and cannot change for a folder that has data; broker
    i (from 0) has node id i and listens on `port` + i, its controller on `port` + 100 + i. With `port` 0 free ports
    are chosen, and kept for the folder while they stay free. `tied` asks the brokers to end with the thread that
    started them (for tests). `settings` are broker properties that override the built-in ones.

    Every method raises LocalError with one sentence when this machine does not allow what was asked.
    """

    def __init__(
        self,
        data_dir: Path,
        brokers: int = 1,
        port: int = 9092,
        *,
        env: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
        tied: bool = False,
    ) -> None:
        if brokers not in (1, BROKERS_MAX):
            raise LocalError(f"A local cluster has 1 or {BROKERS_MAX} brokers, not {brokers}.")
        self.data_dir = Path(data_dir).absolute()
        self.brokers = brokers
        self._port = port
        self._env = dict(os.environ if env is None else env)
        self._settings = dict(settings or {})
        self._tied = tied
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._runtime: tuple[Java, Path] | None = None

    @staticmethod
    def of_folder(data_dir: Path, env: Mapping[str, str] | None = None) -> KafkaCluster | None:
        """The cluster that lives in the folder, with its number of brokers; None when there is none."""
        try:
            state = json.loads((Path(data_dir).absolute() / "cluster.json").read_text())
            return KafkaCluster(data_dir, len(state["ports"]), 0, env=env)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LocalError(f"{data_dir}/cluster.json cannot be read: {error}.") from error

    # -- asking

    @property
    def bootstrap_servers(self) -> str:
        """`host:port` of every broker, separated by commas; as remembered in the folder."""
        return ",".join(f"{ports.HOST}:{node.broker_port}" for node in self._nodes())

    def is_running(self, i: int | None = None) -> bool:
        """Whether broker i (or, without i, every broker) has a live process."""
        wanted = range(self.brokers) if i is None else [i]
        return all(processes.is_alive(self._process(n)) for n in wanted)

    def pid(self, i: int = 0) -> int | None:
        """The pid of broker i; None when it does not run."""
        process = self._process(i)
        return process.pid if process is not None and processes.is_alive(process) else None

    def log_path(self, i: int = 0) -> Path:
        """The log file of broker i."""
        return self.data_dir / "logs" / f"broker-{i}.log"

    def stale_pids(self) -> list[int]:
        """Pids in pid files whose process is gone, or is now another one: brokers that ended by themselves."""
        named = [self._process(i) for i in range(self.brokers)]
        return [process.pid for process in named if process is not None and not processes.is_alive(process)]

    # -- the whole cluster

    def start(self) -> None:
        """Start every broker that does not run, and wait until all take requests and know each other.

        When one fails, those started by this call are stopped again.
        """
        with self._locked():
            missing = [i for i in range(self.brokers) if not self.is_running(i)]
            fresh = len(missing) == self.brokers
            nodes = self._prepare(fresh)
            try:
                for i in missing:
                    self._launch(nodes[i], nodes)
                self._await_ready(nodes)
            except BaseException:
                self._halt(missing, grace_s=2.0)
                raise

    def stop(self, grace_s: float = STOP_GRACE_S) -> list[int]:
        """SIGTERM to every broker, SIGKILL after `grace_s`; returns the brokers that had to be killed."""
        with self._locked():
            return self._halt(range(self.brokers), grace_s)

    # -- one broker

    def start_broker(self, i: int) -> None:
        """Start broker i on its old ports; returns when it takes requests. Nothing happens when it runs already."""
        with self._locked():
            if self.is_running(i):
                return
            nodes = self._nodes()
            try:
                self._launch(nodes[i], nodes)
                self._await_ready([nodes[i]])
            except BaseException:
                self._halt([i], grace_s=2.0)
                raise

    def stop_broker(self, i: int, grace_s: float = STOP_GRACE_S) -> None:
        """Stop broker i in order, as `stop` does."""
        with self._locked():
            self._halt([i], grace_s)

    def kill(self, i: int = 0) -> None:
        """SIGKILL to broker i; returns when it is gone. What it wrote stays with the kernel, as in a real crash."""
        process = self._process(i)
        if process is not None:
            processes.send(process, signal.SIGKILL)
            processes.wait_gone([process], timeout_s=10.0)
            self._forget(i)

    # -- steps

    def _prepare(self, fresh: bool) -> list[Node]:
        if not fresh:
            return self._nodes()
        self._check_disk()
        self._java_and_jars()
        return self._choose_ports()

    def _check_disk(self) -> None:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            free_mb = shutil.disk_usage(self.data_dir).free // (1024 * 1024)
        except OSError as error:
            raise LocalError(f"The data folder {self.data_dir} cannot be used: {error.strerror or error}.") from error
        if free_mb < FREE_DISK_MIN_MB:
            raise LocalError(
                f"The disk of {self.data_dir} is full: {free_mb} MB are free and Kafka needs at least "
                f"{FREE_DISK_MIN_MB} MB."
            )

    def _java_and_jars(self) -> tuple[Java, Path]:
        if self._runtime is None:
            java = find_java(self._env)
            self._runtime = java, ensure_jars(self._env, java)
        return self._runtime

    def _choose_ports(self) -> list[Node]:
        state = self._state()
        kept = [(node.broker_port, node.controller_port) for node in self._nodes()] if state else []
        if state and len(kept) != self.brokers:
            raise LocalError(
                f"{self.data_dir} holds a cluster of {len(kept)} broker(s), not {self.brokers}: use that number, or "
                "another data folder."
            )
        if kept and self._port in (0, kept[0][0]) and all(ports.is_free(p) for pair in kept for p in pair):
            chosen = kept
        else:
            chosen = ports.plan(self._port, self.brokers)
        cluster_id = str(state["cluster_id"]) if state else _new_cluster_id()
        document = {"cluster_id": cluster_id, "ports": chosen, "kafka": KAFKA_VERSION}
        processes.write_whole(self._state_path, json.dumps(document) + "\n")
        return self._nodes()

    def _launch(self, node: Node, nodes: list[Node]) -> None:
        for port in (node.broker_port, node.controller_port):
            if not ports.is_free(port):
                raise LocalError(
                    f"Port {port} on {ports.HOST} is taken by another process: stop that one, or choose another port."
                )
        java, jars = self._java_and_jars()
        data = self._folder(node.id) / "data"
        properties = self._folder(node.id) / "server.properties"
        settings = broker_config.server_properties(node, nodes, data, self._settings)
        processes.write_whole(properties, broker_config.render(settings))
        if not (data / "meta.properties").exists():
            flags = class_archive.read_flags(java, jars)
            self._format(node, broker_config.format_argv(java, jars, properties, self._cluster_id(), flags))
        log = self.log_path(node.id)
        flags = class_archive.broker_flags(java, jars, self._folder(node.id))
        child = processes.spawn(
            broker_config.broker_argv(java, jars, properties, log, flags),
            log=log,
            env=self._env,
            cwd=self._folder(node.id),
            tied=self._tied,
        )
        self._children[node.id] = child
        process = processes.identify(child.pid)
        if process is None:
            raise LocalError(f"Kafka ended at once; its log is {log}.")
        processes.write_pid_file(self._pid_path(node.id), process)
        _log.info("Kafka broker %d starts on %s:%d (log: %s)", node.id, ports.HOST, node.broker_port, log)

    def _format(self, node: Node, argv: list[str]) -> None:
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=FORMAT_TIMEOUT_S, env=self._env, check=False
            )
        except subprocess.TimeoutExpired:
            raise LocalError(f"Kafka's storage was not formatted within {FORMAT_TIMEOUT_S:.0f} s.") from None
        if done.returncode != 0:
            log = self.log_path(node.id)
            log.parent.mkdir(parents=True, exist_ok=True)
            text = done.stdout + done.stderr
            with log.open("a") as out:
                out.write(text)
            otherwise = f"Kafka's storage could not be formatted (exit code {done.returncode})"
            raise LocalError(diagnosis.explain(text, self.data_dir, log, otherwise))

    def _await_ready(self, nodes: list[Node]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        cluster_id, wanted = self._cluster_id(), {node.id for node in nodes}
        waiting = list(nodes)
        marks = {node.id: _size(self.log_path(node.id)) for node in nodes}
        while waiting:
            node = waiting[0]
            view = wire.ask(ports.HOST, node.broker_port, _PROBE_TIMEOUT_S)
            if view is not None and view.cluster_id == cluster_id and wanted <= view.brokers:
                waiting.pop(0)
                continue
            dead = next((n for n in nodes if not self.is_running(n.id)), None)
            if dead is not None:
                raise LocalError(self._why(dead, marks[dead.id], f"Kafka broker {dead.id} ended while starting"))
            if time.monotonic() > deadline:
                otherwise = f"Kafka broker {node.id} did not answer within {READY_TIMEOUT_S:.0f} s"
                raise LocalError(self._why(node, marks[node.id], otherwise))
            time.sleep(_POLL_S)

    def _why(self, node: Node, mark: int, otherwise: str) -> str:
        log = self.log_path(node.id)
        return diagnosis.explain(diagnosis.tail(log, mark), self.data_dir, log, otherwise)

    def _halt(self, which: range | list[int], grace_s: float) -> list[int]:
        named = {i: process for i in which if (process := self._process(i)) is not None}
        killed = processes.stop(named.values(), grace_s)
        for i in which:
            self._forget(i)
            if i in named and named[i] not in killed:
                self._keep_classes(i)
            else:
                class_archive.discard(self._folder(i))
        return [i for i, process in named.items() if process in killed]

    def _keep_classes(self, i: int) -> None:
        try:
            class_archive.collect(*self._java_and_jars(), self._folder(i))
        except (LocalError, OSError) as error:  # it only makes later starts quicker
            _log.info("The class archive was not kept: %s", error)

    def _forget(self, i: int) -> None:
        self._pid_path(i).unlink(missing_ok=True)
        child = self._children.pop(i, None)
        if child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=10.0)

    # -- what the folder remembers

    @property
    def _state_path(self) -> Path:
        return self.data_dir / "cluster.json"

    def _folder(self, i: int) -> Path:
        return self.data_dir / f"broker-{i}"

    def _pid_path(self, i: int) -> Path:
        return self._folder(i) / "pid.json"

    def _process(self, i: int) -> ProcessId | None:
        if not 0 <= i < self.brokers:
            raise LocalError(f"There is no broker {i}: this cluster has brokers 0 to {self.brokers - 1}.")
        return processes.read_pid_file(self._pid_path(i))

    def _state(self) -> dict[str, Any]:
        try:
            state = json.loads(self._state_path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise LocalError(f"{self._state_path} cannot be read: {error}.") from error
        return dict(state)

    def _cluster_id(self) -> str:
        return str(self._state()["cluster_id"])

    def _nodes(self) -> list[Node]:
        state = self._state()
        if not state:
            raise LocalError(f"There is no Kafka in {self.data_dir} yet: start it first.")
        return [Node(i, int(pair[0]), int(pair[1])) for i, pair in enumerate(state["ports"])]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        busy = f"Another command is starting or stopping the Kafka in {self.data_dir}: wait for it."
        try:
            with processes.exclusive(self.data_dir / ".lock", busy, timeout_s=5.0):
                yield
        except OSError as error:
            raise LocalError(f"The data folder {self.data_dir} cannot be used: {error.strerror or error}.") from error


def _new_cluster_id() -> str:
    while True:  # an id with a leading dash would be read as an option
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
