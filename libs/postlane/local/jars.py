"""Apache Kafka's jars: fetched once from Maven Central with a pinned pom, kept in a cache folder."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from postlane.local.errors import LocalError
from postlane.local.java import Java
from postlane.local.processes import exclusive

KAFKA_VERSION = "4.3.1"
FETCH_TIMEOUT_S = 900
LOCK_TIMEOUT_S = 900
POM = Path(__file__).with_name("pom.xml")
_NEEDED = (
    f"kafka_2.13-{KAFKA_VERSION}.jar",
    f"kafka-server-{KAFKA_VERSION}.jar",
    f"kafka-tools-{KAFKA_VERSION}.jar",
    f"kafka-clients-{KAFKA_VERSION}.jar",
    "log4j-slf4j-impl-2.24.3.jar",
)

_log = logging.getLogger(__name__)


def cache_folder(env: Mapping[str, str]) -> Path:
    """Where the jars live: kafka-<version> under POSTLANE_CACHE_DIR, or under ~/.cache/postlane."""
    base = env.get("POSTLANE_CACHE_DIR")
    return (Path(base) if base else Path.home() / ".cache" / "postlane") / f"kafka-{KAFKA_VERSION}"


def ensure_jars(env: Mapping[str, str], java: Java) -> Path:
    """The folder with Kafka's jars, fetched now if it is not there yet.

    Fetching goes into a temporary folder beside it that is renamed when complete, under a file lock: a fetch cut
    short never counts, and two processes fetch once. Raises LocalError when Maven is needed and missing, or fails.
    """
    folder = cache_folder(env)
    if is_complete(folder):
        return folder
    busy = f"Another process has been fetching Kafka into {folder} for {LOCK_TIMEOUT_S} s; try again later."
    try:
        with exclusive(folder.with_name(folder.name + ".lock"), busy, LOCK_TIMEOUT_S):
            if not is_complete(folder):
                _fetch(folder, env, java)
    except OSError as error:
        raise LocalError(f"The cache folder {folder} cannot be used: {error.strerror or error}.") from error
    return folder


def is_complete(folder: Path) -> bool:
    """Whether the folder holds the jars that only a complete fetch brings."""
    return all((folder / name).is_file() for name in _NEEDED)


def _fetch(folder: Path, env: Mapping[str, str], java: Java) -> None:
    maven = shutil.which("mvn", path=env.get("PATH", ""))
    if maven is None:
        raise LocalError(
            f"Apache Kafka's jars are not in {folder} yet, and Maven, which fetches them, was not found: "
            "install `mvn`, or set POSTLANE_CACHE_DIR to a cache that has them."
        )
    _log.info("Fetching Apache Kafka %s into %s (once)", KAFKA_VERSION, folder)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
        shutil.copy(POM, Path(work) / "pom.xml")
        jars = Path(work) / "jars"
        log = folder.with_name(folder.name + ".maven.log")
        _run_maven(maven, Path(work), jars, log, env, java)
        if not is_complete(jars):
            raise LocalError(f"Maven ended well but did not bring all of Kafka's jars; its log is {log}.")
        if folder.exists():  # what an older version or a stray hand left there
            folder.rename(Path(work) / "old")
        jars.rename(folder)


def _run_maven(maven: str, work: Path, jars: Path, log: Path, env: Mapping[str, str], java: Java) -> None:
    argv = [maven, "-B", "-C", "-f", str(work / "pom.xml"), "dependency:copy-dependencies"]
    argv += [f"-DoutputDirectory={jars}", "-DincludeScope=runtime"]
    maven_env = {**os.environ, **env}
    if java.source != "PATH":
        maven_env["JAVA_HOME"] = str(java.home)
    with log.open("wb") as out:
        try:
            code = subprocess.run(
                argv, stdout=out, stderr=subprocess.STDOUT, env=maven_env, timeout=FETCH_TIMEOUT_S, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            raise LocalError(f"Maven did not fetch Kafka within {FETCH_TIMEOUT_S} s; its log is {log}.") from None
    if code != 0:
        text = log.read_text(errors="replace")
        if "No space left on device" in text:
            raise LocalError(f"The disk of {jars.parent.parent} is full: Kafka's jars need about 60 MB.")
        raise LocalError(f"Maven could not fetch Kafka (exit code {code}); its log is {log}.")
