"""Which fresh delivery may start now, which leaves at once, and which has to wait outside the partition.

Nothing waits in front of others: a delivery that a limit or a pause keeps back, or whose own providers are all down
while others are not, leaves as `Held` and comes back when it is due; one whose provider is busy is passed over for
those behind it that go elsewhere. Only when no provider is healthy does everything wait, in Kafka.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

from postlane.core import settle
from postlane.core.books import Entry, Stage
from postlane.core.events import DispatchReady
from postlane.core.limits import Buckets
from postlane.core.policy import Limit
from postlane.core.retry import pause_s
from postlane_sender.lane import LaneState, NotComposable, Placed

PASSED_OVER_MAX = 256
PAUSED_AGAIN_S = 10.0
REASON_MAX_CHARS = 300
_WAITED = frozenset({"domain_limit", "tenant_limit"})  # a mail that waited for one limit overtakes nobody at the other
_log = logging.getLogger("postlane.sender")


class Admission:
    """Takes from `lane.fresh` what may start."""

    def __init__(self, lane: LaneState) -> None:
        self._lane = lane
        self._buckets = Buckets()
        limits = lane.config.limits
        self._domains = limits.domains
        self._tenants = limits.tenants
        self._limited = bool(limits.domains or limits.tenants)
        self._share = 1.0 / max(1, len(lane.config.lanes)) / max(1, lane.partitions)
        self._talking: dict[tuple[str, str], int] = {}

    def admit(self, room: int) -> Iterator[Entry]:
        """Up to `room` entries that were decided: those still FRESH start and carry a provider and a body, those that
        ENDED have a decision. Passed-over entries keep their order."""
        lane = self._lane
        if not lane.gate_open or lane.control.paused("lane", lane.name):
            return
        now, mono = lane.clock.now(), lane.clock.monotonic()
        passed: list[Entry] = []
        busy: set[tuple[str, ...]] = set()  # mails that the same providers are left for find no place either
        while lane.fresh and room > 0 and len(passed) < PASSED_OVER_MAX:
            entry = lane.fresh.popleft()
            mail = entry.mail
            if mail is None or entry.partition not in lane.books or entry.stage is not Stage.FRESH:
                continue  # given up with its partition
            if entry.partition in lane.closing:
                continue  # the next owner takes it
            if mail.failed_providers in busy:
                passed.append(entry)
                continue
            if not self._decide(entry, mail, now, mono):
                busy.add(mail.failed_providers)
                passed.append(entry)
                if not lane.courier.usable():
                    break
                continue
            room -= 1
            yield entry
        lane.fresh.extendleft(reversed(passed))

    def _decide(self, entry: Entry, mail: DispatchReady, now: datetime, mono: float) -> bool:
        """False: every provider that it may go to is busy, or none at all is healthy."""
        decision = self._leaves_at_once(mail, now)
        if decision is None and self._limited:
            decision = self._over_limit(entry, mail, now, mono)
        if decision is None:
            placed = self._lane.courier.place(mail)
            if not isinstance(placed, Placed):
                if self._limited:
                    self._spend(entry, mail, mono)
                self._start(entry, mail, placed, now, mono)
                return True
            decision = self._unplaced(mail, placed, now)
            if decision is None:
                return False
        entry.decision = decision
        entry.stage = Stage.ENDED
        return True

    def _start(self, entry: Entry, mail: DispatchReady, provider: str, now: datetime, mono: float) -> None:
        lane = self._lane
        entry.provider = provider
        entry.lapse_at = mono + lane.policy.intent_ttl_s
        try:
            entry.envelope_from, entry.recipient, entry.body = lane.compose(mail)
            return
        except NotComposable as error:
            reason = str(error)
        except Exception as error:  # a mail that breaks the composer is its own trouble, never the lane's
            _log.exception("composing failed", extra={"lane": lane.name, "delivery_id": mail.delivery_id})
            reason = f"composing failed: {type(error).__name__}"
        lane.courier.withdraw(entry)
        entry.decision = settle.unsendable(mail, reason[:REASON_MAX_CHARS], now)
        entry.stage = Stage.ENDED

    def _unplaced(self, mail: DispatchReady, placed: Placed, now: datetime) -> settle.Decision | None:
        if placed is Placed.REFUSED:
            reason = mail.reason or "refused_by_all_providers"
            return settle.given_up_everywhere(mail, reason[:REASON_MAX_CHARS], now)
        if placed is Placed.DOWN and self._lane.courier.usable():
            # The lane goes on without this mail's providers: it waits outside.
            return settle.held(mail, "no_provider", now + timedelta(seconds=self._pause_s(mail)), now)
        return None

    def _leaves_at_once(self, mail: DispatchReady, now: datetime) -> settle.Decision | None:
        control = self._lane.control
        if self._lane.rules.expiry_everywhere and mail.expires_at is not None and now >= mail.expires_at:
            return settle.expired(mail, now)
        if not control.orders:
            return None
        if control.cancelled(mail.message_id, mail.campaign, mail.requested_at):
            return settle.cancelled(mail, now)
        if control.paused("tenant", mail.tenant) or control.paused("campaign", mail.campaign):
            return settle.held(mail, "paused", now + timedelta(seconds=PAUSED_AGAIN_S), now)
        return None

    def _pause_s(self, mail: DispatchReady) -> float:
        return pause_s(mail.hop - (mail.attempt - 1), self._lane.dice.random())

    # ----------------------------------------------------------------------------------------------------- limits

    def _limits(self, mail: DispatchReady) -> Iterator[tuple[str, str, Limit]]:
        domain = mail.recipient.rpartition("@")[2].lower()
        for kind, name, limit in (
            ("domain", domain, self._domains.get(domain)),
            ("tenant", mail.tenant, self._tenants.get(mail.tenant)),
        ):
            if limit is not None:
                yield kind, name, limit

    def _over_limit(self, entry: Entry, mail: DispatchReady, now: datetime, mono: float) -> settle.Decision | None:
        for kind, name, limit in self._limits(mail):
            wait_s = self._wait_s(kind, name, limit, entry, mail, mono)
            if wait_s is not None:
                return settle.held(mail, f"{kind}_limit", now + timedelta(seconds=wait_s), now)
        return None

    def _wait_s(
        self, kind: str, name: str, limit: Limit, entry: Entry, mail: DispatchReady, mono: float
    ) -> float | None:
        """None: it may go. Otherwise the seconds after which it is looked at again."""
        if limit.connections is not None:
            owned = max(1, len(self._lane.books))
            most = max(1, int(limit.connections * self._share * owned))
            if self._talking.get((kind, name), 0) >= most:
                return self._pause_s(mail)
        if limit.rate_per_s is None:
            return None
        bucket = self._buckets.get((kind, name, entry.partition), limit.rate_per_s * self._share, mono)
        if bucket.may(mono, waited=mail.reason in _WAITED):
            return None
        return bucket.queue(mono, self._lane.policy.hold_max_s) - mono

    def _spend(self, entry: Entry, mail: DispatchReady, mono: float) -> None:
        """It goes: only now do its limits pay for it."""
        for kind, name, limit in self._limits(mail):
            if limit.rate_per_s is not None:
                rate = limit.rate_per_s * self._share
                self._buckets.get((kind, name, entry.partition), rate, mono).take(mono, waited=True)

    def begun(self, entry: Entry) -> None:
        """A conversation for this entry counts against its limits of conversations at a time from now on …"""
        if self._limited and not entry.counted:
            entry.counted = True
            self._count(entry, 1)

    def over(self, entry: Entry) -> None:
        """… until now."""
        if entry.counted:
            entry.counted = False
            self._count(entry, -1)

    def _count(self, entry: Entry, step: int) -> None:
        mail = entry.mail
        if mail is None:
            return
        for key in (("domain", mail.recipient.rpartition("@")[2].lower()), ("tenant", mail.tenant)):
            left = self._talking.get(key, 0) + step
            if left > 0:
                self._talking[key] = left
            else:
                self._talking.pop(key, None)
