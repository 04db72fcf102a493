"""What ends is started again, unless it is held down; a broken start is tried again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from postlane.local import supervisor
from postlane.local.errors import LocalError
from postlane.local.supervisor import Supervisor

WAIT_S = 5.0


class Services:
    """A stack whose processes are names in a set."""

    def __init__(self, *names: str) -> None:
        self.running = set(names)
        self.all = list(names)
        self.refusals = 0

    def names(self) -> list[str]:
        return self.all

    def pid(self, name: str) -> int | None:
        return 1 if name in self.running else None

    def exit_code(self, name: str) -> int | None:
        return 1

    def launch(self, name: str) -> None:
        if self.refusals:
            self.refusals -= 1
            raise LocalError("not now")
        self.running.add(name)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_POLL_S", 0.005)
    monkeypatch.setattr(supervisor, "_AGAIN_S", 0.01)


@pytest.fixture
def watched() -> Iterator[tuple[Services, Supervisor]]:
    services: Any = Services("sender-1", "sender-2")
    watching = Supervisor(services)
    watching.start()
    yield services, watching
    watching.stop()


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_ends_is_started_again_and_counted(watched: tuple[Services, Supervisor]) -> None:
    services, watching = watched
    services.refusals = 2
    services.running.discard("sender-1")
    until(lambda: "sender-1" in services.running)
    until(lambda: watching.starts["sender-1"] == 1)
    assert watching.starts.total() == 1


def test_what_is_held_down_stays_down(watched: tuple[Services, Supervisor]) -> None:
    services, watching = watched
    watching.hold(["sender-1"])
    services.running -= {"sender-1", "sender-2"}
    until(lambda: "sender-2" in services.running)
    assert "sender-1" not in services.running
    watching.let_go(["sender-1"])
    until(lambda: "sender-1" in services.running)
