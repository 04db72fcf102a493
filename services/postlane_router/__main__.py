"""`python -m postlane_router`: the router process."""

from __future__ import annotations

import gc
import sys

from postlane.service import PORTS, run
from postlane_router.bootstrap import build

GC_ALLOCATIONS = 1_000_000  # two batches hold up to that many objects; collecting amid them costs much of the CPU

if __name__ == "__main__":
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)
    sys.exit(run("router", PORTS["router"], build))
