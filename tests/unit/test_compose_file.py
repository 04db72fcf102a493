"""docker-compose.yml: valid for the parser that Docker Compose itself uses, and in step with the code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from postlane.core.policy import Config
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
