"""What a local stack consists of, and what its children are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from postlane.core.policy import Config
from postlane.local import services
from postlane.local.errors import LocalError
from postlane.local.services import StackPlan


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_configuration_that_is_written_is_a_valid_one() -> None:
    config = Config.model_validate(yaml.safe_load(services.config_text({"primary": 1025, "backup": 1026})))
    assert {name: (p.host, p.port) for name, p in config.providers.items()} == {
        "primary": ("127.0.0.1", 1025),
        "backup": ("127.0.0.1", 1026),
    }
    assert set(config.lanes) == {"transactional", "bulk"}


def test_the_users_configuration_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "postlane.yaml").write_text("lanes: {}\n")
    specs = services.children(StackPlan(tmp_path / "data", optional=()), "k:1", {})
    assert {spec.env["POSTLANE_CONFIG"] for spec in specs if spec.tier == 1} == {str(tmp_path / "postlane.yaml")}
    assert not (tmp_path / "data" / "postlane.yaml").exists()
    specs = services.children(StackPlan(tmp_path / "data", optional=()), "k:1", {"POSTLANE_CONFIG": "mine.yaml"})
    assert {spec.env["POSTLANE_CONFIG"] for spec in specs if spec.tier == 1} == {str(tmp_path / "mine.yaml")}


def test_without_practice_server_and_configuration_there_is_nowhere_to_send(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="no mail server"):
        services.children(StackPlan(tmp_path / "data", practice_smtp=False), "k:1", {})


def test_ports_differ_and_are_kept(tmp_path: Path) -> None:
    plan = StackPlan(tmp_path / "data", routers=2, senders=3, optional=())
    first = services.children(plan, "k:1", {})
    assert [spec.name for spec in first] == [
        "practice",
        "router-1",
        "router-2",
        "sender-1",
        "sender-2",
        "sender-3",
        "ledger",
    ]
    kept = json.loads((tmp_path / "data" / "ports.json").read_text())
    assert len(set(kept.values())) == len(kept) == 9
    assert services.children(plan, "k:1", {}) == first


def test_the_users_database_and_cluster_secrets() -> None:
    env = {
        "POSTLANE_DATABASE_URL": "postgresql://u:p@h/d",
        "POSTLANE_KAFKA_SASL_PASSWORD": "secret",
        "POSTLANE_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "POSTLANE_KAFKA_LINGER_MS": "5",
        "POSTLANE_TOPIC_PREFIX": "x.",
    }
    assert services.inherited(env) == {
        "POSTLANE_DATABASE_URL": "postgresql://u:p@h/d",
        "POSTLANE_KAFKA_LINGER_MS": "5",
        "POSTLANE_TOPIC_PREFIX": "x.",
    }
    specs = services.children(StackPlan(Path("data"), optional=()), "k:1", env)
    assert all("POSTLANE_DATABASE_URL" not in spec.env for spec in specs)  # inherited, and so in no file


def test_what_is_not_installed_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "OPTIONAL", {"producer": ("no_such_module",), "nothing": ()})
    names = [s.name for s in services.children(StackPlan(Path("data"), optional=("producer", "nothing")), "k:1", {})]
    assert "producer" not in names
    assert "nothing" not in names
