"""What more than one kind of test needs: a real Kafka, and an SMTP server that keeps its own books."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from postlane.local.kafka import KafkaCluster
from postlane.local.practice import PracticeProcess


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """One broker for the whole test session, on free ports, gone afterwards."""
    cluster = KafkaCluster(tmp_path_factory.mktemp("kafka"), brokers=1, port=0, tied=True)
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def practice(tmp_path: Path) -> Iterator[PracticeProcess]:
    """A practice SMTP server of its own for the test, with the listeners `primary` and `backup`."""
    with PracticeProcess(tmp_path / "practice", ("primary", "backup")) as server:
        yield server
