"""The bill of materials (CycloneDX JSON) of what the lock installs for all services."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from release.build import ROOT, BuildError

LOCK = ROOT / "requirements" / "runtime.txt"
SBOM_TIMEOUT_S = 600


def write_sbom(out: Path, epoch: int) -> None:
    """Validated against the schema of CycloneDX by the tool; every pin of the lock must be in it. Raises BuildError."""
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", str(LOCK), "--pyproject", "pyproject.toml"]
    command += ["--mc-type", "application", "--output-reproducible", "--of", "JSON", "-o", str(out.absolute())]
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=SBOM_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise BuildError(f"cyclonedx-py: {done.stderr.strip()[-500:]}")
    listed = {(part["name"].lower(), part["version"]) for part in json.loads(out.read_text())["components"]}
    missing = pins(LOCK) - listed
    if missing:
        raise BuildError(f"{out.name}: lacks {sorted(missing)[0][0]}")


def pins(lock: Path) -> set[tuple[str, str]]:
    """(name, version) of everything that a lock pins."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\\n]+)", lock.read_text(), re.MULTILINE)
    return {(name.lower(), version) for name, version in found}
