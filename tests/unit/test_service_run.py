"""The life of a service process: real processes, real signals, real exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from http.client import HTTPConnection
from pathlib import Path

import pytest

HEAD = """
import asyncio, sys
from postlane.eventlog.errors import Fenced, Unreachable, UnknownTopic
from postlane.service import run

class Base:
    def __init__(self, context):
        self.context, self.end, self.starts = context, asyncio.Event(), 0
    async def start(self): self.starts += 1
    async def run(self): await self.end.wait()
    async def stop(self): self.end.set()
    def not_ready(self): return None
"""


class Running:
    """A service process under test."""

    def __init__(self, folder: Path, body: str, **env: str) -> None:
        script = folder / "service.py"
        script.write_text(
            HEAD
            + textwrap.dedent(body)
            + "\nsys.exit(run('router', 0, Svc, stop_timeout_s=STOP))\n".replace(
                "STOP", "1" if "hangs" in body else "30"
            )
        )
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("POSTLANE_", "OTEL_"))}
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            cwd=folder,
            env={**clean, "POSTLANE_INSTANCE_ID": "i-1", "POSTLANE_DATA_DIR": str(folder / "data"), **env},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    def until(self, text: str) -> str:
        """The first line of the log that holds `text`."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"{text!r} never came: {self.lines}")

    def port(self) -> int:
        return int(self.until('"http":"127.0.0.1:').split('"http":"127.0.0.1:')[1].split('"')[0])

    def end(self, number: int | None = None) -> tuple[int, str]:
        if number is not None:
            self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=60)
        return self.process.returncode, "".join(self.lines) + rest


def readyz(port: int) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/readyz")
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0(tmp_path: Path, number: int) -> None:
    service = Running(tmp_path, "class Svc(Base): pass")
    port = service.port()
    service.until('"started"')
    assert readyz(port)[0] == 200
    code, log = service.end(number)
    assert (code, '"stopped"' in log) == (0, True)


def test_a_broker_that_does_not_answer_is_waited_for(tmp_path: Path) -> None:
    service = Running(
        tmp_path,
        """
        class Svc(Base):
            async def start(self):
                self.starts += 1
                if self.starts == 1: raise Unreachable("no broker answers at 127.0.0.1:1")
                if self.starts == 2: raise UnknownTopic("mail.events does not exist")
        """,
    )
    service.until("no broker answers")
    service.until("mail.events does not exist")
    service.until('"started"')
    assert service.end(signal.SIGTERM)[0] == 0


def test_while_it_waits_it_is_unready_says_why_and_can_be_stopped(tmp_path: Path) -> None:
    service = Running(
        tmp_path,
        """
        class Svc(Base):
            async def start(self): raise Unreachable("no broker answers")
        """,
    )
    port = service.port()
    service.until("cannot start yet")
    status, body = readyz(port)
    assert (status, "no broker answers" in body) == (503, True)
    assert service.end(signal.SIGTERM)[0] == 0


def test_a_start_that_never_returns_can_be_stopped(tmp_path: Path) -> None:
    service = Running(
        tmp_path,
        """
        class Svc(Base):
            async def start(self):
                print("waiting", file=sys.stderr, flush=True)
                await asyncio.Event().wait()
        """,
    )
    service.until("waiting")
    assert service.end(signal.SIGTERM)[0] == 0


def test_fenced_ends_it_with_1_and_a_clear_line(tmp_path: Path) -> None:
    service = Running(tmp_path, "class Svc(Base):\n    async def run(self): raise Fenced('router.i-1 is elsewhere')")
    code, log = service.end()
    assert code == 1
    assert "another process is this instance: router.i-1 is elsewhere" in log


def test_an_unexpected_exception_ends_it_with_1_and_a_traceback(tmp_path: Path) -> None:
    service = Running(tmp_path, "class Svc(Base):\n    async def run(self): raise ZeroDivisionError('by me')")
    code, log = service.end()
    assert code == 1
    assert "ZeroDivisionError: by me" in log


def test_a_service_that_ends_by_itself_is_a_failure(tmp_path: Path) -> None:
    service = Running(tmp_path, "class Svc(Base):\n    async def run(self): return")
    assert service.end()[0] == 1


def test_a_stop_that_hangs_is_cut_short(tmp_path: Path) -> None:
    service = Running(tmp_path, "class Svc(Base):  # hangs\n    async def stop(self): await asyncio.Event().wait()")
    service.until('"started"')
    code, log = service.end(signal.SIGTERM)
    assert (code, "cut short" in log) == (1, True)


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"POSTLANE_HTTP_PORT": "abc"}, "POSTLANE_HTTP_PORT"),
        ({"POSTLANE_CONFIG": "/nowhere.yaml"}, "/nowhere.yaml"),
        ({"POSTLANE_LOG_LEVEL": "loud"}, "POSTLANE_LOG_LEVEL"),
        ({"POSTLANE_DATA_DIR": "/proc/nowhere"}, "POSTLANE_DATA_DIR"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER"),
    ],
)
def test_a_configuration_error_is_one_line_and_2(tmp_path: Path, env: dict[str, str], says: str) -> None:
    code, log = Running(tmp_path, "class Svc(Base): pass", **env).end()
    assert code == 2
    (line,) = log.splitlines()
    assert says in line


def test_a_second_process_with_the_id_is_told_who_has_it(tmp_path: Path) -> None:
    first = Running(tmp_path, "class Svc(Base): pass")
    first.until('"started"')
    code, log = Running(tmp_path, "class Svc(Base): pass").end()
    assert code == 2
    assert f"instance id i-1 is already running here as router (pid {first.process.pid})" in log
    assert "POSTLANE_INSTANCE_ID" in log
    assert first.end(signal.SIGKILL)[0] == -signal.SIGKILL
    third = Running(tmp_path, "class Svc(Base): pass")
    third.until('"started"')
    assert third.end(signal.SIGTERM)[0] == 0
