"""`python -m postlane.ops.doctor`: docs/doctor.md, made from the catalogue."""

from __future__ import annotations

import sys
from pathlib import Path

from postlane.ops.doctor.catalogue import SECTIONS, WHY

PAGE = Path("docs/doctor.md")
HEAD = """# Doctor

`postlane doctor` shows the effective configuration with secrets masked, then looks at everything around it: {count}
checks, each with what it found, why it matters and what to do. `--quiet` shows only what is wrong, `--json`
everything for programs.

| ends with | means |
| --- | --- |
| 0 | nothing failed; warnings are worth reading |
| 1 | a check failed: mails are not safe, or not sent, until it is mended |
| 2 | the configuration cannot be read (it says where and why) |
| 3 | Kafka or the ledger's database does not answer, so much could not be asked |

| option | does |
| --- | --- |
| `--no-connect` | opens no session with the providers and looks no domain up |
| `--domain D`, `--dkim-selector S` | looks at the DNS of these sender domains, else of those that the ledger knows |
| `--service URL` | asks a service's `/readyz`: readiness, version, clock; those of `postlane up` are known |
| `--backup DIR` | how old the newest backup is; also `POSTLANE_BACKUP_PLACE` |
| `--as IDENTITY` | whose rights in Kafka whoever runs it should have (default: operator) |

Every question has a time of its own (at most 15 s) and they are asked side by side: the whole takes half a minute at
worst. A provider is asked as the sender asks it (EHLO, STARTTLS, AUTH, QUIT), and no mail is begun. It writes
nothing, but for one committed position of the group `doctor`, which the brokers stamp with their clock.
"""


def page() -> str:
    """The page as it should be."""
    parts = [HEAD.format(count=len(WHY))]
    for title, checks in SECTIONS.items():
        rows = "\n".join(f"| `{name}` | {why} |" for name, why in checks.items())
        parts.append(f"\n## {title}\n\n| check | why it matters |\n| --- | --- |\n{rows}\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.exit(0)
