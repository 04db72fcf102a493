"""1 → N → 2 senders under load, each change with the manifests' discipline: nothing lost, repeated or uncertain."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.acceptance.rig import Rig
from tests.scaling.load import Arrivals, Load
from tests.scaling.pods import LANE, Pod

PER_S = 200.0
STEADY_S = 8.0
LEFT = 2
SESSION_TIMEOUT_MS = "10000"  # the default of the code, which the rig shortens for other tests
PARTITIONS = 12


def production_like(body: dict[str, Any]) -> None:
    """Bounds of the defaults where the rig has shorter ones."""
    body["lanes"][LANE] |= {"intent_ttl_s": 7, "drain_timeout_s": 20}
    for provider in body["providers"].values():
        provider["connections"] = 32


def rig_of(bootstrap: str, folder: Path) -> Rig:
    """Router and practice server; senders are pods of ours."""
    env = {"sender": {"POSTLANE_KAFKA_SESSION_TIMEOUT_MS": SESSION_TIMEOUT_MS}}
    return Rig(bootstrap, folder, senders=0, lanes=(LANE,), env=env, config=production_like, partitions=PARTITIONS)


def run(bootstrap: str, folder: Path, most: int) -> Iterator[dict[str, Any]]:
    """Up to `most` and down to LEFT; the books per id at the end."""
    with rig_of(bootstrap, folder) as rig:
        pods = [Pod(rig, n) for n in range(most)]
        spans = []
        try:
            pods[0].start()
            pods[0].until_ready()
            with Load(rig, PER_S) as load:
                time.sleep(STEADY_S)
                for pod in pods[1:]:
                    spans.append((f"to {pods.index(pod) + 1}", time.time()))
                    pod.start()
                    pod.until_ready()
                    time.sleep(STEADY_S)
                rss = max(pod.rss_mb() for pod in pods)
                for pod in reversed(pods[LEFT:]):
                    spans.append((f"to {pods.index(pod)}", time.time()))
                    pod.terminate()
                    time.sleep(STEADY_S + float(SESSION_TIMEOUT_MS) / 1000)
            books = rig.until_settled(120)
            for pod in pods[:LEFT]:
                pod.terminate()
            arrivals = Arrivals(rig, load)
        finally:
            for pod in pods:
                pod.kill()
    problems = books.problems(rig.accepted)
    problems += [f"{d}: uncertain after orderly stops" for d, told in books.deliveries.items() if told.doubts]
    problems += [f"{d}: {told.copies} copies" for d, told in books.deliveries.items() if told.copies != 1]
    assert not problems, f"{len(problems)} broken promises: {problems[:5]}"
    for what, at in spans:
        pauses = sorted(arrivals.pauses(at, at + STEADY_S + 12).values())
        yield {
            "change": what,
            "stopped_partitions": sum(pause > 1.0 for pause in pauses),
            "longest_s": round(max(pauses), 2),
        }
    yield {
        "mails": len(rig.accepted),
        "lost": 0,
        "repeated": 0,
        "uncertain": 0,
        "longest_drain_s": round(max(pod.drained_s for pod in pods), 2),
        "largest_rss_mb": round(rss),
    }
