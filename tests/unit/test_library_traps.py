"""Calls of the Kafka library that end the process are not used."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_positions_are_not_asked_by_an_admin_client() -> None:
    """A coordinator that moves meanwhile is a segmentation fault: eventlog.positions asks by a consumer."""
    sources = [*ROOT.glob("libs/**/*.py"), *ROOT.glob("services/**/*.py")]
    assert len(sources) > 100
    assert [path for path in sources if "list_consumer_group_offsets(" in path.read_text()] == []


def test_a_coordinator_is_asked_without_a_time_out_of_the_library() -> None:
    """librdkafka#4605: see tests/contract/test_coordinator_late.py."""
    for path in ROOT.glob("libs/**/*.py"):
        text = path.read_text()
        for call in ("describe_consumer_groups(", "alter_consumer_group_offsets("):
            for part in text.split(call)[1:]:
                assert "request_timeout=NO_TIMEOUT_S" in part[:200], f"{path}: {call}"
