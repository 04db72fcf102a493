"""One drill while it is played: what a scenario may use, and what it writes down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from postlane.ops.drill.follow import Follower
from postlane.ops.drill.load import Load
from postlane.ops.drill.site import Site

POLL_S = 0.25


class Abandoned(Exception):
    """The drill ends now: a signal, a budget, a broken promise. Everything is undone on the way out."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened, for the timeline; `at` is Unix time in seconds."""

    at: float
    said: str


@dataclass(slots=True)
class Scene:
    """`look` reads what is new, checks the promises that hold at any moment, and raises Abandoned when it must end."""

    site: Any  # a Site; scenarios that need more of it ask for that kind by their `needs`
    load: Load
    follower: Follower
    look: Callable[[], None]
    tell: Callable[[str], None]
    hold_s: float = 0.0  # how long the fault will last
    began: float = 0.0
    healed: float = 0.0
    recovered: float | None = None
    marks: list[Mark] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # expectations of the scenario that were not met
    figures: dict[str, Any] = field(default_factory=dict)

    def mark(self, said: str) -> float:
        """Write it into the timeline; returns when."""
        now = time.time()
        self.marks.append(Mark(now, said))
        self.tell(said)
        return now

    def expect(self, kept: bool, otherwise: str) -> None:
        """An expectation of this scenario beside the promises that always hold."""
        if not kept:
            self.failed.append(otherwise)

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> bool:
        """Wait, looking all along; False, and an expectation that failed, after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                self.failed.append(f"not within {timeout_s:.0f} s: {what}")
                return False
            self.look()
            time.sleep(POLL_S)
        return True

    def hold(self, seconds: float) -> None:
        """Let it last, looking all along."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.look()
            time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))


Played = Callable[[Scene], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fault, or a mistake, that an operator must have rehearsed.

    `play` injects before its `yield`, which says what was done, and heals after it, whatever happens between.
    `after` looks at what only this scenario promises, once everything is settled. `needs` are abilities of the site;
    `hold_s` how long the fault lasts; `recovers_by`, what its RTO is counted to: deliveries, or a mark of its own.
    """

    name: str
    what: str
    hold_s: float
    needs: frozenset[str]
    play: Callable[[Scene], AbstractContextManager[str]]
    after: Callable[[Scene], None] | None = None
    brokers: int = 1
    senders: int = 2
    routers: int = 1

    def why_not(self, site: Site) -> str | None:
        """Why it cannot be played there; None when it can."""
        missing = sorted(self.needs - site.abilities)
        return f"{site.name} does not allow or have: {', '.join(missing)}" if missing else None


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    hold_s: float,
    *needs: str,
    after: Callable[[Scene], None] | None = None,
    brokers: int = 1,
    senders: int = 2,
    routers: int = 1,
) -> Callable[[Played], Played]:
    """Register a generator function under its name (`sender_crash` → `sender-crash`)."""

    def register(played: Played) -> Played:
        name = played.__name__.replace("_", "-")
        what = " ".join((played.__doc__ or "").split())
        SCENARIOS[name] = Scenario(
            name, what, hold_s, frozenset(needs), contextmanager(played), after, brokers, senders, routers
        )
        return played

    return register
