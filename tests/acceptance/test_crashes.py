"""A sender is killed with SIGKILL at each named point; another takes its partitions over, or it comes back itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from postlane.local.kafka import KafkaCluster
from tests.acceptance.rig import Rig

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
POINTS = ("before_intent", "after_intent", "after_dot", "after_reply", "in_commit", "after_commit")


def failing(folder: Path, point: str, count: int) -> dict[str, dict[str, str]]:
    return {"sender-1": {"POSTLANE_TEST_FAILPOINT": f"{point}:{count}@{folder / 'fired'}"}}


def one_ahead(body: dict[str, Any]) -> None:
    """At most two intents open a connection, however fast the server is: a bound that can be told from the load."""
    for lane in body["lanes"].values():
        lane["ahead_per_connection"] = 1


@pytest.mark.parametrize("point", POINTS)
def test_another_takes_over(kafka: KafkaCluster, tmp_path: Path, point: str) -> None:
    count = 4 if point in ("before_intent", "in_commit", "after_commit") else 12
    with Rig(
        kafka.bootstrap_servers, tmp_path, senders=2, env=failing(tmp_path, point, count), config=one_ahead
    ) as rig:
        while rig.stack.pid("sender-1") is not None and len(rig.accepted) < 3000:
            rig.publish(30)
            rig.publish(30, lane="bulk")
        rig.until_gone("sender-1")  # publishing is quicker than a sender on a busy machine
        books = rig.until_settled()
        assert books.problems(rig.accepted) == []
        assert books.count("delivered") + books.count("uncertain") == len(rig.accepted)
        # No more doubts than there were intents open: two a connection, eight connections, two lanes.
        assert sum(d.doubts for d in books.deliveries.values()) <= 32


@pytest.mark.parametrize("point", POINTS)
def test_it_comes_back(kafka: KafkaCluster, tmp_path: Path, point: str) -> None:
    """The same instance: its partitions without a rebalance, its flight recorder with them."""
    count = 4 if point in ("before_intent", "in_commit", "after_commit") else 12
    with Rig(kafka.bootstrap_servers, tmp_path, senders=1, env=failing(tmp_path, point, count)) as rig:
        rig.publish(100)
        rig.publish(100, lane="bulk")
        rig.until_gone("sender-1")
        rig.stack.start("sender-1")
        books = rig.until_settled()
        assert books.problems(rig.accepted) == []
        doubted = [i for i, d in books.deliveries.items() if d.doubts]
        # Only what was handed to the transport and not answered stays in doubt: one a connection at most.
        assert len(doubted) <= 16
        for ident in doubted:
            assert books.deliveries[ident].copies >= 1, f"{ident}: the recorder proves that its body was never begun"
