"""`python -m postlane_router`: the router process."""

from __future__ import annotations

import sys

from postlane.service import PORTS, run
from postlane_router.bootstrap import build

if __name__ == "__main__":
    sys.exit(run("router", PORTS["router"], build))
