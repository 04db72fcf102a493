"""SECURITY.md is true: its table of writers is that of the ACLs, and every test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

from postlane.core.delay import STEPS
from postlane.eventlog.topics import TopicNames
from postlane.ops.acls import IDENTITIES, acls

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
LANES = ("transactional", "bulk")


def test_the_table_of_writers_is_that_of_the_acls() -> None:
    said: dict[str, set[str]] = {}
    for topic, writers in re.findall(r"^\| `(mail\.[^`]+)` \| ([^|]+) \|$", TEXT, re.M):
        steps = [step for step, _ in STEPS]
        for name in [topic.replace("<lane>", lane) for lane in LANES] if "<lane>" in topic else [topic]:
            for whole in [name.replace("<step>", step) for step in steps] if "<step>" in name else [name]:
                said[whole] = set(re.findall(r"[a-z]+", re.sub(r"\(.*?\)", "", writers)))
    true: dict[str, set[str]] = {}
    for acl in acls(TopicNames(), LANES):
        if acl.resource == "topic" and "Write" in acl.operations:
            true.setdefault(acl.name, set()).add(acl.identity)
    assert said == true


def test_every_identity_is_described() -> None:
    assert {name for name in IDENTITIES if re.search(rf"^\| {name} \|", TEXT, re.M)} == set(IDENTITIES)


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)
    assert len(named) > 20
    missing = []
    for path, function in named:
        file = ROOT / path
        if not file.is_file():
            missing.append(path)
        elif function and f"def {function}(" not in file.read_text():
            missing.append(f"{path}::{function}")
    assert missing == []
