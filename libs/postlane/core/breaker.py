"""A circuit breaker with a ramp: pure, told of every result, asked how many connections a provider may have now.

closed: up to `window` connections, which grows with success (AIMD) to the configured number.
open: none until `probe_at`. half_open: one connection; reaching the provider closes the breaker on trial, failing
opens it for longer. On trial the window is one connection, and one failure before the first answered mail opens again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True)
class Breaker:
    """One provider as one sender sees it. Times are monotonic seconds, handed in."""

    connections_max: int
    failures_to_open: int
    probe_first_s: float
    probe_max_s: float
    state: BreakerState = BreakerState.CLOSED
    window: float = 0.0
    failures: int = 0
    probe_s: float = 0.0
    probe_at: float = 0.0
    trial: bool = False  # reached again, but no mail was answered yet

    def __post_init__(self) -> None:
        self.window = float(self.connections_max)
        self.probe_s = self.probe_first_s

    def allowed(self, now: float) -> int:
        """How many connections may be in use now."""
        if self.state is BreakerState.OPEN:
            if now < self.probe_at:
                return 0
            self.state = BreakerState.HALF_OPEN
        if self.state is BreakerState.HALF_OPEN:
            return 1
        return max(1, int(self.window))

    def healthy(self, now: float) -> bool:
        """Whether a mail may be given to the provider at all."""
        return self.allowed(now) > 0

    def succeeded(self) -> None:
        """A mail was answered by the provider, whatever the answer said of the mail itself."""
        self.failures = 0
        self.trial = False
        self.probe_s = self.probe_first_s
        if self.state is not BreakerState.CLOSED:
            self.state = BreakerState.CLOSED
            self.window = 1.0
        elif self.window < self.connections_max:
            self.window = min(self.window + 1.0, float(self.connections_max))

    def reached(self) -> None:
        """A probe got through to the provider: mails may be tried, one connection first."""
        if self.state is not BreakerState.CLOSED:
            self.state = BreakerState.CLOSED
            self.window = 1.0
            self.failures = 0
            self.trial = True

    def failed(self, now: float) -> None:
        """The provider could not be reached, shut the door, or lost a connection."""
        self.failures += 1
        if self.state is BreakerState.HALF_OPEN or self.trial:
            self._open(now, min(self.probe_s * 2, self.probe_max_s))
        elif self.state is BreakerState.CLOSED and self.failures >= self.failures_to_open:
            self._open(now, self.probe_first_s)

    def throttled(self) -> None:
        """The provider asked for a slower pace: half the window, never below one connection."""
        self.window = max(1.0, self.window / 2)

    def _open(self, now: float, probe_s: float) -> None:
        self.state = BreakerState.OPEN
        self.probe_s = probe_s
        self.probe_at = now + probe_s
        self.trial = False
        self.failures = 0
