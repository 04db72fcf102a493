"""Publish to delivered, through every service, on real Kafka."""

from __future__ import annotations

from pathlib import Path

import pytest

from postlane.local.kafka import KafkaCluster
from tests.acceptance.rig import Rig

pytestmark = pytest.mark.kafka


def test_what_is_published_is_delivered_once(kafka: KafkaCluster, tmp_path: Path) -> None:
    with Rig(kafka.bootstrap_servers, tmp_path, senders=2, ledger=False) as rig:
        rig.publish(100)
        rig.publish(100, lane="bulk")
        books = rig.until_settled()
        assert books.problems(rig.accepted) == []
        assert books.summary() == {"delivered": 200, "copies": 200, "doubts": 0}
