"""A long run of mixed faults: what each process holds must be flat, whatever happened to it.

A process that was killed starts from nothing, so only samples of lives longer than a minute are compared: the median
of the last third of the run with that of the first, per service.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from postlane.ops.books_database import CACHE_KIB
from tests.chaos.town import BROKERS, Town

SAMPLE_EVERY_S = 5.0
SETTLED_AFTER_S = 60.0  # of a life; before that a process is still filling its caches
GROWTH_MAX = 1.25
SLACK = {"rss_mb": 24.0, "fds": 24.0, "threads": 6.0}
TOPICS_SLACK_MB_PER_MIN = 1.0
CACHES_MB = {"ledger": CACHE_KIB / 1024}  # that fill for longer than a life here lasts: SQLite's pages
_MEASURES = ("rss_mb", "fds", "threads")


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one time; `at_s` counts from the begin of the run, `age_s` from that of the process."""

    at_s: float
    name: str
    age_s: float
    rss_mb: float
    fds: int
    threads: int


class Sampler:
    """Samples every process of the town until `stop`; a thread of its own."""

    def __init__(self, town: Town) -> None:
        self._town = town
        self._began = time.time()
        self.samples: list[Sample] = []
        self.topics_mb: list[tuple[float, float]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stopping.wait(SAMPLE_EVERY_S):
            named = {name: self._town.stack.pid(name) for name in self._town.services}
            named |= {f"broker-{i}": self._town.kafka.pid(i) for i in range(BROKERS)}
            for name, pid in named.items():
                if pid is not None:
                    self._sample(name, pid)
            size = _bytes_of(self._town.broker_data(0)) / 1e6
            self.topics_mb.append((round(time.time() - self._began, 1), round(size, 1)))

    def _sample(self, name: str, pid: int) -> None:
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                self.samples.append(
                    Sample(
                        at_s=round(time.time() - self._began, 1),
                        name=name,
                        age_s=round(time.time() - process.create_time(), 1),
                        rss_mb=round(process.memory_info().rss / 1e6, 1),
                        fds=process.num_fds(),
                        threads=process.num_threads(),
                    )
                )
        except psutil.Error:
            return  # it has just ended


def verdict(sampler: Sampler) -> list[dict[str, Any]]:
    """One row for each service and measure: the first and the last third, and whether that is flat."""
    by_service: dict[str, list[Sample]] = defaultdict(list)
    for sample in sampler.samples:
        if sample.age_s >= SETTLED_AFTER_S:
            by_service[sample.name.partition("-")[0]].append(sample)
    rows: list[dict[str, Any]] = []
    for service, samples in sorted(by_service.items()):
        ordered = sorted(samples, key=lambda s: s.at_s)
        third = len(ordered) // 3
        if third < 3:
            rows.append({"service": service, "measure": "all", "samples": len(ordered), "flat": None})
            continue
        for measure in _MEASURES:
            first = statistics.median(getattr(s, measure) for s in ordered[:third])
            last = statistics.median(getattr(s, measure) for s in ordered[-third:])
            slack = SLACK[measure] + (CACHES_MB.get(service, 0.0) if measure == "rss_mb" else 0.0)
            flat = last <= first * GROWTH_MAX or last - first <= slack
            row = {"service": service, "measure": measure, "first": first, "last": last, "flat": flat}
            rows.append({**row, "samples": len(ordered), "most": max(getattr(s, measure) for s in ordered)})
    return [*rows, *_growth(sampler.topics_mb)]


def _growth(topics_mb: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """Topics keep what is published until retention, which no run outlasts: it is their growth that must be flat. By
    the largest size of each half, since a broker that lost its disk copies it all again."""
    half = len(topics_mb) // 2
    if half < 6:
        return []
    minutes = (topics_mb[-1][0] - topics_mb[0][0]) / 2 / 60
    middle, end = max(mb for _, mb in topics_mb[:half]), max(mb for _, mb in topics_mb)
    first, last = (middle - topics_mb[0][1]) / minutes, (end - middle) / minutes
    flat = last <= first * GROWTH_MAX + TOPICS_SLACK_MB_PER_MIN
    row = {"service": "topics", "measure": "mb_per_min", "first": round(first, 1), "last": round(last, 1), "flat": flat}
    return [{**row, "samples": len(topics_mb), "most": end}]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| service | measure | first third | last third | most | samples | flat |",
        "| --- |" * 1 + " --- |" + " ---: |" * 4 + " --- |",
    ]
    for row in rows:
        if row["flat"] is None:
            lines.append(
                f"| {row['service']} | all | | | | {row['samples']} | too few samples of lives over a minute |"
            )
        else:
            said = "yes" if row["flat"] else "**no**"
            lines.append(
                f"| {row['service']} | {row['measure']} | {row['first']} | {row['last']} | {row['most']} "
                f"| {row['samples']} | {said} |"
            )
    return "\n".join(lines)


def document(sampler: Sampler, rows: list[dict[str, Any]]) -> dict[str, Any]:
    samples = [asdict(sample) for sample in sampler.samples]
    return {"verdict": rows, "topics_mb_of_broker_0": sampler.topics_mb, "samples": samples}


def _bytes_of(folder: Path) -> int:
    """What a folder takes on disk; files that vanish meanwhile count as nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except OSError:
            continue
    return total
