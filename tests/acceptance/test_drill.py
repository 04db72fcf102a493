"""A short drill on real Kafka, and one against a stack that said it may be drilled, ended by a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from postlane.local.kafka import KafkaCluster
from postlane.ops.drill.run import Drill, Pace
from postlane.ops.drill.stage import scenarios
from postlane.ops.drill.throwaway import ThrowawaySite, Wanted

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
SHORT = Pace(per_s=30, before_s=0.5, after_s=0.5, hold_s=7.0)
ENDS_S = 120


@pytest.fixture(scope="module")
def site(kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawaySite]:
    with ThrowawaySite(kafka, tmp_path_factory.mktemp("drill"), Wanted(session_timeout_ms=6_000)) as site:
        yield site


def test_a_sender_that_dies_loses_nothing_and_repeats_nothing_outside_the_rule(site: ThrowawaySite) -> None:
    result = Drill(site, SHORT, lambda _: None).play(scenarios()["sender-crash"])
    assert result.broken == []
    assert result.unmet == []
    assert result.verdict == "passed"
    assert (result.lost, result.repeated) == (0, 0)
    assert result.rto_s is not None
    assert result.accepted > 0
    assert result.delivered + result.uncertain == result.accepted


def test_a_drill_against_a_staging_stack_undoes_its_fault_when_it_is_told_to_stop(
    site: ThrowawaySite, tmp_path: Path
) -> None:
    env = tmp_path / "staging.yaml"
    env.write_text(
        yaml.safe_dump(
            {
                "name": "staging",
                "drillable": True,
                "bootstrap_servers": site.bootstrap,
                "topic_prefix": site.names.prefix,
                "config": str(site.folder / "postlane.yaml"),
                "witness": {"url": site.witness.base_url, "listeners": ["primary", "backup"], "drillable": True},
                "mails_per_s": 30,
            }
        )
    )
    argv = [sys.executable, "-c", "from postlane.cli.main import main; main()", "drill", "provider-outage"]
    argv += ["--against", str(env), "--yes", "--json", "--hold", "100", "--report", str(tmp_path / "report"), "--short"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("POSTLANE_")}
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean)
    try:
        assert child.stderr is not None
        for line in child.stderr:
            if "listens no more" in line:
                break
        assert [rule["id"] for rule in site.witness.faults()] == ["drill-outage"]
        child.send_signal(signal.SIGTERM)
        said, told = child.communicate(timeout=ENDS_S)
    finally:
        child.kill()
        child.wait()
    assert site.witness.faults() == []
    assert child.returncode == 1
    assert json.loads(said)["results"][0]["verdict"] == "abandoned"
    assert "is called off" in told
    assert (tmp_path / "report" / "drill.html").is_file()
