"""What a rolling restart and a scale-down cost: static members, static ones that are removed, dynamic ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from postlane.eventlog.admin import KafkaAdmin
from postlane.eventlog.kafka_config import ClientConfig
from postlane.eventlog.leave import remove_static_member
from tests.acceptance.rig import Rig
from tests.scaling.load import Arrivals, Load
from tests.scaling.pods import LANE, Pod
from tests.scaling.scale import rig_of

PER_S = 200.0
QUIET_S = 4.0
WATCH_S = 16.0
PODS = 3


def run(bootstrap: str, folder: Path, most: int) -> Iterator[dict[str, Any]]:
    """Each kind of membership with a system of its own."""
    yield from _measure(bootstrap, folder / "static", "static", dynamic=False, after=lambda rig, pod: None)
    yield from _measure(bootstrap, folder / "removed", "static, removed", dynamic=False, after=_remove, restart=False)
    yield from _measure(bootstrap, folder / "dynamic", "dynamic", dynamic=True, after=lambda rig, pod: None)


def _measure(
    bootstrap: str,
    folder: Path,
    name: str,
    *,
    dynamic: bool,
    after: Callable[[Rig, Pod], None],
    restart: bool = True,
) -> Iterator[dict[str, Any]]:
    with rig_of(bootstrap, folder) as rig:
        pods = [Pod(rig, n, dynamic=dynamic) for n in range(PODS)]
        spans: list[tuple[str, float, float]] = []
        try:
            for pod in pods:
                pod.start()
            for pod in pods:
                pod.until_ready()
            with Load(rig, PER_S) as load:
                time.sleep(2 * QUIET_S)
                if restart:
                    spans.append(_restart_all(pods))
                began = time.time()
                pods[-1].terminate()
                after(rig, pods[-1])
                time.sleep(WATCH_S)
                spans.append(("scale-down by one", began, time.time()))
            books = rig.until_settled(120)
            arrivals = Arrivals(rig, load)
            for pod in pods[:-1]:
                pod.terminate()
        finally:
            for pod in pods:
                pod.kill()
    problems = books.problems(rig.accepted)
    assert not problems, f"{name}: {problems[:5]}"
    uncertain = sum(told.doubts for told in books.deliveries.values())
    assert not uncertain, f"{name}: {uncertain} uncertain after orderly stops"
    for what, since, until in spans:
        pauses = sorted(arrivals.pauses(since, until).values())
        yield {
            "members": name,
            "change": what,
            "partitions": len(pauses),
            "stopped_over_1_s": sum(pause > 1.0 for pause in pauses),
            "longest_s": round(max(pauses), 2),
            "sum_s": round(sum(pauses), 1),
        }


def _restart_all(pods: list[Pod]) -> tuple[str, float, float]:
    """One after the other, each ready again before the next: what a rollout of a StatefulSet does."""
    began = time.time()
    for pod in reversed(pods):
        pod.terminate()
        pod.start()
        pod.until_ready()
        _until_all_ready(pods)
        time.sleep(QUIET_S)
    until = time.time()
    time.sleep(QUIET_S)  # what comes next begins a pause that is not of the restart
    return f"rolling restart of {len(pods)}", began, until


def _until_all_ready(pods: list[Pod]) -> None:
    for pod in pods:
        pod.until_ready()


def _remove(rig: Rig, pod: Pod) -> None:
    """What Java's removeMembersFromConsumerGroup does; librdkafka has no such call (postlane.eventlog.leave)."""
    group = rig.names.sender_group(LANE)

    async def removed() -> None:
        admin = KafkaAdmin(ClientConfig(rig.bootstrap))
        members = (await admin.groups([group]))[group].members
        member = next(member for member in members if member.instance_id == pod.name)
        await remove_static_member(rig.bootstrap, {}, group, pod.name, member.member_id)

    asyncio.run(removed())
