"""`make fuzz`: the fuzz tests of this folder, guided by coverage (atheris), for as long as is wanted.

Each target is one of the tests with `@given`: atheris makes the bytes that hypothesis builds its values from, and keeps
those that reach new code in .fuzz/<target>/corpus. A failure is kept by hypothesis, which `make test` tries first from
then on, and its bytes in .fuzz/<target>. Ends with 1 when a target failed; without atheris, hypothesis alone goes on.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".fuzz"
MODULES = ("test_fuzz_records", "test_fuzz_mail", "test_fuzz_config", "test_fuzz_bounces")
INPUT_MAX_BYTES = 4096
SEEDS = 32  # inputs to begin with; of the few bytes that libFuzzer begins with no value of many parts is built
SLOWEST_INPUT_S = 30  # one that takes longer is a failure
MEMORY_MAX_MB = 2048


def targets() -> dict[str, Any]:
    """Name -> test, of those that need nothing but their values."""
    found = {}
    for module in MODULES:
        for name, test in vars(importlib.import_module(f"tests.hostile.{module}")).items():
            if name.startswith("test_") and hasattr(test, "hypothesis") and not inspect.signature(test).parameters:
                found[name.removeprefix("test_")] = test
    return found


def run_one(name: str, seconds: int) -> None:
    """In a process of its own: atheris does not return."""
    folder = FOLDER / name
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    if not any((folder / "corpus").iterdir()):
        for number in range(SEEDS):
            (folder / "corpus" / f"seed-{number}").write_bytes(secrets.token_bytes(INPUT_MAX_BYTES // 4))
    try:
        import atheris
    except ImportError:
        _without_guide(targets()[name], seconds)
        return
    with atheris.instrument_imports(include=["postlane", "postlane_router", "postlane_sender", "postlane_ledger"]):
        test = targets()[name]
    fuzz: Callable[[bytes], object] = test.hypothesis.fuzz_one_input
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={INPUT_MAX_BYTES}",
        "-len_control=0",
        f"-timeout={SLOWEST_INPUT_S}",
        f"-rss_limit_mb={MEMORY_MAX_MB}",
        f"-artifact_prefix={folder}/",
        "-print_final_stats=1",
        str(folder / "corpus"),
    ]
    atheris.Setup([sys.argv[0], *options], lambda data: _once(fuzz, data))
    atheris.Fuzz()


def _once(fuzz: Callable[[bytes], object], data: bytes) -> None:
    fuzz(data)


def _without_guide(test: Any, seconds: int) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        test.hypothesis.fuzz_one_input(secrets.token_bytes(INPUT_MAX_BYTES))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=600, help="in all, shared by the targets")
    parser.add_argument("-k", dest="part", default="", help="only targets with this in their name")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        run_one(asked.one, asked.seconds)
        return 0
    names = [name for name in targets() if asked.part in name]
    each_s = max(1, asked.seconds // max(1, len(names)))
    failed = []
    for name in names:
        command = [sys.executable, "-m", "tests.hostile.fuzz", "--one", name, "--seconds", str(each_s)]
        log = FOLDER / name / "log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as out:
            code = subprocess.run(command, cwd=ROOT, stdout=out, stderr=out, check=False).returncode
        print(f"{name}: {'ok' if code == 0 else f'FAILED (exit code {code})'}; {_tries(log)}; log: {log}", flush=True)
        if code:
            failed.append(name)
    print(f"{len(names) - len(failed)} of {len(names)} targets held for {each_s} s each")
    return 1 if failed else 0


def _tries(log: Path) -> str:
    for line in reversed(log.read_text(errors="replace").splitlines()):
        if "number_of_executed_units" in line:
            with suppress(IndexError):
                return f"{line.split(':')[-1].strip()} inputs"
    return "inputs not counted"


if __name__ == "__main__":
    sys.exit(main())
