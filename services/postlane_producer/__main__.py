"""`python -m postlane_producer`: the gateway."""

from __future__ import annotations

import sys

from postlane.service import PORTS, run
from postlane_producer.bootstrap import build

if __name__ == "__main__":
    sys.exit(run("producer", PORTS["producer"], build))
