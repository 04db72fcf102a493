"""`postlane verify` and the guards of backup and restore that need no cluster: what is said, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.unit import backup_world as w
from tests.unit.backup_world import NOW, Installation, directory, ran

from postlane.cli.main import main
from postlane.ops.backup.encrypt import Vault
from postlane.ops.backup.textfile import LAST_SUCCESS, text_of, write_textfile


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("POSTLANE_BOOTSTRAP_SERVERS", "POSTLANE_TOPIC_PREFIX", "POSTLANE_CONFIG", "POSTLANE_BACKUP_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    async def made() -> None:
        it = Installation()
        await it.put("mail.requests", 0, *(w.request(str(n)) for n in range(10)))
        await it.backup(directory(tmp_path / "place"))

    ran(made())
    return tmp_path / "place"


def postlane(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_verify_says_what_is_there(place: Path) -> None:
    said = json.loads(postlane("verify", place, "--json").output)
    assert said["backup"] == "0000001"
    assert said["by_topic"] == {"mail.requests": 10}
    assert "is whole" in postlane("verify", place, "--to", NOW.isoformat()).output


def test_verify_of_what_is_damaged_or_not_there(place: Path, tmp_path: Path) -> None:
    chunk = next(p for p in (place / "data").rglob("*") if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1])
    damaged = postlane("verify", place)
    assert damaged.exit_code == 1
    assert "cut short" in damaged.output
    nothing = postlane("verify", tmp_path / "nowhere")
    assert nothing.exit_code == 1
    assert "no finished backup" in nothing.output
    assert postlane("verify", "ftp://x").exit_code == 2


def test_keys_come_from_a_file_and_are_never_told(place: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("not thirty-two bytes, but secret")
    (tmp_path / "key").write_bytes(b"secret" * 3)
    said = postlane("verify", place, "--key-file", tmp_path / "key")
    assert said.exit_code == 2
    assert "secret" not in said.output
    (tmp_path / "key").write_bytes(bytes(32))
    assert "not encrypted, but a key was given" in postlane("verify", place, "--key-file", tmp_path / "key").output


def test_guards_come_before_anything_is_asked_of_a_cluster(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTLANE_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    assert postlane("backup", place, "--keep-days", 1).exit_code == 4
    foreign = postlane("restore", place, "--yes")
    assert foreign.exit_code == 1
    assert "--from-prefix" in foreign.output
    monkeypatch.setenv("POSTLANE_TOPIC_PREFIX", "a.")
    partitions = postlane("restore", place, "--yes")
    assert "declares 12" in partitions.output
    (place.parent / "postlane.yaml").write_text("topics: {partitions: 2}")
    alone = postlane("restore", place, "--topic", "mail.seen", "--yes")
    assert alone.exit_code == 4


def test_the_textfile_is_what_the_alert_looks_for(place: Path, tmp_path: Path) -> None:
    from postlane.ops.backup.catalogue import read_catalogue

    newest = read_catalogue(directory(place), Vault(None)).manifests[-1]
    write_textfile(tmp_path / "b.prom", text_of(newest, 100, 1.5))
    text = (tmp_path / "b.prom").read_text()
    assert f'{LAST_SUCCESS}{{prefix="a."}} {NOW.timestamp():.3f}' in text
    rules = Path(__file__).parents[2] / "observability" / "prometheus" / "rules.yml"
    if rules.is_file():
        assert LAST_SUCCESS in rules.read_text()
