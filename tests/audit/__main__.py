"""`make audit`: ask the advisory database about every locked release, and say plainly when it could not be asked.

pip-audit ends with 0 when the database does not answer for a release ("could not be audited"); here that is not a pass.
Ends with 0: all were audited, none is known to be vulnerable; 1: some are; 3: some could not be audited.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.audit.locks import REQUIREMENTS

TIMEOUT_S = 600
FINE, VULNERABLE, NOT_AUDITED = 0, 1, 3


def verdict(told: dict[str, Any]) -> tuple[int, list[str]]:
    """Exit code and sentences for a document of pip-audit."""
    known = [d for d in told["dependencies"] if d.get("vulns")]
    skipped = [d for d in told["dependencies"] if "skip_reason" in d]
    lines = [
        f"{d['name']} {d['version']}: {v['id']}, fixed in {', '.join(v.get('fix_versions', [])) or 'no release yet'}"
        for d in known
        for v in d["vulns"]
    ]
    audited = len(told["dependencies"]) - len(skipped)
    lines.append(f"audited {audited} releases, {len(known)} with advisories, {len(skipped)} NOT audited")
    if skipped:
        lines.append(f"the database did not answer for them, e.g. {skipped[0]['name']}: this needs pypi.org")
    return (VULNERABLE if known else NOT_AUDITED if skipped else FINE), lines


def main() -> int:
    lock = REQUIREMENTS / "dev.txt"
    program = str(Path(sys.executable).with_name("pip-audit"))
    command = [program, "--disable-pip", "--require-hashes", "--progress-spinner", "off", "-f", "json", "-r", str(lock)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    try:
        code, lines = verdict(json.loads(done.stdout))
    except (json.JSONDecodeError, KeyError):
        last = (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
        code, lines = NOT_AUDITED, [f"NOT audited: {last[:300]}"]
    print(f"audit of {lock.name}: " + "\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
