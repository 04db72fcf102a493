"""Build sdist and wheel from what git tracks, twice, in two places: both must have the same bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
BUILD_TIMEOUT_S = 300
IGNORED = shutil.ignore_patterns(
    ".git", ".venv*", "dist", "__pycache__", ".postlane*", ".*_cache", ".hypothesis", "site"
)


class BuildError(Exception):
    """What is wrong with a release; the message says it in one sentence."""


def source_date_epoch() -> int:
    """SOURCE_DATE_EPOCH, else when HEAD was committed, in seconds since 1970."""
    told = os.environ.get("SOURCE_DATE_EPOCH")
    if told:
        return int(told)
    done = _run(["git", "log", "-1", "--format=%ct"], ROOT)
    return int(done) if done else 1_577_836_800  # no git: the year 2020, which zip can tell


def sources(into: Path) -> None:
    """HEAD as git has it; in a folder without git (an unpacked sdist), that folder."""
    archive = into.with_suffix(".tar")
    try:
        subprocess.run(
            ["git", "archive", "--format=tar", "-o", str(archive), "HEAD"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            timeout=BUILD_TIMEOUT_S,
        )
    except (OSError, subprocess.CalledProcessError):
        shutil.copytree(ROOT, into, ignore=IGNORED)
        return
    with tarfile.open(archive) as packed:
        packed.extractall(into, filter="data")
    archive.unlink()


def build(out: Path, epoch: int) -> list[Path]:
    """sdist and wheel in `out`. Raises BuildError."""
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "postlane"
        sources(tree)
        env = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-m", "hatchling", "build", "-d", str(out.absolute())]
        done = subprocess.run(
            command, cwd=tree, env=env, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
        if done.returncode:
            raise BuildError(f"hatchling: {done.stderr.strip()[-500:]}")
    return sorted(path for path in out.iterdir() if path.suffix in (".whl", ".gz"))


def build_twice(out: Path, epoch: int) -> list[Path]:
    """The same, and a second time elsewhere. Raises BuildError when the bytes differ."""
    built = build(out, epoch)
    with TemporaryDirectory() as folder:
        for again in build(Path(folder), epoch):
            if digest(again) != digest(out / again.name):
                raise BuildError(f"{again.name} is not reproducible: two builds differ")
    return built


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(command: list[str], where: Path) -> str:
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
