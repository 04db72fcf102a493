"""From an account and the times of a fault to a verdict. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from postlane.ops.drill.account import Account, Delivery
from postlane.ops.drill.checkers import Broken
from postlane.ops.drill.load import Accepted
from postlane.ops.drill.prometheus import Alarm
from postlane.ops.drill.result import Result, Second, Told

REPEATED = frozenset({"copies", "a resend is the same bytes", "replay guard", "no body without an intent"})
LOST = frozenset({"accepted is kept", "doubt is no fact"})
_SECONDS_MAX = 3_600
_TROUBLE = frozenset({"Deferred", "Held", "Released", "Uncertain", "DeadLettered"})


def measure(
    result: Result, account: Account, accepted: Mapping[str, Accepted], began: float, healed: float, started: float
) -> None:
    """Fill in what the account says of these mails. Times given are Unix seconds, those of the result relative to
    `started` (timeline) or `began` (recovery)."""
    deliveries = [(accepted[m], d) for m in accepted for d in account.of([m])]
    result.accepted = len(accepted)
    result.delivered = sum(1 for _, d in deliveries if "delivered" in d.ends)
    result.uncertain = sum(1 for _, d in deliveries if "uncertain" in d.ends)
    result.doubts = sum(d.doubts for _, d in deliveries)
    result.resent = sum(max(0, len(d.copies) - 1) for _, d in deliveries)
    result.fault_s, result.healed_s = round(began - started, 2), round(healed - started, 2)
    firsts = sorted(_first_copies(deliveries).items(), key=lambda item: item[1])
    arrived = [at for _, at in firsts]
    result.silence_s = round(_longest_silence(arrived, began), 2)
    result.slowest_s = round(_slowest(deliveries), 2)
    after = [(m, at) for m, at in firsts if accepted[m].asked_at >= began and accepted[m].kind == "ordinary"]
    result.first_delivery_s = round(after[0][1] - began, 2) if after else None
    result.rto_s = _recovered(after, accepted, began)
    result.seconds = timeline(accepted.values(), arrived, started)
    if result.seconds:
        result.ends_s = result.seconds[-1].at_s + 1.0


def judge(result: Result, broken: Collection[Broken], unmet: Sequence[str]) -> None:
    """Passed: no promise broken, no expectation unmet, and it came back."""
    result.broken = [str(b) for b in broken]
    result.lost = len({b.subject for b in broken if b.promise in LOST})
    result.repeated = len({b.subject for b in broken if b.promise in REPEATED})
    result.unmet = list(unmet)
    if result.rto_s is None:
        result.unmet.append("no recovery was seen")
    result.verdict = "failed" if result.broken or result.unmet else "passed"


def told(alarms: Iterable[Alarm], began: float, until: float) -> list[Told]:
    """The alerts whose condition came to hold with the fault or in its wake, the soonest first."""
    found: dict[tuple[str, str, float], Told] = {}
    for alarm in alarms:
        if not began <= alarm.since <= until:
            continue
        which = alarm.name, alarm.severity, alarm.for_s
        known = found.get(which)
        fired = alarm.state == "firing" or (known is not None and known.fired)
        after_s = round(alarm.since - began, 1)
        if known is not None and known.condition_s <= after_s:
            known.fired = fired
            continue
        tells_s = round(after_s + alarm.for_s, 1)
        found[which] = Told(*which[:2], after_s, alarm.for_s, tells_s, fired, dict(alarm.labels))
    return sorted(found.values(), key=lambda t: (t.fires_s, t.alert))


def timeline(accepted: Iterable[Accepted], arrived: Iterable[float], started: float) -> list[Second]:
    """Mails published and accepted by the witness, second by second."""
    published = Counter(int(a.at - started) for a in accepted if a.at >= started)
    delivered = Counter(int(at - started) for at in arrived if at >= started)
    last = max([*published, *delivered], default=-1)
    return [Second(float(i), published[i], delivered[i]) for i in range(min(last + 1, _SECONDS_MAX))]


def others(account: Account, mine: Collection[str], began: float) -> set[str]:
    """Deliveries of other publishers that the fault touched: deferred, held, released or in doubt meanwhile."""
    touched = set()
    for delivery in account.deliveries.values():
        if delivery.ident.partition(".")[0] in mine:
            continue
        for event in delivery.events:
            if event["type"] in _TROUBLE and datetime.fromisoformat(event["at"]).timestamp() >= began:
                touched.add(delivery.ident)
    return touched


def _first_copies(deliveries: Iterable[tuple[Accepted, Delivery]]) -> dict[str, float]:
    """When each message first arrived, by message id."""
    found: dict[str, float] = {}
    for mail, delivery in deliveries:
        if delivery.copies:
            at = min(copy.at for copy in delivery.copies)
            found[mail.message_id] = min(at, found.get(mail.message_id, at))
    return found


def _longest_silence(arrived: Sequence[float], began: float) -> float:
    return max((b - a for a, b in itertools.pairwise([began, *(at for at in arrived if at >= began)])), default=0.0)


def _slowest(deliveries: Iterable[tuple[Accepted, Delivery]]) -> float:
    took = [
        min(copy.at for copy in delivery.copies) - mail.at
        for mail, delivery in deliveries
        if delivery.copies and mail.kind == "ordinary"
    ]
    return max([0.0, *took])


def _recovered(after: Sequence[tuple[str, float]], accepted: Mapping[str, Accepted], began: float) -> float | None:
    """Until every partition of every lane that got a mail after the fault had delivered one of those."""
    wanted = {(a.lane, a.partition) for a in accepted.values() if a.asked_at >= began and a.kind == "ordinary"}
    first: dict[tuple[str, int], float] = {}
    for message, at in after:
        first.setdefault((accepted[message].lane, accepted[message].partition), at)
    return round(max(first.values()) - began, 2) if wanted and wanted == set(first) else None
