"""Celery (acks_late, prefork) over Redis as a contestant: the whole worker killed, or the processes of its pool."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from postlane.local import ports
from postlane.local.practice import PracticeProcess
from tests.chaos.compare.programs import Program, gone
from tests.chaos.compare.trial import CONNECTIONS

_HERE = Path(__file__).parent


def missing() -> str | None:
    """Why it cannot be tried on this machine; None when it can."""
    return None if shutil.which("redis-server") else "redis-server is not installed (Debian: apt install redis-server)"


class CeleryPool:
    def __init__(self, folder: Path, python: Path, *, whole_worker: bool) -> None:
        self.name = "Celery over Redis, acks_late, prefork"
        self.killed = "worker and pool" if whole_worker else "every process of the pool"
        self._whole = whole_worker
        self._practice = PracticeProcess(folder / "practice")
        self._redis_port = ports.free_port()
        self._python = str(python)
        folder.mkdir(parents=True, exist_ok=True)
        self._redis = Program(
            [
                *("redis-server", "--bind", "127.0.0.1", "--port", str(self._redis_port)),
                *("--save", "", "--appendonly", "no", "--dir", str(folder)),
            ],
            folder / "redis.log",
        )
        self._env = {
            "COMPARE_BROKER": f"redis://127.0.0.1:{self._redis_port}/0",
            "COMPARE_SMTP_PORT": str(self._practice.smtp_port),
            "PYTHONPATH": str(_HERE),
        }
        self._worker = Program(
            [
                *(self._python, "-m", "celery", "-A", "celery_tasks", "worker", "--pool", "prefork"),
                *("--concurrency", str(CONNECTIONS), "--loglevel", "warning", "--without-gossip", "--without-mingle"),
            ],
            folder / "celery.log",
            self._env,
        )

    def __enter__(self) -> CeleryPool:
        self._practice.start()
        self._redis.start()
        deadline = time.monotonic() + 10
        while self._ask("PING") != "+PONG":
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.05)
        return self

    def __exit__(self, *args: object) -> None:
        self._worker.stop()
        self._redis.stop()
        self._practice.stop()

    @property
    def practice(self) -> PracticeProcess:
        return self._practice

    def accept(self, recipients: Sequence[str]) -> None:
        subprocess.run(
            [self._python, str(_HERE / "celery_tasks.py")],
            input="\n".join(recipients),
            text=True,
            env={**os.environ, **self._env},
            timeout=120,
            check=True,
        )

    def start(self) -> None:
        if self._whole or self._practice.control.health()["records"] == 0:
            self._worker.start()  # a pool replaces its own processes

    def kill(self) -> None:
        if self._whole:
            self._worker.kill_group()
            return
        pool = self._worker.children()
        assert pool, "the pool has no processes"
        for pid in pool:
            os.kill(pid, signal.SIGKILL)
        gone(pool)

    def pending(self) -> int | None:
        answers = [self._ask("LLEN", "celery"), self._ask("HLEN", "unacked")]
        if not all(a.startswith(":") for a in answers):
            return None
        return sum(int(a[1:]) for a in answers)

    def uncertain(self) -> frozenset[str]:
        return frozenset()

    def note(self) -> str:
        return "visibility time-out 15 s; a pool process that dies has its task acknowledged (the default)"

    def _ask(self, *words: str) -> str:
        """One question in Redis's own protocol, so that the harness needs no client."""
        request = f"*{len(words)}\r\n" + "".join(f"${len(w)}\r\n{w}\r\n" for w in words)
        try:
            with socket.create_connection(("127.0.0.1", self._redis_port), timeout=5) as connection:
                connection.sendall(request.encode())
                return connection.recv(200).decode().strip()
        except OSError:
            return ""
