"""The locks in requirements/: which release of what, and whether each is bound to its hashes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)")


@dataclass(frozen=True, slots=True)
class Pin:
    """One release in one lock."""

    lock: str
    name: str
    version: str
    hashes: int


@dataclass(frozen=True, slots=True)
class Floor:
    """The oldest release that may be locked."""

    at_least: str
    why: str


def locks() -> list[Path]:
    """Every lock, by name."""
    return sorted(REQUIREMENTS.glob("*.txt"))


def pins(lock: Path) -> Iterator[Pin]:
    """What a lock holds. Raises ValueError for a line that is no pin (a range, a URL, an option)."""
    for entry in re.sub(r"\\\n\s*", " ", lock.read_text()).splitlines():
        line = entry.split(" #")[0].strip()
        if not line or line.startswith("#"):
            continue
        found = _PIN.match(line)
        if found is None:
            raise ValueError(f"{lock.name}: not bound to one release: {line[:80]}")
        yield Pin(lock.name, found[1].lower().replace("_", "-"), found[2], line.count("--hash=sha256:"))


def floors(path: Path = REQUIREMENTS / "floors.toml") -> dict[str, Floor]:
    """The hand-kept list of advisories."""
    document: dict[str, Any] = tomllib.loads(path.read_text())
    return {name: Floor(**entry) for name, entry in document.items()}
