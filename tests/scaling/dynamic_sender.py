"""`python -m tests.scaling.dynamic_sender`: a sender that is a dynamic member of its group, to compare with."""

from __future__ import annotations

import sys
from typing import Any

from postlane.eventlog.kafka import KafkaLog
from postlane.service import PORTS, run
from postlane_sender.bootstrap import Sender

_static = KafkaLog.member


async def _dynamic(self: KafkaLog, *args: Any, **options: Any) -> Any:
    return await _static(self, *args, **{**options, "instance_id": None})


if __name__ == "__main__":
    KafkaLog.member = _dynamic  # type: ignore[method-assign]
    sys.exit(run("sender", PORTS["sender"], Sender))
