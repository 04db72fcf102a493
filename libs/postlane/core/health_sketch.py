"""A mergeable sketch of times: counts in buckets whose bounds grow by a constant factor.

Merging adds counts, so the order and the grouping of merges do not matter, and a quantile of the merged sketch is as
good as one of all the times together: within 5 % of a true one between 1 ms and 1 h (DDSketch without its collapsing:
Masson, Rim, Lee, VLDB 2019). At most BUCKETS_MAX + 1 buckets, whatever comes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

FIRST_S = 0.001  # bucket 0: this and anything shorter
FACTOR = 1.1  # bucket i ends at FIRST_S * FACTOR ** i
BUCKETS_MAX = 159  # the last bucket: an hour and anything longer
RELATIVE_ERROR = (FACTOR - 1) / (FACTOR + 1)
_LOG = math.log(FACTOR)
_LAST_S = FIRST_S * FACTOR**BUCKETS_MAX

Buckets = tuple[tuple[int, int], ...]  # (bucket, count), by bucket


def bucket_of(seconds: float) -> int:
    """The bucket of a time; a negative one (a clock that was set) counts as none at all."""
    if not seconds > FIRST_S:
        return 0
    if seconds > _LAST_S:
        return BUCKETS_MAX
    return min(BUCKETS_MAX, math.ceil(math.log(seconds / FIRST_S) / _LOG - 1e-9))


class Sketch:
    """Times in seconds, added one by one or merged."""

    __slots__ = ("_counts",)

    def __init__(self, buckets: Iterable[tuple[int, int]] = ()) -> None:
        self._counts: dict[int, int] = {}
        self.merge(buckets)

    def add(self, seconds: float) -> None:
        """One more time."""
        bucket = bucket_of(seconds)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1

    def merge(self, buckets: Iterable[tuple[int, int]]) -> None:
        """Add what another sketch holds."""
        counts = self._counts
        for bucket, count in buckets:
            counts[bucket] = counts.get(bucket, 0) + count

    @property
    def count(self) -> int:
        """How many times."""
        return sum(self._counts.values())

    @property
    def buckets(self) -> Buckets:
        """All of it, in the one form in which it travels."""
        return tuple(sorted(self._counts.items()))

    def quantile(self, q: float) -> float | None:
        """The time in seconds that a share `q` (0 to 1) of all did not exceed; None of none."""
        count = self.count
        if not count:
            return None
        rank, seen = max(1, math.ceil(q * count)), 0
        for bucket, n in sorted(self._counts.items()):
            seen += n
            if seen >= rank:
                return _middle_s(bucket)
        return None


def _middle_s(bucket: int) -> float:
    """The time that is no further than RELATIVE_ERROR from any in the bucket."""
    return FIRST_S if bucket == 0 else float(2 * FIRST_S * FACTOR**bucket / (FACTOR + 1))
