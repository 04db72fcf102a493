"""A proof that cannot fail proves nothing: with a guard taken out, the same checker must find a broken promise.

These are the guards that real Kafka can be brought to miss; the simulation takes the others (docs/proof.md).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from postlane.local.kafka import KafkaCluster
from tests.acceptance.rig import Rig

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def without(rule: str, folder: Path, failpoint: str = "") -> dict[str, dict[str, str]]:
    own = {"POSTLANE_TEST_RULES_OFF": rule}
    if failpoint:
        own["POSTLANE_TEST_FAILPOINT"] = f"{failpoint}@{folder / 'fired'}"
    return {"sender-1": own, "router-1": {"POSTLANE_TEST_RULES_OFF": rule}}


@pytest.mark.parametrize("rule", ["doubt_is_not_fresh", "intent_before_body"])
def test_a_kill_after_the_reply(kafka: KafkaCluster, tmp_path: Path, rule: str) -> None:
    """The server has the mail, the books do not say so: taken for fresh, or without an intent, it is sent again."""
    env = without(rule, tmp_path, "after_reply:12")
    with Rig(kafka.bootstrap_servers, tmp_path, env=env, lanes=("transactional",)) as rig:
        rig.publish(60)
        rig.until_gone("sender-1")
        rig.stack.start("sender-1")
        books = rig.until(lambda b: b.problems({}) != [], "the checker finds the broken promise", 40)
        problems = [problem for problem in books.problems({}) if "not settled" not in problem]
        assert any("copies" in problem or "without an intent" in problem for problem in problems), problems


def test_a_connection_lost_after_the_dot(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Counted as not sent, it is sent again and no doubt says so."""
    env = without("lost_after_dot_is_doubt", tmp_path)
    with Rig(kafka.bootstrap_servers, tmp_path, env=env, lanes=("bulk",)) as rig:
        rig.practice.control.add_fault("accept_drop", "dot", probability=0.3, seed=3, count=10)
        rig.publish(60, lane="bulk")
        books = rig.until_settled()
        assert any("copies and 0 doubts" in problem for problem in books.problems(rig.accepted))
