"""What is locked is bound to releases and hashes, with no known advisory; no security rule is waved off silently."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.version import Version
from tests.audit.__main__ import FINE, NOT_AUDITED, VULNERABLE, verdict
from tests.audit.locks import REQUIREMENTS, ROOT, floors, locks, pins

SOURCES = ("libs", "services", "demo")
_WAVED = re.compile(r"#\s*noqa:\s*(?P<codes>[A-Z]+[0-9]+(?:\s*,\s*[A-Z]+[0-9]+)*)(?P<reason>.*)")


@pytest.mark.parametrize("lock", locks(), ids=lambda path: path.name)
def test_every_dependency_is_bound_to_a_release_and_its_hashes(lock: Path) -> None:
    found = list(pins(lock))
    assert found
    assert [pin.name for pin in found if not pin.hashes] == []


@pytest.mark.parametrize("lock", locks(), ids=lambda path: path.name)
def test_nothing_is_locked_that_has_a_known_advisory(lock: Path) -> None:
    known = floors()
    old = [
        f"{pin.name} {pin.version} < {floor.at_least} ({floor.why})"
        for pin in pins(lock)
        if (floor := known.get(pin.name)) is not None and Version(pin.version) < Version(floor.at_least)
    ]
    assert old == []


def test_what_is_installed_here_is_what_is_locked() -> None:
    allowed: dict[str, set[str]] = {}
    for pin in pins(REQUIREMENTS / "dev.txt"):
        allowed.setdefault(pin.name, set()).add(pin.version)
    other = []
    for name, versions in allowed.items():
        try:
            here = version(name)
        except PackageNotFoundError:
            continue  # of another platform
        if here not in versions:
            other.append(f"{name} {here}, locked {versions}")
    assert other == []


def test_every_security_rule_that_is_waved_off_has_its_reason() -> None:
    silent = []
    for path in (p for source in SOURCES for p in sorted((ROOT / source).rglob("*.py"))):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = _WAVED.search(line)
            if found is None or not re.search(r"\bS[0-9]", found["codes"]):
                continue
            if len(found["reason"].strip(" -#()")) < 5:
                silent.append(f"{path.relative_to(ROOT)}:{number}")
    assert silent == []


def test_an_audit_that_was_not_answered_is_no_pass() -> None:
    fine = {"name": "a", "version": "1", "vulns": []}
    skipped = {"name": "b", "skip_reason": "not found"}
    bad = {"name": "c", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2"]}]}
    assert verdict({"dependencies": [fine]})[0] == FINE
    code, lines = verdict({"dependencies": [fine, skipped]})
    assert code == NOT_AUDITED
    assert "1 NOT audited" in " ".join(lines)
    assert verdict({"dependencies": [fine, skipped, bad]})[0] == VULNERABLE
