"""`python -m postlane_sender`: a sender replica."""

from __future__ import annotations

import gc
import sys

from postlane.service import PORTS, run
from postlane_sender.bootstrap import Sender

GC_ALLOCATIONS = 200_000  # mails make no cycles; looking for some every 700 objects costs a fifth of the CPU

if __name__ == "__main__":
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)
    sys.exit(run("sender", PORTS["sender"], Sender))
