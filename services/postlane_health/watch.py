"""What a worker knows: for each partition that it owns, the providers in it and their windows.

All observations of a provider are in one partition, so one worker sees the whole fleet's. A partition that comes to a
worker begins with empty windows, and its providers are `unknown` until a whole window was watched. One that stays with
the worker over a rebalance keeps its windows while not a record is missing from them: repeated ones are passed over, a
gap begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from postlane.core.health import summarise
from postlane.core.health_facts import Observed, ProviderHealth
from postlane.core.health_state import HealthState
from postlane.core.health_window import Window
from postlane.core.policy import Health

PROVIDERS_MAX = 256  # of one worker
REPEAT_S = 5.0  # a state that stays is said again after this at the latest


@dataclass(slots=True)
class _Known:
    """A provider: its window, and what was said of it last."""

    window: Window
    said: HealthState | None = None
    said_at: float = float("-inf")


@dataclass(slots=True)
class _Owned:
    since: float
    next_offset: int | None = None
    providers: dict[str, _Known] = field(default_factory=dict)


class Word(NamedTuple):
    """Something to say, and in which partition of `mail.health` (the one that it was observed in)."""

    partition: int
    health: ProviderHealth


class Watch:
    """The windows of one worker. Times are monotonic seconds, handed in, but for `at`, the wall's."""

    def __init__(self, policy: Health, instance: str) -> None:
        self._policy = policy
        self._instance = instance
        self._owned: dict[int, _Owned] = {}
        self._repeat_s = min(REPEAT_S, policy.hint_s / 3) if policy.hint_s else REPEAT_S

    @property
    def partitions(self) -> frozenset[int]:
        """Those that are owned."""
        return frozenset(self._owned)

    def assigned(self, numbers: Iterable[int], now: float) -> None:
        """These, and only these, are ours now."""
        self._owned = {number: self._owned.get(number) or _Owned(now) for number in numbers}

    def receive(self, partition: int, offset: int, seen: Observed | None, now: float, at: datetime) -> str:
        """One record, None where it could not be read; returns what became of it, as the metrics name it."""
        owned = self._owned.get(partition)
        if owned is None:
            return "not_owned"
        if owned.next_offset is not None and offset < owned.next_offset:
            return "repeated"
        if owned.next_offset is not None and offset > owned.next_offset:
            self._owned[partition] = owned = _Owned(now)
        owned.next_offset = offset + 1
        if seen is None:
            return "unreadable"
        if (at - seen.at).total_seconds() > self._policy.window_s:
            return "late"  # from before this worker, or from a sender whose clock is wrong
        known = owned.providers.get(seen.provider)
        if known is None:
            if sum(len(one.providers) for one in self._owned.values()) >= PROVIDERS_MAX:
                return "too_many"
            known = owned.providers[seen.provider] = _Known(Window(self._policy.window_s, owned.since))
        known.window.add(now, seen)
        return "merged"

    def view(self, now: float, at: datetime) -> list[Word]:
        """What is known now of every provider."""
        return [
            Word(number, summarise(provider, known.window, now, at, self._policy, self._instance))
            for number, owned in self._owned.items()
            for provider, known in owned.providers.items()
        ]

    def news(self, view: Iterable[Word], now: float) -> list[Word]:
        """What of it is to be said: another state than last time, or the same for a while."""
        found = []
        for word in view:
            known = self._known(word)
            if known is not None and (word.health.state != known.said or now - known.said_at >= self._repeat_s):
                found.append(word)
        return found

    def said(self, word: Word, now: float) -> None:
        """It was written. A provider of which nothing was heard for a whole window is forgotten with that."""
        known = self._known(word)
        if known is None:
            return
        known.said, known.said_at = word.health.state, now
        if known.window.idle(now) and word.health.state is HealthState.UNKNOWN:
            del self._owned[word.partition].providers[word.health.provider]

    def _known(self, word: Word) -> _Known | None:
        owned = self._owned.get(word.partition)
        return None if owned is None else owned.providers.get(word.health.provider)
