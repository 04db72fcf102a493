"""What a release declares to the outside: topics with their options, schemas of records, the ledger's revision.

`release/declared/<version>.json` holds it for every version that was released; `make dist` writes it for the next one.
Whatever differs from the last release must be named in docs/upgrading.md, under *Unreleased*.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from postlane.core.policy import Config
from postlane.eventlog.topics import TopicNames, declare
from postlane.ops.books_schema import SCHEMA_REVISION
from release.build import ROOT

FOLDER = ROOT / "release" / "declared"
Declared = dict[str, str]


def declared() -> Declared:
    """Name -> what holds for it, as text that can be compared."""
    config = Config()
    told = {}
    for spec in declare(TopicNames(), tuple(config.lanes), config.topics):
        options = ", ".join(f"{name}={value}" for name, value in sorted(spec.config.items()))
        told[spec.name] = f"{spec.partitions} partitions; {options}"
    for path in sorted((ROOT / "schemas").glob("*.v*.json")):
        body = json.dumps(json.loads(path.read_text()), sort_keys=True)
        told[path.stem] = hashlib.sha256(body.encode()).hexdigest()
    return {**told, "ledger": SCHEMA_REVISION}


def released(folder: Path = FOLDER) -> tuple[str, Declared] | None:
    """The last release and what it declared; None before the first."""
    found = {tuple(map(int, path.stem.split("."))): path for path in folder.glob("*.json")}
    if not found:
        return None
    path = found[max(found)]
    return path.stem, json.loads(path.read_text())


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names that came, went or changed."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def notes(text: str) -> str:
    """The section *Unreleased* of docs/upgrading.md."""
    found = re.search(r"^### Unreleased.*?$(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def without_note(before: Mapping[str, str], now: Mapping[str, str], text: str) -> list[str]:
    """What changed and is not named there."""
    return [name for name in changed(before, now) if f"`{name}`" not in notes(text)]
