"""Sender processes under measurement: started with a configuration, watched through their /metrics, ended by signal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from postlane.eventlog.topics import TopicNames
from postlane.local import ports

_DONE = re.compile(r'^postlane_sender_outcomes_total\{lane="bulk",outcome="Delivered"\} ([0-9.e+]+)', re.M)


class SenderProcess:
    """One `python -m postlane_sender` for lane `bulk` that sends to one SMTP port."""

    def __init__(
        self, bootstrap: str, names: TopicNames, folder: Path, port: int, *, name: str = "sender-1", **lane: Any
    ) -> None:
        connections = lane.pop("connections", 32)
        more: dict[str, str] = lane.pop("env", {})
        body = {
            "lanes": {"bulk": {"in_doubt": "park", "providers": ["sink"], **lane}},
            "providers": {"sink": {"host": "127.0.0.1", "port": port, "tls": "none", "connections": connections}},
        }
        self.folder = folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "postlane.yaml"
        config.write_text(yaml.safe_dump(body))
        self.http_port = ports.free_port()
        self._env = {
            **os.environ,
            "POSTLANE_BOOTSTRAP_SERVERS": bootstrap,
            "POSTLANE_TOPIC_PREFIX": names.prefix,
            "POSTLANE_CONFIG": str(config),
            "POSTLANE_INSTANCE_ID": name,
            "POSTLANE_HTTP_PORT": str(self.http_port),
            "POSTLANE_DATA_DIR": str(self.folder / "data"),
            **more,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> SenderProcess:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "postlane_sender"], env=self._env, stderr=log)
        return self

    def __enter__(self) -> SenderProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(signal.SIGTERM)

    def end(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(60)

    def delivered(self) -> int:
        """Deliveries settled so far, 0 while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=5) as answer:
                found = _DONE.search(answer.read().decode())
        except OSError:
            return 0
        return round(float(found[1])) if found else 0

    def rss_mb(self) -> float:
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def until(condition: Callable[[], bool], what: str, timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s: {what}")
        time.sleep(0.05)


def throughput(senders: list[SenderProcess], count: int, skip: float = 0.1) -> float:
    """Mails a second of all senders together, from the moment that `skip` of `count` is done until 95 %."""

    def done() -> int:
        return sum(sender.delivered() for sender in senders)

    until(lambda: done() >= count * skip, "the first mails are sent")
    began, first = time.perf_counter(), done()
    until(lambda: done() >= count * 0.95, "the mails are sent")
    return (done() - first) / (time.perf_counter() - began)
