"""Pid safety: a recycled pid is never taken for ours, and never signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from postlane.local import processes
from postlane.local.errors import LocalError
from postlane.local.processes import ProcessId

STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); signal.pause()"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    popen = subprocess.Popen(["sleep", "60"])
    yield popen
    popen.kill()
    popen.wait()


def test_a_recycled_pid_is_not_ours_and_is_left_alone(child: subprocess.Popen[bytes]) -> None:
    now = processes.identify(child.pid)
    assert now is not None
    before = replace(now, started=now.started + "0")  # whoever had the pid earlier
    assert not processes.is_alive(before)
    assert processes.send(before, signal.SIGKILL) is False
    assert processes.stop([before], grace_s=0.1) == []
    assert child.poll() is None
    assert processes.is_alive(now)


def test_a_zombie_is_not_alive() -> None:
    popen = subprocess.Popen(["true"])
    os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
    assert processes.identify(popen.pid) is None
    popen.wait()


def test_a_process_that_is_gone() -> None:
    popen = subprocess.Popen(["sleep", "60"])
    identity = processes.identify(popen.pid)
    assert identity is not None
    assert processes.stop([identity], grace_s=5.0) == []
    assert popen.wait() == -signal.SIGTERM
    assert processes.send(identity, signal.SIGTERM) is False
    assert not processes.is_alive(identity)
    assert not processes.is_alive(None)


def test_who_does_not_listen_is_killed_and_named() -> None:
    popen = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    assert popen.stdout is not None
    assert popen.stdout.readline() == b"on\n"
    identity = processes.identify(popen.pid)
    assert identity is not None
    assert processes.stop([identity], grace_s=0.05) == [identity]
    assert popen.wait() == -signal.SIGKILL
    popen.stdout.close()


def test_pid_files_are_read_back_and_nonsense_is_nobody(tmp_path: Path) -> None:
    path = tmp_path / "x" / "pid.json"
    identity = ProcessId(123, "boot:456")
    processes.write_pid_file(path, identity)
    assert processes.read_pid_file(path) == identity
    for text in ["", "{", "[]", "12", '{"pid": 1}', '{"pid": -1, "started": "x"}', '{"pid": "1", "started": "x"}']:
        path.write_text(text)
        assert processes.read_pid_file(path) is None
    assert processes.read_pid_file(tmp_path / "none") is None


def test_what_cannot_be_started_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"could not be started: No such file"):
        processes.spawn([str(tmp_path / "nothing")], log=tmp_path / "log", env={})


def test_a_lock_that_is_held_is_one_sentence(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with (
        processes.exclusive(lock, "busy"),
        pytest.raises(LocalError, match=r"^busy$"),
        processes.exclusive(lock, "busy"),
    ):
        pytest.fail("two hold it")
    with processes.exclusive(lock, "busy"):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's promise is Linux's")
def test_a_tied_child_ends_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import os; from pathlib import Path; from postlane.local import processes\n"
        f"child = processes.spawn(['sleep', '60'], log=Path({str(tmp_path / 'log')!r}), env=os.environ, tied=True)\n"
        "print(child.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    parent = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    pid = int(parent.stdout)
    left = [identity] if (identity := processes.identify(pid)) is not None else []
    assert processes.wait_gone(left, timeout_s=10.0) == []
