"""Rates that hold fleet-wide without asking anybody: each partition of a lane spends its own share.

A bucket is a generic cell rate algorithm (GCRA) in two cursors: one for mails that go, one that hands out the times
at which those that may not go are looked at again, so that 100,000 held mails come back at the rate they may go at.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

BUCKETS_MAX = 10_000


@dataclass(slots=True)
class Bucket:
    """`rate_per_s` mails a second with a burst of `burst_s` seconds' worth. Times are seconds, handed in."""

    rate_per_s: float
    burst_s: float = 1.0
    ready_at: float = 0.0  # theoretical arrival time of the next mail
    queue_at: float = 0.0  # when the last of those waiting comes back

    def take(self, now: float, *, waited: bool) -> bool:
        """Whether a mail may go now. One that has not waited may not overtake those that do."""
        if not self.may(now, waited=waited):
            return False
        self.ready_at = max(self.ready_at, now) + 1 / self.rate_per_s
        return True

    def may(self, now: float, *, waited: bool) -> bool:
        """What `take` would say; changes nothing."""
        if not waited and self.queue_at > now:
            return False
        return self.ready_at - now <= max(self.burst_s - 1 / self.rate_per_s, 0.0)

    def queue(self, now: float, wait_max_s: float) -> float:
        """The time at which a mail that may not go now is to come back, at most `wait_max_s` from now."""
        self.queue_at = max(self.queue_at, self.ready_at, now) + 1 / self.rate_per_s
        return min(self.queue_at, now + wait_max_s)


@dataclass(slots=True)
class Buckets:
    """Buckets by key, made on demand, bounded: those that have nothing to remember are dropped first."""

    buckets: dict[Hashable, Bucket] = field(default_factory=dict)

    def get(self, key: Hashable, rate_per_s: float, now: float) -> Bucket:
        """The bucket of `key`, with its rate brought up to date."""
        found = self.buckets.get(key)
        if found is None:
            if len(self.buckets) >= BUCKETS_MAX:
                self._drop_idle(now)
            found = self.buckets[key] = Bucket(rate_per_s)
        found.rate_per_s = rate_per_s
        return found

    def _drop_idle(self, now: float) -> None:
        self.buckets = {k: b for k, b in self.buckets.items() if b.ready_at > now or b.queue_at > now}
