"""What becomes of a bounce that comes after the server had accepted the mail: (report, delivery, now) -> decisions.

Which delivery it is about must be proven, by the signed return path it came to (postlane.core.return_path) or by a
caller whose word counts; who of the report is our recipient must be proven too, since the delivery's name holds a
digest of the address. A report that proves neither changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum

from postlane.core.addresses import InvalidAddress, parse_mailbox
from postlane.core.dsn import Action, Report, Reported, Returned
from postlane.core.events import EVERY_TENANT, Bounced, ReplyInfo, Suppression
from postlane.core.identity import delivery_id, split_delivery_id
from postlane.core.replies import Phase, Reply, classify

SUPPRESSED_BECAUSE = "bounced"
# RFC 3463 3.2: bad mailbox, bad system, bad syntax, moved without a forwarding address; RFC 7505 4.1: null MX.
NO_SUCH_ADDRESS = frozenset({"1.1", "1.2", "1.3", "1.6", "1.10"})
CODE_UNKNOWN = 550  # what stands for the server's code where the report gives none
RECIPIENT_SHOWN_MAX_CHARS = 320
_TRACE = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})")
_MESSAGE_ID = re.compile(r"<?([^<>@\s]{1,128})@[^<>@\s]{1,255}>?")


class Outcome(StrEnum):
    """What a report came to, per recipient; the label of the metric."""

    SUPPRESSED = "suppressed"  # bounced, and the address is never mailed again
    BOUNCED = "bounced"
    FORWARDED = "forwarded"  # bounced, at an address that the mail was passed on to: nothing is known of ours
    UNPROVEN = "unproven_recipient"  # bounced; who the recipient is was not shown
    OTHER_RECIPIENT = "other_recipient"  # failed for somebody else too: one event for one delivery
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"
    UNKNOWN_DELIVERY = "unknown_delivery"
    NOT_A_REPORT = "not_a_report"


class Proof(IntEnum):
    """How the recipient that a report speaks of was shown to be ours; the lower, the better."""

    FINAL = 0  # the final recipient is the delivery's
    ORIGINAL = 1  # the original recipient is
    RETURNED = 2  # To or Cc of the mail that came back has it
    NONE = 3


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one recipient of a report: an event and a suppression, one of them, or neither."""

    outcome: Outcome
    recipient: str
    event: Bounced | None = None
    suppression: Suppression | None = None


def delivery_in(returned: Returned) -> str | None:
    """The delivery that the headers of the returned mail name: only for a report from a caller whose word counts."""
    found = _MESSAGE_ID.fullmatch(returned.message_id or "")
    for text in (returned.delivery, found and found[1]):
        try:
            split_delivery_id(text or "")
        except ValueError:
            continue
        return text
    return None


def traceparent(returned: Returned) -> str | None:
    """The W3C trace context (level 1, 3.2) that the returned mail's header names; None where it is not well-formed."""
    found = _TRACE.fullmatch(returned.trace or "")
    if found is None or not (found[1].strip("0") and found[2].strip("0")):
        return None
    return f"00-{found[1]}-{found[2]}-01"


def decide(report: Report, delivery: str | None, now: datetime, suppress: bool = True) -> list[Decision]:
    """One decision for each recipient of the report, at most one of them with an event.

    `delivery` is the one that the way in has proven, None where none was. `suppress` False: nobody goes on the list.
    """
    try:
        message, _, generation = split_delivery_id(delivery or "")
    except ValueError:
        return [Decision(Outcome.UNKNOWN_DELIVERY, _shown(each)) for each in report.recipients]
    assert delivery is not None
    ours = _Ours(delivery, message, generation)
    returned = ours.among(*report.returned.addresses)
    proofs = [_proof(each, ours, returned) for each in report.recipients]
    chosen = _chosen(report, [proof for proof, _ in proofs])
    decisions = []
    for place, (each, (proof, address)) in enumerate(zip(report.recipients, proofs, strict=True)):
        if each.action is not Action.FAILED:
            decisions.append(Decision(Outcome(each.action.value), _shown(each)))
        elif place != chosen:
            decisions.append(Decision(Outcome.OTHER_RECIPIENT, _shown(each)))
        else:
            decisions.append(_bounced(each, proof, address, delivery, now, suppress))
    return decisions


