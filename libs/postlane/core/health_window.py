"""The last seconds of one provider, in slots: what came, from how many senders, and since when all of it was seen.

Time is the caller's monotonic seconds. Memory: slots x domains (bounded) and the senders that reported within it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from postlane.core.breaker import BreakerState
from postlane.core.health_facts import Observed
from postlane.core.health_sums import ByDomain

SENDERS_MAX = 1024
SLOTS = 15  # of a window: it is exact to a fifteenth of itself


@dataclass(slots=True)
class _Slot:
    number: int
    sums: ByDomain = field(default_factory=ByDomain)


@dataclass(frozen=True, slots=True)
class Sender:
    """How one sender stood to the provider when it last said so."""

    at: float
    breaker: BreakerState
    oldest_wait_s: float


class Window:
    """A sliding window over what senders observed of one provider; `since`: when watching began."""

    def __init__(self, window_s: float, since: float) -> None:
        self.window_s = window_s
        self.since = since
        self._slot_s = window_s / SLOTS
        self._slots: deque[_Slot] = deque()
        self._senders: dict[str, Sender] = {}

    def add(self, now: float, seen: Observed) -> None:
        """What one sender observed, which came now. Time never goes back: what would be earlier counts as now."""
        number = int(now // self._slot_s)
        if not self._slots or self._slots[-1].number < number:
            self._slots.append(_Slot(number))
            self._forget(now)
        self._slots[-1].sums.merge(seen.total, seen.domains.items())
        self._senders.pop(seen.instance, None)  # the latest to report is the last in order
        self._senders[seen.instance] = Sender(now, seen.breaker, seen.oldest_wait_s)
        if len(self._senders) > SENDERS_MAX:
            del self._senders[next(iter(self._senders))]

    def full(self, now: float) -> bool:
        """Whether a whole window was watched."""
        return now - self.since >= self.window_s

    def sums(self, now: float, last_s: float | None = None) -> ByDomain:
        """What came within the last seconds (None: the window), to a slot: the slot that is under way comes on top."""
        self._forget(now)
        span_s = self.window_s if last_s is None else last_s
        first = int(now // self._slot_s) - max(1, round(span_s / self._slot_s))
        found = ByDomain()
        for slot in self._slots:
            if slot.number >= first:
                found.add(slot.sums)
        return found

    def senders(self, now: float, last_s: float) -> list[Sender]:
        """Those that reported within the last seconds."""
        return [sender for sender in self._senders.values() if now - sender.at <= last_s]

    def idle(self, now: float) -> bool:
        """Whether nothing was said within the window."""
        self._forget(now)
        return not self._slots and not self._senders

    def _forget(self, now: float) -> None:
        first = int(now // self._slot_s) - SLOTS
        while self._slots and self._slots[0].number < first:
            self._slots.popleft()
        gone = [name for name, sender in self._senders.items() if now - sender.at > self.window_s]
        for name in gone:
            del self._senders[name]
