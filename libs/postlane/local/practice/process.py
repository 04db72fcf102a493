"""The practice server as a process of its own: for tests, the demo, and the local stack."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from postlane.local import ports, processes
from postlane.local.errors import LocalError
from postlane.local.practice.client import PracticeControl

READY_TIMEOUT_S = 20.0
STOP_GRACE_S = 5.0


def argv(smtp: Mapping[str, int], http_port: int, ledger: Path, extra: Sequence[str] = ()) -> list[str]:
    """The command of a practice server with these listeners."""
    command = [sys.executable, "-m", "postlane.local.practice"]
    for name, port in smtp.items():
        command += ["--listen", f"{name}={port}"]
    return [*command, "--http-port", str(http_port), "--ledger", str(ledger), *extra]


class PracticeProcess:
    """A practice server in a child process; a context manager.

    `folder` gets ledger.ndjson and practice.log. Ports are free ones, kept over `kill` and `start`, so that a crash
    and its recovery can be played. `extra` are further options of the command, e.g. `--no-pipelining`. LocalError
    when it does not come up.
    """

    def __init__(self, folder: Path, listeners: Sequence[str] = ("primary",), extra: Sequence[str] = ()) -> None:
        free = ports.free_ports(len(listeners) + 1)
        self.ledger_path = folder / "ledger.ndjson"
        self.log_path = folder / "practice.log"
        self.smtp_ports = dict(zip(listeners, free, strict=False))
        self.http_port = free[-1]
        self.control = PracticeControl(f"http://{ports.HOST}:{self.http_port}")
        self._extra = tuple(extra)
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """Where it listens."""
        return ports.HOST

    @property
    def smtp_port(self) -> int:
        """The SMTP port of the first listener."""
        return next(iter(self.smtp_ports.values()))

    @property
    def pid(self) -> int | None:
        """Its pid while it runs."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def start(self) -> None:
        """Start it and wait until it answers."""
        if self.pid is not None:
            return
        command = argv(self.smtp_ports, self.http_port, self.ledger_path, self._extra)
        self._child = processes.spawn(command, log=self.log_path, env=os.environ, tied=True)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._answers():
            if self.pid is None or time.monotonic() > deadline:
                self.kill()
                last = (self.log_path.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
                raise LocalError(f"The practice SMTP server did not start: {last} (log: {self.log_path}).")
            time.sleep(0.01)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after STOP_GRACE_S."""
        if self._child is not None:
            self._child.terminate()
            try:
                self._child.wait(STOP_GRACE_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """SIGKILL; the ledger keeps what was accepted."""
        if self._child is not None:
            self._child.send_signal(signal.SIGKILL)
            self._child.wait()

    def __enter__(self) -> PracticeProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            return bool(self.control.health()["status"] == "ok")
        except (OSError, json.JSONDecodeError):
            return False
