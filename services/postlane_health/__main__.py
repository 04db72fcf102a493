"""`python -m postlane_health`: a health worker."""

from __future__ import annotations

import sys

from postlane.service import PORTS, run
from postlane_health.bootstrap import build

STOP_TIMEOUT_S = 20.0  # of an app that crashed, Faust's threads may never end

if __name__ == "__main__":
    sys.exit(run("health", PORTS["health"], build, stop_timeout_s=STOP_TIMEOUT_S))
