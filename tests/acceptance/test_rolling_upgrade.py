"""Two versions side by side: each service replaced by the other version under load, forth and back.

The other version is a checkout of the commit below, or of POSTLANE_UPGRADE_FROM; raise the commit with each release.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from postlane.local.kafka import KafkaCluster
from tests.acceptance.rig import Rig

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]
EARLIER = os.environ.get("POSTLANE_UPGRADE_FROM", "ebe9068c0d56")
SERVICES = ("router-1", "sender-1", "sender-2", "ledger-1")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the earlier version."""
    folder = tmp_path_factory.mktemp("earlier")
    asked = subprocess.run(["git", "archive", EARLIER, "libs", "services"], cwd=ROOT, capture_output=True)
    if asked.returncode != 0:
        pytest.skip(f"the history has no {EARLIER}: {asked.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(asked.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


class Versions:
    """Which version a service is started from: a link that its PYTHONPATH goes through."""

    def __init__(self, folder: Path, earlier: Path) -> None:
        self._folder = folder
        self._sources = {"earlier": earlier, "this": ROOT}
        folder.mkdir()
        for name in SERVICES:
            self.choose(name, "earlier")

    def choose(self, name: str, version: str) -> None:
        link = self._folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(self._sources[version])

    def env(self) -> dict[str, dict[str, str]]:
        return {name: {"PYTHONPATH": f"{self._folder / name}/libs:{self._folder / name}/services"} for name in SERVICES}


def test_each_service_is_replaced_under_load_forth_and_back(kafka: KafkaCluster, tmp_path: Path, earlier: Path) -> None:
    versions = Versions(tmp_path / "versions", earlier)
    where = "import postlane, postlane_sender as s; print(postlane.__file__, s.__file__)"
    env = {**os.environ, **versions.env()["sender-1"]}
    said = subprocess.run([sys.executable, "-c", where], env=env, capture_output=True, text=True, check=True).stdout
    assert all(str(tmp_path) in path for path in said.split()), "the other version is not what is started"

    with Rig(kafka.bootstrap_servers, tmp_path, senders=2, ledger=True, env=versions.env()) as rig:
        rig.publish(50)
        for version in ("this", "earlier", "this"):
            for name in ("ledger-1", "router-1", "sender-1", "sender-2"):
                rig.publish(40)
                rig.publish(20, lane="bulk")
                rig.stack.stop(name)
                versions.choose(name, version)
                rig.publish(20)
                rig.stack.start(name)
        books = rig.until_settled()
        assert books.problems(rig.accepted) == []
        accepted = 50 + 3 * 4 * 80
        assert books.summary() == {"delivered": accepted, "copies": accepted, "doubts": 0}
