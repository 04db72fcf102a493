"""The commands of tutorials and runbooks, run as they stand there, on one stack: what rots is noticed here.

The publishers' tutorial starts the stack (`postlane up`), the operators' goes on with it, the runbooks follow in
alphabetical order; each page has a shell of its own in the same folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest

from tests.docs.pages import ROOT, Block, Page, read
from tests.docs.quick_postlane import quick_postlane

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(900)]
COMMAND_TIMEOUT_S = 240
UNTIL_TIMEOUT_S = 60
AGAIN_S = 0.5
FIRST = [ROOT / "docs/tutorials/publisher.md", ROOT / "docs/tutorials/operator.md"]
PAGES = [page for page in map(read, [*FIRST, *sorted((ROOT / "docs/runbooks").glob("*.md"))]) if page.runnable()]
DONE: set[str] = set()
END = "__end of the command__"


class Shell:
    """One bash that is given commands one by one."""

    def __init__(self, folder: Path) -> None:
        path = os.pathsep.join([str(folder.parent / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        env = {k: v for k, v in os.environ.items() if not k.startswith("POSTLANE_") or k == "POSTLANE_CACHE_DIR"}
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env={**env, "PATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> tuple[int, str]:
        """(exit code, what it said). A command that hangs takes the shell along."""
        stdin, stdout = self._bash.stdin, self._bash.stdout
        assert stdin is not None
        assert stdout is not None
        watch = Timer(COMMAND_TIMEOUT_S, self._bash.kill)
        watch.start()
        try:
            stdin.write(f"{command}\n_code=$?; echo; echo '{END}' $_code\n")
            stdin.flush()
            said = []
            for line in stdout:
                if line.startswith(END):
                    return int(line.split()[-1]), "".join(said)
                said.append(line)
        finally:
            watch.cancel()
        return -1, "".join(said) + f"(no end within {COMMAND_TIMEOUT_S} s)"

    def close(self) -> None:
        if self._bash.stdin is not None:
            self._bash.stdin.close()
        self._bash.wait(COMMAND_TIMEOUT_S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the tutorials are followed; what they started is stopped afterwards."""
    if shutil.which("curl") is None:
        pytest.skip("the operators' tutorial uses curl, which is not installed")
    here = tmp_path_factory.mktemp("docs")
    folder, commands = here / "tutorial", here / "bin"
    folder.mkdir()
    commands.mkdir()
    with quick_postlane(commands):
        yield folder
        shell = Shell(folder)
        shell.run("postlane down")
        shell.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.stem)
def test_a_page_can_be_followed(page: Page, folder: Path) -> None:
    if page.path != FIRST[0] and not (folder / ".postlane" / "stack.json").is_file():
        pytest.skip("the publishers' tutorial starts the stack: run it first")
    shell = Shell(folder)
    try:
        for block in page.runnable():
            follow(shell, page, block)
    finally:
        shell.close()


def follow(shell: Shell, page: Page, block: Block) -> None:
    """Run a block as its mark says."""
    mark = block.mark or {}
    commands = block.commands()
    assert commands, f"{page.name}:{block.line}: nothing to run"
    said = ""
    for command in commands[:-1]:
        if command in DONE:
            continue
        code, said = shell.run(command)
        assert code in _allowed(command, mark), f"{page.name}:{block.line}: {command}\n{said}"
        _note(command)
    if commands[-1] in DONE and not {"until", "says"} & mark.keys():
        return
    deadline = time.monotonic() + UNTIL_TIMEOUT_S
    while True:
        code, said = shell.run(commands[-1])
        if "until" not in mark or (not code and mark["until"] in said) or time.monotonic() > deadline:
            break
        time.sleep(AGAIN_S)
    assert code in _allowed(commands[-1], mark), f"{page.name}:{block.line}: {commands[-1]}\n{said}"
    awaited = mark.get("until", mark.get("says", ""))
    assert awaited in said, f"{page.name}:{block.line}: {commands[-1]} does not say {awaited!r}\n{said}"
    assert not re.search(r"^Traceback", said, re.MULTILINE)
    _note(commands[-1])


def _allowed(command: str, mark: dict[str, str]) -> set[int]:
    """As the mark says, else 0; the doctor may find something (1), or a Kafka that is slow on a busy machine (3)."""
    if "exit" in mark:
        return {int(mark["exit"])}
    return {0, 1, 3} if command.startswith("postlane doctor") else {0}


def _note(command: str) -> None:
    """Pages say the same things: what only looks is run once in a session, unless something is awaited of it."""
    if re.match(r"postlane (status|doctor|topics plan|dead-letters list|.*--dry-run)", command):
        DONE.add(command)
