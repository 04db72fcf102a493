"""Which fresh delivery may start now, which leaves at once, and which has to wait outside the partition.

Nothing waits in front of others: a delivery that a limit or a pause keeps back leaves as `Held` and comes back when
it is due; one whose provider is busy is passed over for those behind it that go elsewhere. Only when no provider is
healthy does everything wait, in Kafka.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from postlane.core import settle
from postlane.core.books import Entry, Stage
from postlane.core.events import DispatchReady
from postlane.core.limits import Buckets
from postlane.core.policy import Limit
from postlane_sender.lane import LaneState, NotComposable, Placed

PASSED_OVER_MAX = 256
PAUSED_AGAIN_S = 10.0


class Admission:
    """Takes from `lane.fresh` what may start."""

    def __init__(self, lane: LaneState) -> None:
        self._lane = lane
        self._buckets = Buckets()
        limits = lane.config.limits
        self._domains = limits.domains
        self._tenants = limits.tenants
        self._share = 1.0 / max(1, len(lane.config.lanes)) / max(1, lane.partitions)
        self._talking: dict[tuple[str, str], int] = {}

    def admit(self, room: int) -> Iterator[Entry]:
        """Up to `room` entries that were decided: those with stage STARTING-to-be carry a provider and a body, the
        others have a decision. Passed-over entries keep their order."""
        lane = self._lane
        if not lane.gate_open or lane.control.paused("lane", lane.name):
            return
        now, mono = lane.clock.now(), lane.clock.monotonic()
        passed: list[Entry] = []
        while lane.fresh and room > 0 and len(passed) < PASSED_OVER_MAX:
            entry = lane.fresh.popleft()
            if entry.partition not in lane.books or entry.stage is not Stage.FRESH:
                continue  # given up with its partition
            if entry.partition in lane.closing:
                continue  # the next owner takes it
            verdict = self._decide(entry, now, mono)
            if verdict is None:
                passed.append(entry)
                if not lane.courier.usable():
                    break
                continue
            room -= 1
            yield entry
        lane.fresh.extendleft(reversed(passed))

    def _decide(self, entry: Entry, now: datetime, mono: float) -> bool | None:
        """True: starts. False: has a decision. None: every provider that it may go to is busy."""
        lane, mail = self._lane, entry.mail
        assert mail is not None
        decision = self._leaves_at_once(mail, now)
        if decision is None:
            decision = self._limited(entry, mail, now, mono)
        if decision is None:
            placed = lane.courier.place(mail)
            if placed is Placed.REFUSED:
                decision = settle.given_up_everywhere(mail, mail.reason or "refused_by_all_providers", now)
            elif isinstance(placed, Placed):
                return None
            else:
                return self._start(entry, mail, placed, now, mono)
        entry.decision = decision
        entry.stage = Stage.ENDED
        return False

    def _start(self, entry: Entry, mail: DispatchReady, provider: str, now: datetime, mono: float) -> bool:
        lane = self._lane
        entry.provider = provider
        entry.lapse_at = mono + lane.policy.intent_ttl_s
        try:
            entry.envelope_from, entry.recipient, entry.body = lane.compose(mail)
        except NotComposable as error:
            lane.courier.withdraw(entry)
            entry.decision = settle.unsendable(mail, str(error)[:300], now)
            entry.stage = Stage.ENDED
            return False
        return True

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

    # ----------------------------------------------------------------------------------------------------- limits

    def _limited(self, entry: Entry, mail: DispatchReady, now: datetime, mono: float) -> settle.Decision | None:
        if not self._domains and not self._tenants:
            return None
        domain = mail.recipient.rpartition("@")[2].lower()
        for kind, name, limit in (
            ("domain", domain, self._domains.get(domain)),
            ("tenant", mail.tenant, self._tenants.get(mail.tenant)),
        ):
            if limit is None:
                continue
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
                return 1.0 + self._lane.dice.random()
        if limit.rate_per_s is None:
            return None
        rate = limit.rate_per_s * self._share
        bucket = self._buckets.get((kind, name, entry.partition), rate, mono)
        if bucket.take(mono, waited=mail.reason == f"{kind}_limit"):
            return None
        return bucket.queue(mono, self._lane.policy.hold_max_s) - mono

    def begun(self, entry: Entry) -> None:
        """A conversation for this entry counts against its connection limits from now on …"""
        self._count(entry, 1)

    def over(self, entry: Entry) -> None:
        """… until now."""
        self._count(entry, -1)

    def _count(self, entry: Entry, step: int) -> None:
        mail = entry.mail
        if mail is None or not (self._domains or self._tenants):
            return
        for key in (("domain", mail.recipient.rpartition("@")[2].lower()), ("tenant", mail.tenant)):
            left = self._talking.get(key, 0) + step
            if left > 0:
                self._talking[key] = left
            else:
                self._talking.pop(key, None)
