"""`mail.health` as a table in memory: the fleet's last word on each provider, which expires.

`apply` is what a `Tail` calls. A record that cannot be read, or speaks of a provider that is not asked for, changes
nothing and is counted.
"""

from __future__ import annotations

from collections.abc import Iterable

from postlane.clock import Clock
from postlane.core.health_facts import ProviderHealth
from postlane.core.health_state import HealthState
from postlane.eventlog.codec import Unreadable, decode_record
from postlane.eventlog.ports import Received


class HealthTable:
    """What was said of `providers`; `ttl_s` seconds after it was true, and after it came, it counts no more.

    Both clocks are asked: a compact topic keeps last words for ever, and a health worker's clock may be wrong. One that
    is further ahead than `ttl_s` is not believed either.
    """

    def __init__(self, providers: Iterable[str], clock: Clock, ttl_s: float) -> None:
        self._providers = frozenset(providers)
        self._clock = clock
        self._ttl_s = ttl_s
        self._said: dict[str, tuple[ProviderHealth, float]] = {}
        self.passed = 0  # records that changed nothing

    def apply(self, record: Received) -> None:
        """One record of the topic."""
        name = (record.key or b"").decode("utf-8", "replace")
        if name not in self._providers:
            self.passed += 1
            return
        if record.value is None:
            self._said.pop(name, None)
            return
        try:
            health = decode_record(ProviderHealth, record)
        except Unreadable:
            self.passed += 1
            return
        if health.provider == name:
            self._said[name] = (health, self._clock.monotonic())

    def state(self, provider: str) -> HealthState:
        """What the fleet says of it now; unknown where it says nothing (any more)."""
        said = self._said.get(provider)
        if said is None:
            return HealthState.UNKNOWN
        health, came_at = said
        old = self._clock.monotonic() - came_at > self._ttl_s
        off_s = abs((self._clock.now() - health.at).total_seconds())
        return HealthState.UNKNOWN if old or off_s > self._ttl_s else health.state
