"""What the sender tells of itself beyond what its parts count: waits, attempts, dead letters, books, providers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from postlane.core.books import Book, Entry
from postlane.core.events import DispatchReady

if TYPE_CHECKING:
    from postlane_sender.lane import LaneState
    from postlane_sender.link import Link

# Reasons of a hop that is no delay of the first attempt: it was held back on purpose, or a server was asked before.
_NO_DELAY = frozenset({"paused", "tenant_limit", "domain_limit", "throttled", "provider"})
_WORD = re.compile(r"[a-z][a-z_]{1,30}")


def attempted(lane: LaneState, provider: str, entry: Entry) -> None:
    """The server said its last word on a mail whose intent was made `intent_ttl_s` before it would lapse."""
    took_s = lane.clock.monotonic() - entry.lapse_at + lane.policy.intent_ttl_s
    trace_id = "" if entry.span is None else entry.span.trace_id
    lane.metrics.attempt_seconds.labels(lane.name, provider).observe(took_s, trace_id)
    mail = entry.mail
    if mail is None or mail.attempt > 1:
        return
    since = _waits_since(mail)
    if since is not None:
        waited_s = max(0.0, (lane.clock.now() - since).total_seconds() - took_s)
        lane.metrics.first_attempt_seconds.labels(lane.name).observe(waited_s, trace_id)


def _waits_since(mail: DispatchReady) -> datetime | None:
    """When the wait for the first attempt began: acceptance, or send_at; None where it is not to be counted.

    A scheduled mail that was released before its first attempt counts from acceptance: send_at is not known any more.
    """
    if mail.hop == 0:
        return mail.due_at or mail.requested_at
    return None if mail.reason in _NO_DELAY else mail.requested_at


def settled(lane: LaneState, entry: Entry) -> None:
    """The outcome of an entry is in Kafka."""
    decision, metrics = entry.decision, lane.metrics
    if decision is None:
        metrics.outcomes_total.labels(lane.name, "Undecodable").inc()
        metrics.dead_letters_total.labels(lane.name, "undecodable").inc()
        return
    metrics.outcomes_total.labels(lane.name, type(decision.event).__name__).inc()
    if decision.dead_letter is not None:
        metrics.dead_letters_total.labels(lane.name, reason_label(decision.dead_letter)).inc()


def reason_label(reason: str) -> str:
    """One of few words: what a server or a template said in its own words is no label."""
    word = reason.partition(":")[0].strip().lower().replace(" ", "_")
    return word if _WORD.fullmatch(word) else "other"


def say_books(lane: LaneState) -> None:
    """How far the books of a lane reach back."""
    lag = max((_state_lag(book) for book in lane.books.values()), default=0)
    lane.metrics.state_lag.labels(lane.name).set(lag)
    lane.metrics.span_max.labels(lane.name).set(lane.policy.max_span)


def _state_lag(book: Book) -> int:
    floor = next((cell.position for cell in book.cells if cell.entries), book.state_end)
    return max(0, book.state_end - floor)


def say_links(links: Sequence[Link]) -> None:
    """What is placed with each provider, and since when the oldest of it."""
    for link in links:
        lane = link.pool.lane
        now = lane.clock.monotonic()
        oldest = min((entry.lapse_at for entry, (at, _) in link.pool.where.items() if at is link), default=None)
        age_s = 0.0 if oldest is None else max(0.0, now - oldest + lane.policy.intent_ttl_s)
        lane.metrics.under_way.labels(lane.name, link.name).set(link.places)
        lane.metrics.provider_oldest_seconds.labels(lane.name, link.name).set(age_s)
