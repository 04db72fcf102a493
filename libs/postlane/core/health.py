"""What the fleet's results say of a provider: unknown, up, degraded or down, and why. Pure.

The first rule that fits wins:
1. unknown: not a whole window was watched (a new owner, a worker that has just started);
2. down: within `recent_s` at least `failures_min` failures, and they are `down_share` of all that came; or nothing but
   shut breakers: every sender that reports has its own open;
3. unknown: fewer than `results_min` results in the window, and no sender's breaker is open;
4. degraded: a share of `degraded_share` in the window was failed, deferred, throttled or blocked; or some senders have
   their breaker open; or answers are slow (95 % within more than `slow_s`, or one has waited for `stuck_s`);
5. up.

Bounces because of recipient, mailbox or content are what a working provider does: a bad list degrades nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from postlane.core.breaker import BreakerState
from postlane.core.health_facts import Figures, ProviderHealth
from postlane.core.health_state import HealthState
from postlane.core.health_sums import Kind, Sums
from postlane.core.health_window import Window
from postlane.core.policy import Health


class Verdict(NamedTuple):
    """A state, and in a few words why; no reason for `up`."""

    state: HealthState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """What a verdict is made from; `full`: a whole window was watched."""

    full: bool
    recent: Sums
    window: Sums
    senders: int = 0
    senders_open: int = 0
    oldest_wait_s: float = 0.0


def judge(view: View, policy: Health) -> Verdict:
    """The verdict on a provider, or on one of its recipient domains (which has no senders)."""
    if not view.full:
        return Verdict(HealthState.UNKNOWN, "not watched for a whole window yet")
    return _down(view, policy) or _too_little(view, policy) or _degraded(view, policy) or Verdict(HealthState.UP)


def _down(view: View, policy: Health) -> Verdict | None:
    recent = view.recent
    failures = recent.counts[Kind.FAILED] + recent.counts[Kind.UNREACHED]
    if failures >= policy.failures_min and recent.share(Kind.FAILED, Kind.UNREACHED) >= policy.down_share:
        return Verdict(HealthState.DOWN, f"{failures} of {recent.count} failed within {policy.recent_s:g} s")
    if view.senders and view.senders == view.senders_open and not recent.answered:
        return Verdict(HealthState.DOWN, f"every sender that reports has it shut ({view.senders})")
    return None


def _too_little(view: View, policy: Health) -> Verdict | None:
    if view.window.count >= policy.results_min or view.senders_open:
        return None
    return Verdict(HealthState.UNKNOWN, f"{view.window.count} results; {policy.results_min} are needed to say")


def _degraded(view: View, policy: Health) -> Verdict | None:
    for kind in (Kind.FAILED, Kind.BLOCKED, Kind.DEFERRED, Kind.THROTTLED):
        kinds = (kind, Kind.UNREACHED) if kind is Kind.FAILED else (kind,)
        share = view.window.share(*kinds)
        if share >= policy.degraded_share:
            return Verdict(HealthState.DEGRADED, f"{share:.0%} {kind}")
    troubled = view.window.share(Kind.FAILED, Kind.UNREACHED, Kind.BLOCKED, Kind.DEFERRED, Kind.THROTTLED)
    if troubled >= policy.degraded_share:
        return Verdict(HealthState.DEGRADED, f"{troubled:.0%} failed, blocked, deferred or throttled")
    if view.senders_open:
        return Verdict(HealthState.DEGRADED, f"{view.senders_open} of {view.senders} senders have it shut")
    answer_s = view.window.answers.quantile(0.95)
    if answer_s is not None and answer_s > policy.slow_s:
        return Verdict(HealthState.DEGRADED, f"answers take {answer_s:.1f} s (95 %)")
    if view.oldest_wait_s > policy.stuck_s:
        return Verdict(HealthState.DEGRADED, f"an answer is awaited for {view.oldest_wait_s:.0f} s")
    return None


def summarise(
    provider: str, window: Window, now: float, at: datetime, policy: Health, instance: str = ""
) -> ProviderHealth:
    """Everything that is said of a provider at `now` (monotonic) and `at` (the same moment on the wall)."""
    full = window.full(now)
    recent, whole = window.sums(now, policy.recent_s), window.sums(now)
    senders = window.senders(now, policy.recent_s)
    view = View(
        full,
        recent.total,
        whole.total,
        senders=len(senders),
        senders_open=sum(sender.breaker is not BreakerState.CLOSED for sender in senders),
        oldest_wait_s=max((sender.oldest_wait_s for sender in senders), default=0.0),
    )
    domains = {}
    for domain, sums in whole.named().items():
        verdict = judge(View(full, recent.domains.get(domain) or Sums(), sums), policy)
        domains[domain] = Figures(**_figures(verdict, sums))
    return ProviderHealth(
        provider=provider,
        at=at,
        instance=instance,
        window_s=window.window_s,
        senders=view.senders,
        senders_open=view.senders_open,
        oldest_wait_s=round(view.oldest_wait_s, 3),
        domains=domains,
        **_figures(judge(view, policy), whole.total),
    )


def _figures(verdict: Verdict, sums: Sums) -> dict[str, Any]:
    def rounded(q: float) -> float | None:
        seconds = sums.answers.quantile(q)
        return None if seconds is None else float(f"{seconds:.3g}")

    return {
        "state": verdict.state,
        "reason": verdict.reason,
        **{kind.value: count for kind, count in sums.counts.items()},
        "answer_p50_s": rounded(0.5),
        "answer_p95_s": rounded(0.95),
        "answer_p99_s": rounded(0.99),
    }
