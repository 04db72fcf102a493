"""`python -m postlane_sender`: a sender replica."""

from __future__ import annotations

import sys

from postlane.service import PORTS, run
from postlane_sender.bootstrap import Sender

if __name__ == "__main__":
    sys.exit(run("sender", PORTS["sender"], Sender))
