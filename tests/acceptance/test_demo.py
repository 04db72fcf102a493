"""`make demo` in a short form, and interrupted: so that what the README shows first cannot rot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
ENDS_S = 200
pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the demo keeps everything; whatever it leaves running there is ended."""
    where = tmp_path / "demo"
    yield where
    for process in _left_running(where):
        process.kill()


def _begin(folder: Path, recipients: int) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "demo", "--recipients", str(recipients), "--rate", "50", "--data-dir", str(folder)]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _left_running(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(str(folder) in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.timeout(ENDS_S + 60)
def test_the_demo_ends_with_books_that_agree(folder: Path) -> None:
    child = _begin(folder, 200)
    said, _ = child.communicate(timeout=ENDS_S)
    assert child.returncode == 0, said
    assert said.count("compared per id: 0 disagreements") == 2, said
    assert "kill -9 of sender-2" in said
    assert "repeated 1 " in said, said  # the one mail that was taken without an answer, on a lane that resends
    assert _left_running(folder) == []


@pytest.mark.timeout(ENDS_S + 60)
def test_an_interrupted_demo_leaves_nothing_running(folder: Path) -> None:
    child = _begin(folder, 400)
    assert child.stdout is not None
    line = next(line for line in child.stdout if "goes on meanwhile" in line or "failed" in line)
    assert "failed" not in line, line
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=ENDS_S)
    assert child.returncode == 130, said
    assert _left_running(folder) == []


def test_a_folder_that_is_not_the_demos_is_left_alone(tmp_path: Path) -> None:
    keep = tmp_path / "mine.txt"
    keep.write_text("mine")
    child = _begin(tmp_path, 100)
    said, _ = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "choose another --data-dir" in said
    assert keep.read_text() == "mine"
