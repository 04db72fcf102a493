"""Kafka's classes, parsed once: a class data sharing archive beside the jars takes 40 % off the CPU of a start.

The first broker that runs without one writes it as it ends in order; whoever sees it end puts it into the cache. It
belongs to one Java and one folder of jars; the JVM checks both, and does without when they do not fit.
Source: JEP 350.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from postlane.local.java import Java

_DUMP = "classes.jsa"


def path_for(java: Java, jars: Path) -> Path:
    """Where the archive for this Java and these jars is kept."""
    key = hashlib.sha256(f"{java.program.resolve()}\n{java.banner}".encode()).hexdigest()[:12]
    return jars.with_name(f"{jars.name}-java{java.major}-{key}.jsa")


def broker_flags(java: Java, jars: Path, folder: Path) -> list[str]:
    """The JVM's flags that use the archive, or that write one into the broker's folder on exit."""
    return read_flags(java, jars) or [f"-XX:ArchiveClassesAtExit={folder / _DUMP}"]


def read_flags(java: Java, jars: Path) -> list[str]:
    """The JVM's flags that use the archive if there is one."""
    archive = path_for(java, jars)
    return [f"-XX:SharedArchiveFile={archive}"] if archive.is_file() else []


def collect(java: Java, jars: Path, folder: Path) -> None:
    """Keep what a broker that has ended in order left in its folder."""
    dump = folder / _DUMP
    if not dump.is_file():
        return
    archive = path_for(java, jars)
    if not archive.exists():
        arriving = archive.with_name(f".{archive.name}.{folder.parent.name}-{folder.name}")
        shutil.copyfile(dump, arriving)
        arriving.replace(archive)
    dump.unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Forget what a broker that was killed may have left half written."""
    (folder / _DUMP).unlink(missing_ok=True)
