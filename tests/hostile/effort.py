"""How much the fuzz tests try: a little in `make test`, more with POSTLANE_LONG_TESTS=1, without end in `make fuzz`."""

from __future__ import annotations

import os

LONG = bool(os.environ.get("POSTLANE_LONG_TESTS"))
EXAMPLES = 2000 if LONG else 50
