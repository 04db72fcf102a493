"""Every change of a topic, a record or the ledger's tables since the last release has its note in docs/upgrading.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

from release.build import ROOT
from release.declared import changed, declared, notes, released, without_note

from postlane_ledger.migrate import VERSION_TABLE

PAGE = ROOT / "docs" / "upgrading.md"


def test_what_changed_since_the_last_release_has_a_note() -> None:
    last = released()
    if last is not None:
        assert without_note(last[1], declared(), PAGE.read_text()) == []
    assert notes(PAGE.read_text()).strip()


def test_a_change_without_a_note_is_noticed(tmp_path: Path) -> None:
    now = declared()
    assert {"mail.requests", "mail.state.bulk", "MailRequested.v1", "ledger"} <= now.keys()
    before = {**now, "mail.requests": "6 partitions", "Gone.v1": "x"}
    del before["mail.health"]
    assert changed(before, now) == ["Gone.v1", "mail.health", "mail.requests"]
    text = "### Unreleased (1.1.0)\n\n`Gone.v1` is not written any more.\n\n### 1.0.0\n\n`mail.requests`\n"
    assert without_note(before, now, text) == ["mail.health", "mail.requests"]
    assert released(tmp_path) is None
    for version in ("0.9.0", "0.10.0"):
        (tmp_path / f"{version}.json").write_text(json.dumps({"v": version}))
    assert released(tmp_path) == ("0.10.0", {"v": "0.10.0"})


def test_the_table_of_the_first_version_is_true() -> None:
    assert VERSION_TABLE == "ledger_schema"
    versions = {re.search(r"\.v(\d+)$", name)[1] for name in declared() if ".v" in name}  # type: ignore[index]
    assert versions == {"1"}
    assert f"revision `{declared()['ledger']}`" in PAGE.read_text()


def test_every_version_of_a_record_has_golden_samples() -> None:
    """What was released once is read for ever: tests/unit/test_schemas.py reads each of them."""
    samples = {path.name.rsplit(".", 2)[0] for path in (ROOT / "schemas" / "samples").glob("*.minimal.json")}
    assert {name for name in declared() if re.search(r"\.v\d+$", name)} == samples


def test_renovate_looks_at_every_lock() -> None:
    told = json.loads((ROOT / "renovate.json").read_text())
    patterns = [p.strip("/") for m in ("pip_requirements", "maven") for p in told[m]["managerFilePatterns"]]
    for path in [*(ROOT / "requirements").glob("*.txt"), ROOT / "libs/postlane/local/pom.xml"]:
        name = path.relative_to(ROOT).as_posix()
        assert any(re.search(pattern, name) for pattern in patterns), name
