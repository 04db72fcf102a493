"""Named points at which a test kills the process; they exist only where POSTLANE_TEST_FAILPOINT is set.

`POSTLANE_TEST_FAILPOINT=after_dot:3@/tmp/fired` kills with SIGKILL at the third time that the point is passed, and
leaves the file, so that the process that is started again lives.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

POINTS = (
    "before_intent",
    "after_intent",
    "after_dot",
    "after_reply",
    "in_commit",
    "after_commit",
)


@dataclass(slots=True)
class Failpoints:
    """`hit(point)` does nothing, unless that point was named; then it counts down and kills."""

    point: str = ""
    left: int = 0
    marker: Path | None = None

    def hit(self, point: str) -> None:
        if point == self.point:
            self.left -= 1
            if self.left == 0:
                if self.marker is not None:
                    self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)


def read_failpoints(setting: str | None) -> Failpoints:
    """From the variable's value. Raises ValueError for an unknown point."""
    if not setting:
        return Failpoints()
    where, _, marker = setting.partition("@")
    point, _, count = where.partition(":")
    if point not in POINTS:
        raise ValueError(f"there is no failpoint {point!r}; known: {', '.join(POINTS)}")
    if marker and Path(marker).exists():
        return Failpoints()
    return Failpoints(point, int(count or "1"), Path(marker) if marker else None)
