"""What sdist and wheel must hold and must not."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from release.build import BuildError

PACKAGES = ("postlane", "postlane_producer", "postlane_router", "postlane_sender", "postlane_ledger", "postlane_health")
IN_WHEEL = (
    "postlane/py.typed",
    "postlane/cli/main.py",
    "postlane/local/pom.xml",
    "postlane/local/log4j2.properties",
    "postlane/schemas/asyncapi.yaml",
    "postlane/schemas/MailRequested.v1.json",
    "postlane/schemas/samples/MailRequested.v1.json",
    "postlane_ledger/migrations/versions/v0001_books.py",
)
IN_SDIST = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "docs/ARCHITECTURE.md", "schemas/asyncapi.yaml")
ENTRY_POINT = "postlane = postlane.cli.main:main"
EXTRAS = ("router", "sender", "ledger", "producer", "health", "local", "doctor", "all")
FOREIGN = ("tests", "bench", "demo", "release", ".ci", ".venv", "__pycache__", ".db", ".env")


def check_wheel(path: Path) -> None:
    """Raises BuildError with the first thing that is wrong."""
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        info = next(name.split("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
        points = wheel.read(f"{info}/entry_points.txt").decode()
        metadata = wheel.read(f"{info}/METADATA").decode()
    _has(path, names, IN_WHEEL)
    _has_none(path, names)
    tops = {name.split("/")[0] for name in names} - {info}
    if tops != set(PACKAGES):
        raise BuildError(f"{path.name}: top-level names are {sorted(tops)}, expected {sorted(PACKAGES)}")
    if ENTRY_POINT not in points:
        raise BuildError(f"{path.name}: the entry point {ENTRY_POINT!r} is missing")
    for extra in EXTRAS:
        if f"Provides-Extra: {extra}\n" not in metadata:
            raise BuildError(f"{path.name}: the extra {extra} is missing")
    if not any(name.startswith(f"{info}/licenses/") for name in names):
        raise BuildError(f"{path.name}: the licence is missing")


def check_sdist(path: Path) -> None:
    """Raises BuildError with the first thing that is wrong."""
    with tarfile.open(path) as packed:
        names = {member.name.partition("/")[2] for member in packed.getmembers()}
    _has(path, names, IN_SDIST)
    _has_none(path, names)


def _has(path: Path, names: set[str], wanted: Iterable[str]) -> None:
    missing = sorted(set(wanted) - names)
    if missing:
        raise BuildError(f"{path.name}: lacks {missing[0]}")


def _has_none(path: Path, names: set[str]) -> None:
    for name in sorted(names):
        if any(part.startswith(("test_", "conftest")) or part in FOREIGN for part in name.split("/")):
            raise BuildError(f"{path.name}: holds {name}, which is not for users")
        if name.endswith((".pyc", ".db", ".pem", ".key")):
            raise BuildError(f"{path.name}: holds {name}")
