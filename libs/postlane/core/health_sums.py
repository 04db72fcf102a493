"""Results added up: one second of a sender, one slot of a window, a whole window. Adding is all that happens to them,
so it does not matter who added what first."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from postlane.core.health_facts import DOMAINS_MAX, OTHER, Tally
from postlane.core.health_sketch import Sketch
from postlane.core.replies import ReplyClass

TRACKED_MAX = 512  # domains counted apart before the fewest go together


class Kind(StrEnum):
    """What a result was, as `Tally` names it."""

    DELIVERED = "delivered"
    BOUNCED = "bounced"
    DEFERRED = "deferred"
    THROTTLED = "throttled"
    BLOCKED = "blocked"
    FAILED = "failed"
    UNREACHED = "unreached"


OF_REPLY: dict[ReplyClass, Kind] = {
    ReplyClass.ACCEPTED: Kind.DELIVERED,
    ReplyClass.RECIPIENT: Kind.BOUNCED,
    ReplyClass.MAILBOX: Kind.BOUNCED,
    ReplyClass.CONTENT: Kind.BOUNCED,
    ReplyClass.POLICY: Kind.BLOCKED,
    ReplyClass.INFRASTRUCTURE: Kind.FAILED,
    ReplyClass.TEMPORARY: Kind.DEFERRED,
    ReplyClass.THROTTLED: Kind.THROTTLED,
    ReplyClass.PROVIDER: Kind.FAILED,
}


class Sums:
    """A tally that grows."""

    __slots__ = ("answers", "counts")

    def __init__(self) -> None:
        self.counts: dict[Kind, int] = dict.fromkeys(Kind, 0)
        self.answers = Sketch()

    def note(self, kind: Kind, answer_s: float | None = None) -> None:
        """One more result; `answer_s` is how long the answer took, where there was one to wait for."""
        self.counts[kind] += 1
        if answer_s is not None:
            self.answers.add(answer_s)

    def merge(self, tally: Tally) -> None:
        """Add what somebody else counted."""
        counts = self.counts
        for kind in Kind:
            counts[kind] += getattr(tally, kind)
        self.answers.merge(tally.answer_s)

    def add(self, other: Sums) -> None:
        """Add other sums."""
        for kind, count in other.counts.items():
            self.counts[kind] += count
        self.answers.merge(other.answers.buckets)

    @property
    def tally(self) -> Tally:
        """As it travels."""
        return Tally(**self.counts, answer_s=self.answers.buckets)

    @property
    def count(self) -> int:
        """Results of attempts and of sessions."""
        return sum(self.counts.values())

    @property
    def answered(self) -> int:
        """Attempts that the provider answered itself, whatever it said of the mail."""
        return self.count - self.counts[Kind.FAILED] - self.counts[Kind.UNREACHED]

    def share(self, *kinds: Kind) -> float:
        """The share (0 to 1) of these kinds; 0 of nothing."""
        count = self.count
        return sum(self.counts[kind] for kind in kinds) / count if count else 0.0


class ByDomain:
    """Sums in total and by recipient domain, of which at most TRACKED_MAX are kept apart."""

    __slots__ = ("domains", "total")

    def __init__(self) -> None:
        self.total = Sums()
        self.domains: dict[str, Sums] = {}

    def note(self, domain: str, kind: Kind, answer_s: float | None = None) -> None:
        """One more result of a mail to that domain."""
        self.total.note(kind, answer_s)
        self._of(domain).note(kind, answer_s)

    def merge(self, total: Tally, domains: Iterable[tuple[str, Tally]]) -> None:
        """Add what somebody else counted."""
        self.total.merge(total)
        for domain, tally in domains:
            self._of(domain).merge(tally)

    def add(self, other: ByDomain) -> None:
        """Add other sums."""
        self.total.add(other.total)
        for domain, sums in other.domains.items():
            self._of(domain).add(sums)

    def named(self) -> dict[str, Sums]:
        """The DOMAINS_MAX domains with the most results, by name, and OTHER for the rest where there is one."""
        apart = sorted((d for d in self.domains if d != OTHER), key=lambda d: (-self.domains[d].count, d))
        named = {domain: self.domains[domain] for domain in sorted(apart[:DOMAINS_MAX])}
        rest = [*apart[DOMAINS_MAX:], *(d for d in (OTHER,) if d in self.domains)]
        if rest:
            named[OTHER] = Sums()
            for domain in rest:
                named[OTHER].add(self.domains[domain])
        return named

    def _of(self, domain: str) -> Sums:
        sums = self.domains.get(domain)
        if sums is None:
            if len(self.domains) >= TRACKED_MAX and domain != OTHER:
                return self._of(OTHER)
            sums = self.domains[domain] = Sums()
        return sums
