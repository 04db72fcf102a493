"""When something that may not go now may go again: pure functions of the policy, counts, the time and a die roll."""

from __future__ import annotations

from datetime import datetime, timedelta

from postlane.core.policy import Retry

PAUSE_FIRST_S = 1.0
PAUSE_MAX_S = 60.0


def backoff_s(policy: Retry, failures: int, roll: float) -> float:
    """Seconds until the next attempt after `failures` (1, 2, …) attempts failed; `roll` in [0, 1) is the jitter's die.

    first · factor^(failures-1), at most max, times 1 ± jitter.
    """
    exponent = min(max(failures, 1) - 1, 64)
    plain = min(policy.first_s * policy.factor**exponent, policy.max_s)
    return plain * (1 + policy.jitter * (2 * roll - 1))


def next_attempt_at(policy: Retry, failures: int, now: datetime, roll: float) -> datetime:
    """The time of the next attempt after the `failures`th failed at `now`."""
    return now + timedelta(seconds=backoff_s(policy, failures, roll))


def pause_s(moves: int, roll: float) -> float:
    """Seconds before a mail that spent no attempt is looked at again; `moves` counts how often that happened.

    1 s, doubling to a minute, ± 20 %.
    """
    plain = min(PAUSE_FIRST_S * 2.0 ** min(max(moves, 0), 16), PAUSE_MAX_S)
    return plain * (0.8 + 0.4 * roll)


def expires_at(policy: Retry, requested_at: datetime, asked: datetime | None) -> datetime:
    """The earlier of what the publisher asked for and what the policy allows."""
    latest = requested_at + timedelta(seconds=policy.expire_after_s)
    return latest if asked is None else min(asked, latest)