def _chosen(report: Report, proofs: list[Proof]) -> int | None:
    """The place of the recipient whose failure is the delivery's: the best proven one.

    None when nothing failed, or when the delivery's own recipient is reported as reached: what failed then is somebody
    whom the mail was passed on to.
    """
    failed = [place for place, each in enumerate(report.recipients) if each.action is Action.FAILED]
    if not failed:
        return None
    best = min(failed, key=lambda place: proofs[place])
    reached = {Action.DELIVERED, Action.RELAYED, Action.EXPANDED}
    if any(proofs[n] < proofs[best] for n, each in enumerate(report.recipients) if each.action in reached):
        return None
    return best


def _bounced(
    each: Reported, proof: Proof, address: str | None, delivery: str, now: datetime, suppress: bool
) -> Decision:
    message, _, generation = split_delivery_id(delivery)
    reply = _reply(each)
    kind = classify(reply, Phase.RCPT)
    event = Bounced(
        message_id=message,
        delivery_id=delivery,
        recipient=address or _shown(each),
        generation=generation,
        at=now,
        reply=ReplyInfo(code=reply.code, enhanced=reply.enhanced, text=reply.text),
        reason=kind.value,
    )
    if address is None:
        return Decision(Outcome.UNPROVEN, event.recipient, event)
    failed_at = next(_normal(each.final_recipient), None)
    if failed_at is not None and failed_at.lower() != address.lower():
        return Decision(Outcome.FORWARDED, address, event)
    if not (suppress and failed_at is not None and _no_such_address(reply)):
        return Decision(Outcome.BOUNCED, address, event)
    suppression = Suppression(tenant=EVERY_TENANT, address=address.lower(), reason=SUPPRESSED_BECAUSE, at=now)
    return Decision(Outcome.SUPPRESSED, address, event, suppression)


def _reply(each: Reported) -> Reply:
    """The reply for which it was given up. The server's own words go before the report's status, which some systems
    fill in from a list; a code that is no refusal counts for nothing."""
    enhanced = each.enhanced
    if enhanced is None or enhanced.startswith("2"):
        enhanced = each.status if each.status and not each.status.startswith("2") else None
    code = each.code
    if code is None or code < 400:
        code = 450 if enhanced is not None and enhanced.startswith("4") else CODE_UNKNOWN
    return Reply(code, enhanced, each.text)


def _no_such_address(reply: Reply) -> bool:
    """Whether the enhanced code says that the address does not exist; words alone are not enough for all tenants, nor
    is 5.1.0, by which servers speak of senders too."""
    for_good = reply.code >= 500 and reply.enhanced is not None and reply.enhanced.startswith("5.")
    return for_good and (reply.enhanced or "")[2:] in NO_SUCH_ADDRESS


@dataclass(frozen=True, slots=True)
class _Ours:
    """The recipient of one delivery, known by its digest."""

    delivery: str
    message: str
    generation: int

    def among(self, *texts: str | None) -> str | None:
        """The recipient, in the form that the router made, where one of these is it."""
        for address in _normal(*texts):
            if delivery_id(self.message, address, self.generation) == self.delivery:
                return address
        return None


def _proof(each: Reported, ours: _Ours, returned: str | None) -> tuple[Proof, str | None]:
    """How the recipient was shown to be the delivery's, and its address; `returned`: that of To or Cc that is it."""
    if (address := ours.among(each.final_recipient)) is not None:
        return Proof.FINAL, address
    if (address := ours.among(each.original_recipient, each.original_as_sent)) is not None:
        return Proof.ORIGINAL, address
    return (Proof.NONE, None) if returned is None else (Proof.RETURNED, returned)


def _normal(*texts: str | None) -> Iterator[str]:
    """Those that are addresses, as the router spells them (postlane.core.route)."""
    for text in texts:
        try:
            yield parse_mailbox(text or "").address
        except InvalidAddress:
            continue


def _shown(each: Reported) -> str:
    text = each.final_recipient or each.original_recipient or ""
    return next(_normal(text), text)[:RECIPIENT_SHOWN_MAX_CHARS]
