"""Processes that outlive the command that started them: spawn, recognise again, stop.

A pid alone is not an identity: the kernel hands it out again. Every process is therefore remembered with its start
time, and is signalled only when both agree (on Linux through a pidfd, so that nothing can change in between).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from postlane.local.errors import LocalError

_POLL_S = 0.02
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process: its pid and when it started (`started` is opaque and differs for every process of a machine)."""

    pid: int
    started: str

    def as_json(self) -> dict[str, int | str]:
        """For a state file; `from_json` is the way back."""
        return {"pid": self.pid, "started": self.started}

    @staticmethod
    def from_json(value: object) -> ProcessId | None:
        """None when the value is not a process identity (a torn or foreign file)."""
        if not isinstance(value, dict):
            return None
        pid, started = value.get("pid"), value.get("started")
        if isinstance(pid, int) and pid > 0 and isinstance(started, str):
            return ProcessId(pid, started)
        return None


def identify(pid: int) -> ProcessId | None:
    """The process that has this pid now; None when there is none, or only a zombie that nobody reaped yet."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()
        if fields[0] in ("Z", "X"):
            return None
        return ProcessId(pid, f"{boot}:{fields[19]}")
    answer = subprocess.run(  # lstart is in whole seconds: good enough where there is no /proc
        ["ps", "-p", str(pid), "-o", "state=,lstart="], capture_output=True, text=True, timeout=10, check=False
    )
    state, _, started = answer.stdout.strip().partition(" ")
    if answer.returncode != 0 or not started or state.startswith("Z"):
        return None
    return ProcessId(pid, started.strip())


def is_alive(process: ProcessId | None) -> bool:
    """Whether exactly this process, not another one under its pid, still runs."""
    return process is not None and identify(process.pid) == process


def send(process: ProcessId, signum: int) -> bool:
    """Signal exactly this process; False when it is gone."""
    if not hasattr(os, "pidfd_open"):
        if not is_alive(process):
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signum)
            return True
        return False
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        if not is_alive(process):  # asked after the handle was taken: the handle is of this process
            return False
        signal.pidfd_send_signal(handle, signum)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def wait_gone(processes: Iterable[ProcessId], timeout_s: float) -> list[ProcessId]:
    """Wait until all have ended; returns those still alive after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    left = [process for process in processes if is_alive(process)]
    while left and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        left = [process for process in left if is_alive(process)]
    return left


def stop(processes: Iterable[ProcessId], grace_s: float, kill_wait_s: float = 10.0) -> list[ProcessId]:
    """SIGTERM to all at once, `grace_s` seconds to end, then SIGKILL; returns those that had to be killed.

    Raises LocalError when one survives even that (a process stuck in the kernel).
    """
    asked = [process for process in processes if send(process, signal.SIGTERM)]
    killed = wait_gone(asked, grace_s)
    for process in killed:
        send(process, signal.SIGKILL)
    stuck = wait_gone(killed, kill_wait_s)
    if stuck:
        pids = ", ".join(str(process.pid) for process in stuck)
        raise LocalError(f"Process {pids} did not end {kill_wait_s:.0f} s after SIGKILL; look at it with `ps`.")
    return killed


def spawn(
    argv: Sequence[str], *, log: Path, env: Mapping[str, str], cwd: Path | None = None, tied: bool = False
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, its output appended to `log`.

    With `tied` it is asked to end when the thread that started it ends (Linux; for tests, whose runner may be
    killed). Raises LocalError when it cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("ab") as out:
            return subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
                preexec_fn=_death_wish() if tied else None,
            )
    except OSError as error:
        raise LocalError(f"{argv[0]} could not be started: {error.strerror or error}.") from error


def write_pid_file(path: Path, process: ProcessId) -> None:
    """Replace the file in one step, so that a reader never sees half of it."""
    write_whole(path, json.dumps(process.as_json()) + "\n")


def read_pid_file(path: Path) -> ProcessId | None:
    """The process that the file names; None when there is no file or nothing sensible in it."""
    try:
        return ProcessId.from_json(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def write_whole(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a small file so that it is either the old or the new one, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


@contextlib.contextmanager
def exclusive(path: Path, busy: str, timeout_s: float = 0.0) -> Iterator[None]:
    """Hold a lock on the file; the lock goes with the process, however it ends.

    Raises LocalError(busy) when another process holds it for longer than `timeout_s`.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    with path.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LocalError(busy) from None
                time.sleep(_POLL_S)
        yield


def _death_wish() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask
