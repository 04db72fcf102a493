"""The content of a record never leads to a file, a connection, a process or code: the interpreter itself is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 120


def test_no_mail_makes_a_service_open_connect_start_or_run_anything() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.nowhere"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["hears"]
    assert told["mails"] == 32
    assert told["found"] == []
