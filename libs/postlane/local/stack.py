"""A whole local stack as one thing: Kafka and a list of child processes that come up, are watched, and go down.

What the children are is not decided here (`services.py` lists Postlane's). Everything about a running stack is in
`stack.json` in its folder, so any process can ask, stop, kill or restart its children by name.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from postlane.local import http_probe, processes
from postlane.local.errors import LocalError
from postlane.local.kafka import KafkaCluster
from postlane.local.processes import ProcessId

READY_TIMEOUT_S = 60.0
STOP_GRACE_S = 50.0  # a service's own stop takes 45 s at most
_POLL_S = 0.05

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One child process.

    `env` is added to the environment of whoever starts it. `ready_url` answers 200 once the child can do its work
    (None: ready when it runs); `url` is where people find it. Children of a lower `tier` are ready before those of
    the next are started, and are stopped after them.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ready_url: str | None = None
    url: str | None = None
    tier: int = 1

    def as_json(self) -> dict[str, Any]:
        """For the state file."""
        return {
            "name": self.name,
            "argv": list(self.argv),
            "env": dict(self.env),
            "ready_url": self.ready_url,
            "url": self.url,
            "tier": self.tier,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ChildSpec:
        """The way back."""
        return ChildSpec(**{**value, "argv": tuple(value["argv"])})


class Stack:
    """The stack that lives in a folder. Every method raises LocalError with one sentence when it cannot.

    `env` is the environment that children inherit (default: this process's). `tied` asks everything to end with the
    thread that started it (for tests).
    """

    def __init__(self, data_dir: Path, *, env: Mapping[str, str] | None = None, tied: bool = False) -> None:
        self.data_dir = Path(data_dir).absolute()
        self._env = dict(os.environ if env is None else env)
        self._tied = tied
        self._popen: dict[str, subprocess.Popen[bytes]] = {}

    # -- the whole

    def up(
        self,
        children: Callable[[str], Sequence[ChildSpec]],
        kafka: KafkaCluster | None = None,
        apply_topics: Callable[[str], None] | None = None,
    ) -> None:
        """Bring everything up, or nothing: Kafka, the topics, then the children tier by tier.

        `children` and `apply_topics` get the bootstrap servers ("" without Kafka). LocalError when something of a
        stack in this folder already runs; after any failure, and after Ctrl-C, what was started is stopped again.
        """
        with self._locked():
            running = [name for name in self.names() if self.pid(name) is not None]
            if running:
                raise LocalError(f"A stack already runs in {self.data_dir} ({', '.join(running)}): stop it first.")
            kafka_ran = kafka is not None and kafka.is_running()
            try:
                bootstrap = ""
                if kafka is not None:
                    kafka.start()
                    bootstrap = kafka.bootstrap_servers
                specs = sorted(children(bootstrap), key=lambda spec: spec.tier)
                if apply_topics is not None:
                    apply_topics(bootstrap)
                self._write({"children": {spec.name: {"spec": spec.as_json()} for spec in specs}})
                for tier in sorted({spec.tier for spec in specs}):
                    self._start_all([spec for spec in specs if spec.tier == tier])
            except BaseException:
                self._stop_children(grace_s=5.0)
                self._state_path.unlink(missing_ok=True)
                if kafka is not None and not kafka_ran:
                    kafka.stop(grace_s=5.0)
                raise

    def down(self, grace_s: float = STOP_GRACE_S) -> list[str]:
        """Stop everything, services first, Kafka last; returns the names of those that had to be killed."""
        with self._locked():
            killed = self._stop_children(grace_s)
            self._state_path.unlink(missing_ok=True)
            kafka = KafkaCluster.of_folder(self.data_dir / "kafka")
            if kafka is not None:
                killed += [f"kafka-{i}" for i in kafka.stop()]
            return killed

    def is_up(self) -> bool:
        """Whether there is a stack here and every child of it runs."""
        names = self.names()
        return bool(names) and all(self.pid(name) is not None for name in names)

    # -- one child

    def names(self) -> list[str]:
        """The children, in the order in which they were started."""
        return list(self._children())

    def spec(self, name: str) -> ChildSpec:
        """What the child was started with."""
        return ChildSpec.from_json(self._entry(name)["spec"])

    def pid(self, name: str) -> int | None:
        """The child's pid; None when it does not run."""
        process = ProcessId.from_json(self._entry(name).get("process"))
        return process.pid if process is not None and processes.is_alive(process) else None

    def url(self, name: str) -> str | None:
        """Where the child answers."""
        return self.spec(name).url

    def log_path(self, name: str) -> Path:
        """Where its output goes."""
        return self.data_dir / "logs" / f"{name}.log"

    def kill(self, name: str, signum: int = signal.SIGKILL) -> None:
        """Signal the child; after SIGKILL, returns when it is gone. LocalError when it does not run."""
        process = ProcessId.from_json(self._entry(name).get("process"))
        if process is None or not processes.send(process, signum):
            raise LocalError(f"{name} does not run.")
        if signum == signal.SIGKILL:
            processes.wait_gone([process], timeout_s=10.0)
            self._reap(name)

    def stop(self, name: str, grace_s: float = STOP_GRACE_S) -> bool:
        """SIGTERM, then SIGKILL after `grace_s`; returns whether it ended by itself. Nothing when it does not run."""
        process = ProcessId.from_json(self._entry(name).get("process"))
        killed = processes.stop([process], grace_s) if process is not None else []
        self._reap(name)
        return not killed

    def start(self, name: str) -> None:
        """Start a child that does not run, as it was started first; returns when it is ready."""
        with self._locked():
            if self.pid(name) is None:
                self._start_all([self.spec(name)])

    def launch(self, name: str) -> None:
        """Start a child that does not run, and do not wait until it is ready: as a supervisor does."""
        with self._locked():
            if self.pid(name) is None:
                self._launch(self.spec(name))

    def exit_code(self, name: str) -> int | None:
        """How the child ended: its exit code, or minus the signal. None while it runs, or when another process began
        it and so the kernel told that one."""
        popen = self._popen.get(name)
        return None if popen is None else popen.poll()

    # -- steps

    def _start_all(self, specs: Sequence[ChildSpec]) -> None:
        for spec in specs:
            self._launch(spec)
        for spec in specs:
            self._await_ready(spec)

    def _launch(self, spec: ChildSpec) -> None:
        log = self.log_path(spec.name)
        child = processes.spawn(spec.argv, log=log, env={**self._env, **spec.env}, tied=self._tied)
        self._popen[spec.name] = child
        process = processes.identify(child.pid)
        state = self._read()
        state["children"][spec.name]["process"] = None if process is None else process.as_json()
        self._write(state)
        _log.info("%s starts%s (log: %s)", spec.name, f" at {spec.url}" if spec.url else "", log)

    def _await_ready(self, spec: ChildSpec) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        log = self.log_path(spec.name)
        while True:
            answer = http_probe.get(spec.ready_url) if spec.ready_url is not None else http_probe.READY
            code = self._popen[spec.name].poll()
            if code is not None:
                raise LocalError(f"{spec.name} ended while starting, exit code {code}{_last_line(log)} (log: {log}).")
            if answer.status == 200:
                return
            if time.monotonic() > deadline:
                said = f": {answer.text}" if answer.text else ""
                raise LocalError(f"{spec.name} was not ready after {READY_TIMEOUT_S:.0f} s{said} (log: {log}).")
            time.sleep(_POLL_S)

    def _stop_children(self, grace_s: float) -> list[str]:
        killed: list[str] = []
        for names in self._tiers_from_the_top():
            named = {name: p for name in names if (p := ProcessId.from_json(self._entry(name).get("process")))}
            had_to = processes.stop(named.values(), grace_s)
            killed += [name for name, process in named.items() if process in had_to]
            for name in names:
                self._reap(name)
        return killed

    def _tiers_from_the_top(self) -> Iterable[list[str]]:
        tiers: dict[int, list[str]] = {}
        for name in self.names():
            tiers.setdefault(self.spec(name).tier, []).append(name)
        return [tiers[tier] for tier in sorted(tiers, reverse=True)]

    def _reap(self, name: str) -> None:
        popen = self._popen.get(name)
        if popen is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(timeout=10.0)

    # -- the state file

    @property
    def _state_path(self) -> Path:
        return self.data_dir / "stack.json"

    def _children(self) -> dict[str, dict[str, Any]]:
        return dict(self._read()["children"])

    def _entry(self, name: str) -> dict[str, Any]:
        children = self._children()
        if name not in children:
            known = ", ".join(children) or "none"
            raise LocalError(f"The stack in {self.data_dir} has no child {name!r} (it has: {known}).")
        return children[name]

    def _read(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._state_path.read_text()))
        except FileNotFoundError:
            return {"children": {}}
        except (OSError, ValueError) as error:
            raise LocalError(f"{self._state_path} cannot be read: {error}.") from error

    def _write(self, state: Mapping[str, Any]) -> None:
        processes.write_whole(self._state_path, json.dumps(state, indent=1) + "\n")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        busy = f"Another command is changing the stack in {self.data_dir}: wait for it."
        try:
            with processes.exclusive(self.data_dir / ".stack.lock", busy, timeout_s=5.0):
                yield
        except OSError as error:
            raise LocalError(f"The data folder {self.data_dir} cannot be used: {error.strerror or error}.") from error


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return f": {lines[-1][:500]}" if lines else ""
