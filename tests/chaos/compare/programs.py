"""Child processes of a trial: started with a log, signalled by pid or process group, ended at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from postlane.local import processes


class Program:
    """A command that can be started again after it was killed."""

    def __init__(self, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self._argv = list(argv)
        self._log = log
        self._env = {**os.environ, **(env or {})}
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        self._child = processes.spawn(self._argv, log=self._log, env=self._env, tied=True)

    def kill_group(self) -> None:
        """SIGKILL to it and every process that it started (spawn gives each program a group of its own)."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        assert self._child is not None
        self._child.wait(10)

    def children(self) -> list[int]:
        return children_of(self.pid)

    def stop(self) -> None:
        if self._child is None or self._child.poll() is not None:
            return
        self._child.terminate()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self.kill_group()


def children_of(pid: int) -> list[int]:
    """The processes that `pid` started and that still run."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in task.read_text().split()]
    return found


def gone(pids: Sequence[int], timeout_s: float = 10.0) -> None:
    """Returns when none of these runs any more."""
    deadline = time.monotonic() + timeout_s
    while any(processes.identify(pid) is not None for pid in pids):
        assert time.monotonic() < deadline, f"still running: {pids}"
        time.sleep(0.02)
