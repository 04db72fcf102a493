"""docker-compose.yml: valid for the parser that Docker Compose itself uses, and in step with the code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from postlane.config import read_environment
from postlane.core.policy import Config
from postlane.local.broker_config import OFFSETS_RETENTION_MINUTES
from postlane.service import PORTS

ROOT = Path(__file__).parents[2]
BODY = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROGRAM = """package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	options, err := cli.NewProjectOptions([]string{os.Args[1]}, cli.WithName("postlane"))
	if err == nil {
		project, failure := options.LoadProject(context.Background())
		if err = failure; err == nil {
			fmt.Println(len(project.Services))
			return
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
"""


def test_the_compose_parser_takes_it(tmp_path: Path) -> None:
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if go is None:
        pytest.skip("Go is not installed: the compose parser (compose-go) cannot be built")
    (tmp_path / "main.go").write_text(PROGRAM)
    (tmp_path / "go.mod").write_text(
        "module check\n\ngo 1.24\n\nrequire github.com/compose-spec/compose-go/v2 v2.9.0\n"
    )
    tidy = subprocess.run([go, "mod", "tidy"], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    if tidy.returncode:
        pytest.skip(f"compose-go cannot be had: {tidy.stderr.strip().splitlines()[-1][:200]}")
    run = [go, "run", ".", str(ROOT / "docker-compose.yml")]
    checked = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert checked.returncode == 0, checked.stderr
    assert int(checked.stdout) == len(BODY["services"])


def test_its_configuration_is_one_of_ours() -> None:
    Config.model_validate(yaml.safe_load(BODY["configs"]["postlane"]["content"]))


@pytest.mark.parametrize("service", ["router", "sender", "ledger"])
def test_a_service_is_probed_where_it_listens(service: str) -> None:
    child = BODY["services"][service]
    assert child["command"] == ["python", "-m", f"postlane_{service}"]
    assert re.search(rf"127\.0\.0\.1:{PORTS[service]}/readyz", " ".join(child["healthcheck"]["test"]))
    assert child["environment"]["POSTLANE_INSTANCE_ID"]


def test_it_sets_variables_that_the_services_read() -> None:
    for name, service in BODY["services"].items():
        given = {k: str(v) for k, v in service["environment"].items() if k != "POSTLANE_CONFIG"}
        if name == "kafka":
            continue
        read = read_environment(given)
        assert read.bootstrap_servers == "kafka:9092"
        assert read.database_url == "sqlite:////data/postlane.db"
        assert read.instance_id == given.get("POSTLANE_INSTANCE_ID", read.instance_id)
        targets = [config["target"] for config in service["configs"]]
        assert service["environment"]["POSTLANE_CONFIG"] in targets
        known = ("BOOTSTRAP_SERVERS", "CONFIG", "DATABASE_URL", "INSTANCE_ID")
        assert set(service["environment"]) <= {f"POSTLANE_{variable}" for variable in known}


def test_its_providers_are_the_practice_servers_listeners() -> None:
    config = Config.model_validate(yaml.safe_load(BODY["configs"]["postlane"]["content"]))
    command = BODY["services"]["practice"]["command"]
    listens = {command[i + 1] for i, word in enumerate(command) if word == "--listen"}
    assert {f"{name}={provider.port}" for name, provider in config.providers.items()} == listens
    assert {provider.host for provider in config.providers.values()} == {"practice"}


def test_the_broker_keeps_its_log_on_the_volume_and_offsets_as_long_as_ours_does() -> None:
    kafka = BODY["services"]["kafka"]
    assert f"kafka:{kafka['environment']['KAFKA_LOG_DIRS']}" in kafka["volumes"]
    assert int(kafka["environment"]["KAFKA_OFFSETS_RETENTION_MINUTES"]) >= OFFSETS_RETENTION_MINUTES


def test_every_service_keeps_what_it_has_to_keep_on_a_volume() -> None:
    image = (ROOT / "Dockerfile").read_text()
    assert "POSTLANE_DATA_DIR=/data" in image
    for name in ("router", "sender", "ledger", "practice"):
        assert BODY["services"][name]["volumes"] == [f"{name}:/data"]
        assert name in BODY["volumes"]
