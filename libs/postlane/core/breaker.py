"""A circuit breaker with a ramp: pure, told of every result, asked how many connections a provider may have now.

closed: up to `window` connections, which grows with success (AIMD) to the configured number.
open: none until `probe_at`. half_open: one connection; reaching the provider closes the breaker on trial, failing
opens it for longer. On trial the window is one connection, and one failure before the first answered mail opens again.

What the whole fleet sees of the provider (`hinted`) is advice that expires. It never opens a breaker, and counts for
nothing while the sender's own mails are answered. Otherwise "down" makes it careful: one connection first, and its own
next failure opens it. "up" makes an open one look again at the first pause, however long its pauses have become.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from postlane.core.health_state import HealthState

OWN_WORD_S = 10.0  # so long after its own last answered mail a sender needs nobody's advice


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
    hint: HealthState = HealthState.UNKNOWN
    answered: int = 0  # mails,
    _answered_before: int = 0  # at the last look,
    _answered_at: float = float("-inf")  # and when a look last found more of them
    _opened_at: float = 0.0

    def __post_init__(self) -> None:
        self.window = float(self.connections_max)
        self.probe_s = self.probe_first_s

    def allowed(self, now: float) -> int:
        """How many connections may be in use now."""
        if self.state is BreakerState.OPEN:
            if now < self._due():
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
        self.answered += 1
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
        elif self.state is BreakerState.CLOSED and self.failures >= self._failures_to_open(now):
            self._open(now, self.probe_first_s)

    def throttled(self) -> None:
        """The provider asked for a slower pace: half the window, never below one connection."""
        self.window = max(1.0, self.window / 2)

    def hinted(self, hint: HealthState, now: float) -> None:
        """What the fleet says now, `unknown` where it says nothing any more: to be called about once a second."""
        self.hint = hint
        if self._own_word(now):
            return
        if hint is HealthState.DOWN and self.state is BreakerState.CLOSED:
            self.window = 1.0

    def _own_word(self, now: float) -> bool:
        """Whether its own mails were answered of late; to a second or so, since mails do not look at the clock."""
        if self.answered != self._answered_before:
            self._answered_before, self._answered_at = self.answered, now
        return now - self._answered_at < OWN_WORD_S

    def _failures_to_open(self, now: float) -> int:
        careful = self.hint is HealthState.DOWN and not self._own_word(now)
        return 1 if careful else self.failures_to_open

    def _due(self) -> float:
        """When an open one is tried again."""
        if self.hint is HealthState.UP:
            return min(self.probe_at, self._opened_at + self.probe_first_s)
        return self.probe_at

    def _open(self, now: float, probe_s: float) -> None:
        self.state = BreakerState.OPEN
        self._opened_at = now
        self.probe_s = probe_s
        self.probe_at = now + probe_s
        self.trial = False
        self.failures = 0
