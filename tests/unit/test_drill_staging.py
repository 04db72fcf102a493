"""What a drill refuses to touch, and that it undoes what it did."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from postlane.local.practice import PracticeProcess
from postlane.ops.drill.scene import SCENARIOS, Abandoned, Scene
from postlane.ops.drill.site import FAULT_ID, Refused, Unusable
from postlane.ops.drill.stage import scenarios
from postlane.ops.drill.staging import StagingSite, read_staging


def _describe(folder: Path, practice: PracticeProcess | None = None, **changes: Any) -> Path:
    ports = practice.smtp_ports if practice else {"primary": 2525}
    config = {
        "lanes": {"transactional": {"providers": list(ports)}},
        "providers": {name: {"host": "127.0.0.1", "port": port, "tls": "none"} for name, port in ports.items()},
    }
    (folder / "postlane.yaml").write_text(yaml.safe_dump(config))
    url = practice.control.base_url if practice else "http://127.0.0.1:1"
    body = {
        "name": "staging",
        "drillable": True,
        "bootstrap_servers": "127.0.0.1:1",
        "config": "postlane.yaml",
        "witness": {"url": url, "listeners": list(ports), "drillable": True},
        **changes,
    }
    path = folder / "staging.yaml"
    path.write_text(yaml.safe_dump(body))
    return path


@pytest.mark.parametrize("mark", [{"drillable": False}, {"drillable": None}])
def test_a_stack_that_is_not_marked_is_refused(tmp_path: Path, mark: dict[str, Any]) -> None:
    path = _describe(tmp_path, **mark)
    if mark["drillable"] is None:
        body = yaml.safe_load(path.read_text())
        del body["drillable"]
        path.write_text(yaml.safe_dump(body))
    with pytest.raises(Refused, match="drillable") as refused:
        read_staging(path)
    assert refused.value.exit_code == 4


def test_a_witness_that_is_not_marked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="witness"):
        read_staging(_describe(tmp_path, witness={"url": "http://127.0.0.1:1"}))


def test_a_misspelt_key_is_used_wrongly_and_named(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="did you mean 'budget'") as unusable:
        read_staging(_describe(tmp_path, budgets={"seconds": 1}))
    assert unusable.value.exit_code == 2


def test_only_marked_services_can_be_killed(tmp_path: Path) -> None:
    started, killed = tmp_path / "started", tmp_path / "killed"
    service = {"service": "sender", "kill": ["touch", str(killed)], "start": ["touch", str(started)]}
    path = _describe(
        tmp_path,
        services=[
            {"name": "sender-1", "drillable": True, **service},
            {"name": "sender-2", **service},
            {"name": "router-1", "drillable": True, "service": "router"},  # nobody says how
        ],
    )
    site = StagingSite(read_staging(path), tmp_path, {})
    assert site.of("sender") == ["sender-1"]
    assert site.abilities == {"witness", "kill:sender"}
    site.kill("sender-1")
    site.launch("sender-1")
    assert killed.exists()
    assert started.exists()
    possible = {name for name, scenario in scenarios().items() if scenario.why_not(site) is None}
    assert possible == {"provider-outage", "all-providers-down", "sender-crash"}


def test_providers_that_are_not_the_witness_are_refused(tmp_path: Path, practice: PracticeProcess) -> None:
    path = _describe(tmp_path, practice)
    StagingSite(read_staging(path), tmp_path, {}).check()
    config = yaml.safe_load((tmp_path / "postlane.yaml").read_text())
    config["providers"]["real"] = {"host": "smtp.example.net", "port": 587}
    (tmp_path / "postlane.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(Refused, match="real"):
        StagingSite(read_staging(path), tmp_path, {}).check()


def test_undo_takes_away_the_faults_of_drills_and_no_others(tmp_path: Path, practice: PracticeProcess) -> None:
    practice.control.add_fault("refuse", id=f"{FAULT_ID}outage", server="primary")
    practice.control.add_fault("delay", "dot", id="mine", delay_s=0.1)
    site = StagingSite(read_staging(_describe(tmp_path, practice)), tmp_path, {})
    site.undo(lambda _: None)
    assert [rule["id"] for rule in practice.control.faults()] == ["mine"]


@pytest.mark.parametrize("name", ["provider-outage", "all-providers-down"])
def test_a_fault_is_undone_when_the_drill_is_abandoned(tmp_path: Path, practice: PracticeProcess, name: str) -> None:
    site = StagingSite(read_staging(_describe(tmp_path, practice)), tmp_path, {})
    scenarios()
    scene = Scene(site, None, None, lambda: None, lambda _: None)  # type: ignore[arg-type]
    found = []
    with contextlib.suppress(Abandoned), SCENARIOS[name].play(scene):
        found = practice.control.faults()
        raise Abandoned("a signal")
    assert found
    assert practice.control.faults() == []


def test_a_killed_sender_is_started_again_when_the_drill_is_abandoned(tmp_path: Path) -> None:
    started = tmp_path / "started"
    service = {"name": "s", "service": "sender", "drillable": True, "kill": ["true"], "start": ["touch", str(started)]}
    site = StagingSite(read_staging(_describe(tmp_path, services=[service])), tmp_path, {})
    scenarios()
    scene = Scene(site, None, None, lambda: None, lambda _: None)  # type: ignore[arg-type]
    with pytest.raises(Abandoned), SCENARIOS["sender-crash"].play(scene):
        raise Abandoned("a signal")
    assert started.exists()
