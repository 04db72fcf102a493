"""Which alerts a Prometheus with the project's rules has seen: the real one judges, nothing is re-implemented here.

A throwaway stack gets a Prometheus of its own where the machine has one; a staging stack names its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import yaml

from postlane.local import ports, processes

INTERVAL_S = 1  # of scrapes and evaluations; a production Prometheus adds its own (15 s or 30 s are usual)
_READY_TIMEOUT_S = 20.0
_ASK_TIMEOUT_S = 5.0
RULES = Path("observability/prometheus/rules.yml")


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alert that is pending or firing. `since` is Unix time in seconds: since when its condition holds; `for_s` how
    long it has to. Rules that burn at several speeds share a name."""

    name: str
    labels: tuple[tuple[str, str], ...]
    state: str
    since: float
    severity: str
    for_s: float


class Prometheus:
    """Asks a Prometheus over its HTTP API. OSError when it does not answer."""

    def __init__(self, url: str) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"{url!r} is no http(s) URL")
        self.url = url.rstrip("/")

    def alarms(self) -> list[Alarm]:
        """Every pending and firing alert, heartbeats left out."""
        found = []
        for group in self._ask("/api/v1/rules?type=alert")["groups"]:
            for rule in group["rules"]:
                found += [_alarm(alert, float(rule["duration"])) for alert in rule["alerts"]]
        return [alarm for alarm in found if alarm.severity != "none"]

    def version(self) -> str:
        """Which Prometheus it is."""
        return str(self._ask("/api/v1/status/buildinfo")["version"])

    def _ask(self, path: str) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.url + path, timeout=_ASK_TIMEOUT_S) as answer:
            body = json.loads(answer.read())
        return body["data"]


def _alarm(alert: Mapping[str, Any], for_s: float) -> Alarm:
    labels = dict(alert["labels"])
    name, severity = labels.pop("alertname"), labels.pop("severity", "")
    return Alarm(name, tuple(sorted(labels.items())), alert["state"], _unix(alert["activeAt"]), severity, for_s)


def _unix(text: str) -> float:
    head, _, zone = text.partition("Z") if text.endswith("Z") else (text[:-6], "", text[-6:])
    return datetime.fromisoformat(f"{head[:26].rstrip('.')}{zone or '+00:00'}").timestamp()


def installed() -> str | None:
    """The program, where PATH has it."""
    return shutil.which("prometheus")


class PrometheusProcess:
    """A Prometheus of our own with these rules; `targets` are host:port by job. A context manager."""

    def __init__(self, folder: Path, rules: Path, targets: Mapping[str, Sequence[str]]) -> None:
        self._folder, self._rules, self._targets = folder, rules, targets
        self._port = ports.free_port()
        self._child: subprocess.Popen[bytes] | None = None
        self.client = Prometheus(f"http://{ports.HOST}:{self._port}")

    def __enter__(self) -> PrometheusProcess:
        program = installed()
        if program is None:
            raise FileNotFoundError("prometheus")
        config = self._folder / "prometheus.yml"
        processes.write_whole(config, yaml.safe_dump(self._config()))
        argv = [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={ports.HOST}:{self._port}",
            "--log.level=warn",
        ]
        self._child = processes.spawn(argv, log=self._folder / "prometheus.log", env=os.environ, tied=True)
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not self._answers():
            if self._child.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise OSError(f"Prometheus did not start (log: {self._folder / 'prometheus.log'})")
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it."""
        child, self._child = self._child, None
        if child is not None:
            child.terminate()
            try:
                child.wait(5.0)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _answers(self) -> bool:
        try:
            return bool(self.client.version())
        except (OSError, ValueError, KeyError):
            return False

    def _config(self) -> dict[str, Any]:
        return {
            "global": {"scrape_interval": f"{INTERVAL_S}s", "evaluation_interval": f"{INTERVAL_S}s"},
            "rule_files": [str(self._rules.absolute())],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(where)}]} for job, where in self._targets.items()
            ],
        }


def find_rules(given: Path | None = None) -> Path | None:
    """The rules: those that were named, else those of the checkout that this runs in or from."""
    if given is not None:
        return given
    here = Path(__file__).resolve()
    for folder in (Path.cwd(), *here.parents):
        if (folder / RULES).is_file():
            return folder / RULES
    return None
