"""The parts of the demo as processes, and the `postlane` command as a person would type it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from postlane.local import ports
from postlane.local.practice import PracticeControl, PracticeProcess
from postlane.local.stack import Stack

POSTLANE = Path(sys.executable).with_name("postlane")
COMMAND_TIMEOUT_S = 120
END_TIMEOUT_S = 30
PROVIDERS = ("primary", "backup")
# Two minutes are short, so retries and probes are, too; everything else is the default.
RETRY = {"first_s": 1, "factor": 2, "max_s": 4, "jitter": 0.2, "give_up_after": 8}
PROBES = {"breaker_probe_first_s": 0.5, "breaker_probe_max_s": 2}


class DemoFailed(Exception):
    """The demo cannot go on; the message is a sentence."""


class System:
    """Everything that runs. `command(...)` runs `postlane ...` against it."""

    def __init__(self, folder: Path, practice: PracticeProcess) -> None:
        self.folder = folder
        self.practice = practice
        self.stack = Stack(folder / "stack")
        self._begun: list[subprocess.Popen[str]] = []
        config = folder / "postlane.yaml"
        config.write_text(yaml.safe_dump(_configuration(practice.smtp_ports), sort_keys=False))
        # What is set for another installation must not reach this one; where Kafka's jars are cached may.
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("POSTLANE_") or key == "POSTLANE_CACHE_DIR"
        }
        self.database = folder / "stack" / "postlane.db"
        self.env = {
            **inherited,
            "POSTLANE_CONFIG": str(config),
            "POSTLANE_DATABASE_URL": f"sqlite:///{self.database}",
            "POSTLANE_DATA_DIR": str(folder / "client"),
        }

    @property
    def witness(self) -> PracticeControl:
        """The practice server's control interface."""
        return self.practice.control

    @property
    def bootstrap_servers(self) -> str:
        """Where Kafka listens, once it is up."""
        return self.env["POSTLANE_BOOTSTRAP_SERVERS"]

    def up(self, senders: int) -> dict[str, Any]:
        """`postlane up`; what it says."""
        options = ("--data-dir", str(self.stack.data_dir), "--senders", str(senders), "--kafka-port", "0")
        told = dict(json.loads(self.finish(self.begin("up", *options, "--no-practice-smtp", "--detach", "--json"))))
        self.env["POSTLANE_BOOTSTRAP_SERVERS"] = told["bootstrap_servers"]
        return told

    def down(self) -> None:
        """End what was begun, then `postlane down` in a session of its own: another Ctrl-C must not cut it short."""
        for child in self._begun:
            if child.poll() is None:
                child.terminate()
        for child in self._begun:
            try:
                child.communicate(timeout=END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
        argv = [str(POSTLANE), "down", "--data-dir", str(self.stack.data_dir)]
        subprocess.run(
            argv, env=self.env, start_new_session=True, timeout=COMMAND_TIMEOUT_S, check=False, capture_output=True
        )

    def command(self, *arguments: str, allowed: tuple[int, ...] = (0,)) -> str:
        """Run `postlane ARGUMENTS` and return its stdout. DemoFailed with what it said when its exit code is not one
        of `allowed`."""
        done = subprocess.run(
            [str(POSTLANE), *arguments], env=self.env, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
        )
        if done.returncode not in allowed:
            said = (done.stderr or done.stdout).strip()
            raise DemoFailed(f"`postlane {' '.join(arguments[:3])} …` ended with {done.returncode}: {said}")
        return done.stdout

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `postlane ARGUMENTS` and go on meanwhile."""
        command = [str(POSTLANE), *arguments]
        with _unbroken():  # a child that was started is a child that we know
            child = subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self._begun.append(child)
        return child

    def finish(self, child: subprocess.Popen[str]) -> str:
        """The stdout of a command begun earlier, once it has ended. DemoFailed when it failed."""
        out, err = child.communicate(timeout=COMMAND_TIMEOUT_S)
        if child.returncode != 0:
            raise DemoFailed(f"`{child.args!s:.200}` ended with {child.returncode}: {(err or out).strip()}")
        self._begun.remove(child)
        return out

    def kill(self, child: str) -> int:
        """SIGKILL; the pid that it was."""
        pid = self.stack.pid(child)
        if pid is None:
            raise DemoFailed(f"{child} does not run (log: {self.stack.log_path(child)})")
        self.stack.kill(child, signal.SIGKILL)
        return pid

    def restart(self, child: str) -> int:
        """Start it again as it was; its new pid, once it is ready."""
        self.stack.start(child)
        return self.stack.pid(child) or 0


@contextmanager
def running(folder: Path, senders: int) -> Iterator[System]:
    """A fresh system in `folder` that is gone afterwards, however the block ends."""
    _clear(folder)
    with _patient_end(), PracticeProcess(folder / "practice", PROVIDERS) as practice:
        system = System(folder, practice)
        try:
            system.up(senders)
            yield system
        finally:
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, signal.SIG_IGN)
            system.down()


def _clear(folder: Path) -> None:
    """What an earlier demo left in the folder, running or not, goes. A folder that is no demo's stays as it is."""
    mark = folder / ".demo"
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise DemoFailed(f"{folder} is not empty and was not made by the demo: choose another --data-dir")
    if Stack(folder / "stack").names():
        argv = [str(POSTLANE), "down", "--data-dir", str(folder / "stack")]
        subprocess.run(argv, timeout=COMMAND_TIMEOUT_S, check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mark.touch()


@contextmanager
def _patient_end() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does, with everything stopped."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {signum: signal.signal(signum, interrupt) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def _unbroken() -> Iterator[None]:
    """Signals that come within the block are felt at its end."""
    came: list[int] = []
    before = {s: signal.signal(s, lambda signum, _: came.append(signum)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if came:
        raise KeyboardInterrupt


def _configuration(smtp: dict[str, int]) -> dict[str, Any]:
    return {
        "lanes": {
            "transactional": {"in_doubt": "resend", "providers": list(smtp)},
            "bulk": {"in_doubt": "park", "providers": list(smtp)},
        },
        "providers": {name: {"host": ports.HOST, "port": port, "tls": "none", **PROBES} for name, port in smtp.items()},
        "retry": RETRY,
    }
