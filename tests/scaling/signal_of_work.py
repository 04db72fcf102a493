"""What a scaler should go by: the committed lag, or what the senders tell, behind one slow mail and at rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from postlane.eventlog.admin import KafkaAdmin
from postlane.eventlog.kafka_config import ClientConfig
from postlane.eventlog.ports import Partition
from tests.acceptance.rig import Rig
from tests.scaling.pods import LANE, Pod
from tests.scaling.scale import PARTITIONS, rig_of

MAILS = 6000
SLOW = 12  # mails whose server sits on its reply, far fewer than the connections
SLOW_S = 60.0


def run(bootstrap: str, folder: Path, most: int) -> Iterator[dict[str, Any]]:
    """Slow mails first, many others behind them; then nothing at all."""
    with rig_of(bootstrap, folder) as rig:
        pod = Pod(rig, 0)
        try:
            pod.start()
            pod.until_ready()
            rig.practice.control.add_fault("delay", phase="dot", recipient="*@slow.example", delay_s=SLOW_S)
            began = time.monotonic()
            rig.publish(SLOW, LANE, domain="slow.example")
            rig.publish(MAILS, LANE)
            others = rig.until(lambda books: books.count("delivered") >= MAILS, "the others are delivered", SLOW_S)
            assert time.monotonic() - began < SLOW_S, "the machine is too slow for this measurement"
            assert others.count("delivered") == MAILS
            time.sleep(1.0)  # the gauges are set twice a second
            yield {"when": f"{SLOW} slow mails on their way, {MAILS} behind them settled", **_told(rig, pod)}
            rig.until_settled(150)
            time.sleep(6.0)  # the backlog is looked at every five seconds
            yield {"when": "nothing to do", **_told(rig, pod)}
            pod.terminate()
        finally:
            pod.kill()


def _told(rig: Rig, pod: Pod) -> dict[str, float]:
    return {
        "committed_lag": asyncio.run(_lag(rig)),
        "unread": pod.metric("backlog_records"),
        "unsettled": pod.metric("unsettled"),
    }


async def _lag(rig: Rig) -> int:
    """High watermarks − committed offsets: what KEDA's Kafka scaler sees."""
    admin = KafkaAdmin(ClientConfig(rig.bootstrap))
    partitions = [Partition(rig.names.dispatch(LANE), n) for n in range(PARTITIONS)]
    ends = await admin.high_watermarks(partitions)
    committed = await admin.group_offsets(rig.names.sender_group(LANE), partitions)
    return sum(ends[p] - (committed[p].offset if p in committed else 0) for p in partitions)
