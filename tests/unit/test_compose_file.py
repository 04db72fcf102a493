"""docker-compose.yml and Dockerfile: valid for the tools that read them, and in step with the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from postlane.config import read_environment
from postlane.core.policy import Config
from postlane.local.broker_config import OFFSETS_RETENTION_MINUTES
from postlane.service import EXIT_TIMEOUT_S, PORTS, STOP_TIMEOUT_S
from postlane.telemetry import probe
from postlane_producer.config import read_settings

ROOT = Path(__file__).parents[2]
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")
OURS = {"router": "router", "sender": "sender", "ledger": "ledger", "health": "health", "gateway": "producer"}


def _compose(**variables: str) -> dict[str, Any]:
    """The file as it is with these variables set."""
    text = (ROOT / "docker-compose.yml").read_text()
    return dict(yaml.safe_load(VARIABLE.sub(lambda m: variables.get(m[1], m[2]), text)))


def _cluster() -> dict[str, Any]:
    lines = (ROOT / "deploy/cluster.env").read_text().splitlines()
    return _compose(**dict(line.split("=", 1) for line in lines if line and not line.startswith("#")))


BODY = _compose()
PROGRAM = """package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

// Arguments: the file, then the env file or "", then profiles. Prints the services that would be started.
func main() {
	asked := []cli.ProjectOptionsFn{cli.WithName("postlane"), cli.WithProfiles(os.Args[3:])}
	if os.Args[2] != "" {
		asked = append(asked, cli.WithEnvFiles(os.Args[2]), cli.WithDotEnv, cli.WithDefaultProfiles(os.Args[3:]...))
	}
	options, err := cli.NewProjectOptions([]string{os.Args[1]}, asked...)
	if err == nil {
		project, failure := options.LoadProject(context.Background())
		if err = failure; err == nil {
			for _, name := range project.ServiceNames() {
				fmt.Println(name)
			}
			return
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
"""


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Docker Compose's own parser as a program."""
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if go is None:
        pytest.skip("Go is not installed: the compose parser (compose-go) cannot be built")
    folder = tmp_path_factory.mktemp("compose")
    (folder / "main.go").write_text(PROGRAM)
    (folder / "go.mod").write_text("module check\n\ngo 1.24\n\nrequire github.com/compose-spec/compose-go/v2 v2.9.0\n")
    for command in ([go, "mod", "tidy"], [go, "build", "-o", "check", "."]):
        made = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
        if made.returncode:
            pytest.skip(f"compose-go cannot be had: {made.stderr.strip().splitlines()[-1][:200]}")
    return folder / "check"


@pytest.mark.parametrize(
    ("env_file", "profiles", "more", "left_out"),
    [
        ("", [], {"kafka", "postgres", "practice", "topics", *OURS}, {"kafka-2", "sender-2", "prometheus"}),
        ("deploy/cluster.env", [], {"kafka-2", "kafka-3", *(f"{name}-2" for name in OURS)}, {"prometheus"}),
        ("", ["observability"], {"prometheus", "alertmanager", "grafana", "collector"}, {"kafka-2"}),
    ],
)
def test_the_compose_parser_starts_what_a_profile_promises(
    parser: Path, env_file: str, profiles: list[str], more: set[str], left_out: set[str]
) -> None:
    asked = [str(ROOT / "docker-compose.yml"), env_file and str(ROOT / env_file), *profiles]
    checked = subprocess.run([str(parser), *asked], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stderr
    started = set(checked.stdout.split())
    assert more <= started
    assert not left_out & started


def test_hadolint_has_nothing_to_say_of_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed (requirements/dev.txt has it where there is a build for this machine)")
    said = subprocess.run([str(hadolint), str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stdout + said.stderr


def test_its_configuration_is_one_of_ours() -> None:
    Config.model_validate(yaml.safe_load(BODY["configs"]["postlane"]["content"]))


@pytest.mark.parametrize("service", [*OURS, *(f"{name}-2" for name in OURS)])
def test_a_service_is_probed_where_it_listens(service: str) -> None:
    child, name = BODY["services"][service], service.removesuffix("-2")
    assert child["command"] == ["python", "-m", f"postlane_{OURS[name]}"]
    probe = ["CMD", "python", "-m", "postlane.telemetry.probe", f"http://127.0.0.1:{PORTS[OURS[name]]}/readyz"]
    assert child["healthcheck"]["test"] == probe
    assert child["environment"]["POSTLANE_INSTANCE_ID"] == (f"{name}-2" if service.endswith("-2") else f"{name}-1")


def test_the_probe_knows_every_port() -> None:
    assert set(PORTS.values()) == set(probe._PORTS)


def test_it_sets_variables_that_the_services_read(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("postgresql+psycopg://postlane:x@postgres/postlane")
    for name in (*OURS, "topics", "practice"):
        service = BODY["services"][name]
        given = {k: str(v) for k, v in service["environment"].items()}
        assert given.pop("POSTLANE_CONFIG") in [config["target"] for config in service["configs"]]
        assert given["POSTLANE_DATABASE_URL_FILE"] == "/run/secrets/database-url"
        read = read_environment({**given, "POSTLANE_DATABASE_URL_FILE": str(secret)})
        assert read.bootstrap_servers == "kafka:9092"
        assert read.instance_id == given.get("POSTLANE_INSTANCE_ID", read.instance_id)
        assert read.database_url == secret.read_text()
        known = ["BOOTSTRAP_SERVERS", "CONFIG", "DATABASE_URL_FILE", "INSTANCE_ID"]
        if name == "gateway":
            known += ["GATEWAY_LISTEN", "GATEWAY_KEYS_FILE"]
            settings = read_settings(service["environment"])
            assert settings.keys_file.name in service["secrets"]
            assert service["ports"] == [f"127.0.0.1:8080:{settings.listen.port}"]
        assert {v for v in service["environment"] if v.startswith("POSTLANE_")} <= {f"POSTLANE_{v}" for v in known}
    for service in ("ledger", "ledger-2"):
        assert "database-url" in BODY["services"][service]["secrets"]
        assert "postgres" in BODY["services"][service]["depends_on"]


def test_its_providers_are_the_practice_servers_listeners() -> None:
    config = Config.model_validate(yaml.safe_load(BODY["configs"]["postlane"]["content"]))
    command = BODY["services"]["practice"]["command"]
    listens = {command[i + 1] for i, word in enumerate(command) if word == "--listen"}
    assert {f"{name}={provider.port}" for name, provider in config.providers.items()} == listens
    assert {provider.host for provider in config.providers.values()} == {"practice"}


@pytest.mark.parametrize("name", ["kafka", "kafka-2", "kafka-3"])
def test_a_broker_keeps_its_log_on_a_volume_and_offsets_as_long_as_ours_does(name: str) -> None:
    kafka = _cluster()["services"][name]
    environment = kafka["environment"]
    [volume] = kafka["volumes"]
    assert volume == f"cluster-{environment['KAFKA_NODE_ID']}:{environment['KAFKA_LOG_DIRS']}"
    assert int(environment["KAFKA_OFFSETS_RETENTION_MINUTES"]) >= OFFSETS_RETENTION_MINUTES
    assert (environment["KAFKA_DEFAULT_REPLICATION_FACTOR"], environment["KAFKA_MIN_INSYNC_REPLICAS"]) == (3, 2)
    assert f"{environment['KAFKA_NODE_ID']}@{name}:9093" in environment["KAFKA_CONTROLLER_QUORUM_VOTERS"]
    assert f"{name}:9092" in _cluster()["services"]["sender"]["environment"]["POSTLANE_BOOTSTRAP_SERVERS"]


def test_every_service_keeps_what_it_has_to_keep_on_a_volume_of_its_own() -> None:
    image = (ROOT / "Dockerfile").read_text()
    assert "POSTLANE_DATA_DIR=/data" in image
    for name in (*OURS, *(f"{name}-2" for name in OURS), "practice"):
        assert BODY["services"][name]["volumes"] == [f"{name}:/data"]
        assert name in BODY["volumes"]


@pytest.mark.parametrize("name", [*OURS, "practice", "topics"])
def test_what_is_ours_runs_without_rights(name: str) -> None:
    service = BODY["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "USER 10001:10001" in (ROOT / "Dockerfile").read_text()
    limits = service["deploy"]["resources"]["limits"]
    assert {"memory", "cpus", "pids"} <= set(limits)


def test_a_service_is_given_longer_to_stop_than_it_takes() -> None:
    for name in OURS:
        assert int(BODY["services"][name]["stop_grace_period"].removesuffix("s")) > STOP_TIMEOUT_S + EXIT_TIMEOUT_S
