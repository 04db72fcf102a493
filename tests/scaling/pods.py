"""Sender processes as pods: started when asked, ready by /readyz, ended by SIGTERM within the manifests' grace."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from postlane.local.stack import ChildSpec
from tests.acceptance.rig import Rig

GRACE_S = 75.0  # terminationGracePeriodSeconds of the manifests (tests/unit/test_k8s_manifests.py holds them to it)
READY_TIMEOUT_S = 90.0
LANE = "bulk"


class Pod:
    """One sender of the rig's lane under the name that a StatefulSet would give it."""

    def __init__(self, rig: Rig, ordinal: int, *, dynamic: bool = False) -> None:
        self.name = f"sender-{LANE}-{ordinal}"
        self._spec: ChildSpec = rig._child("sender", self.name)
        module = "tests.scaling.dynamic_sender" if dynamic else "postlane_sender"
        self._argv = [sys.executable, "-m", module]
        self._log = rig.folder / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.drained_s = 0.0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        with self._log.open("ab") as log:
            env = {**os.environ, **self._spec.env}
            self._process = subprocess.Popen(self._argv, env=env, stdout=log, stderr=subprocess.STDOUT)

    def until_ready(self) -> float:
        """Returns the seconds until /readyz was 200."""
        began = time.monotonic()
        while not self.is_ready():
            assert self.running, f"{self.name} ended: {self._tail()}"
            assert time.monotonic() - began < READY_TIMEOUT_S, f"{self.name} is not ready: {self._tail()}"
            time.sleep(0.05)
        return time.monotonic() - began

    def is_ready(self) -> bool:
        assert self._spec.ready_url is not None
        try:
            with urllib.request.urlopen(self._spec.ready_url, timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def terminate(self) -> None:
        """SIGTERM; AssertionError unless it ends in order, with 0, within the grace."""
        assert self._process is not None
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"{self.name} outlived its grace of {GRACE_S} s: {self._tail()}") from None
        self.drained_s = time.monotonic() - began
        assert code == 0, f"{self.name} ended with {code}: {self._tail()}"

    def kill(self) -> None:
        """For the end of a test that failed."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)

    def metric(self, name: str) -> float:
        """A gauge of the lane, as /metrics tells it."""
        with urllib.request.urlopen(f"{self._spec.url}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        found = re.search(rf'^postlane_sender_{name}{{lane="{LANE}"}} ([0-9.e+-]+)', text, re.M)
        assert found is not None, f"{self.name} does not tell postlane_sender_{name}"
        return float(found[1])

    def rss_mb(self) -> float:
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def _tail(self) -> str:
        return self._log.read_text()[-600:]
