"""A steady stream of mails, and when the server took those of each partition."""

from __future__ import annotations

import threading
import time
import uuid
from collections import defaultdict
from itertools import pairwise
from types import TracebackType

from postlane import Mail
from tests.acceptance.rig import Rig
from tests.scaling.pods import LANE


class Load:
    """`with Load(rig, per_s) as load:` — publishes until the block ends; what was acknowledged is in `rig.accepted`."""

    def __init__(self, rig: Rig, per_s: float) -> None:
        self._rig = rig
        self._per_s = per_s
        self._ending = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load")
        self.partition_of: dict[str, int] = {}

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(60)
        if self._failure is not None and value is None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._publish()
        except BaseException as error:
            self._failure = error

    def _publish(self) -> None:
        batch, number, began, waiting = uuid.uuid4().hex[:6], 0, time.monotonic(), []
        while not self._ending.wait(0.02):
            due = int((time.monotonic() - began) * self._per_s)
            for number in range(number, due):  # noqa: B020 - goes on where it was
                mail = Mail(
                    sender="shop@example.org",
                    to=[f"r{number}-{batch}@example.com"],
                    subject=f"Mail {number}",
                    text="Hello",
                    lane=LANE,
                )
                waiting.append((mail, self._rig.publisher.publish_soon(mail, key=f"{batch}-{number}")))
            number = due
        for mail, future in waiting:
            receipt = future.result(60)
            self._rig.accepted[receipt.message_id] = mail
            self.partition_of[receipt.message_id] = receipt.partition


class Arrivals:
    """When the witness took a mail of each partition, in its own clock (Unix seconds)."""

    def __init__(self, rig: Rig, load: Load) -> None:
        self._at: dict[int, list[float]] = defaultdict(list)
        for entry in rig.practice.control.ledger():
            message = (entry.delivery or "").split(".")[0]
            if entry.accepted and message in load.partition_of:
                self._at[load.partition_of[message]].append(entry.at)
        for times in self._at.values():
            times.sort()

    def pauses(self, since: float, until: float) -> dict[int, float]:
        """The longest time without a mail of each partition, of those that begin within the span."""
        longest = {}
        for number, times in self._at.items():
            spans = [b - a for a, b in pairwise(times) if since - 1 <= a <= until]
            longest[number] = max(spans, default=0.0)
        return longest
