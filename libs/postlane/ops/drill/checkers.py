"""The promises, one checker each, over an account; pure, and ignorant of how the system works inside.

Every checker compares per id: totals that agree prove nothing. Those in `LOCAL` hold at any moment; those in `FINAL`
once nothing moves any more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from postlane.ops.drill.account import Account, Delivery

# Outcomes that only an attempt can have.
_OF_ATTEMPTS = frozenset({"Delivered", "Bounced", "Deferred", "Uncertain", "Released"})


@dataclass(frozen=True, slots=True)
class Broken:
    """A promise that was not kept, and by which delivery, message or partition."""

    promise: str
    subject: str
    said: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.subject}: {self.said}"


Checker = Callable[[Account, Iterable[str]], Iterator[Broken]]


def accepted_is_kept(account: Account, accepted: Iterable[str]) -> Iterator[Broken]:
    """Every acknowledged publish has a delivery, and every delivery of it has an end."""
    for message in accepted:
        found = account.by_message.get(message)
        if not found:
            yield Broken("accepted is kept", message, "acknowledged, and nowhere in the books")
        for ident in sorted(found or ()):
            delivery = account.deliveries[ident]
            if not delivery.ends:
                last = delivery.events[-1]["type"] if delivery.events else "nothing"
                yield Broken("accepted is kept", ident, f"not settled; the last event is {last}")


def one_end(account: Account, accepted: Iterable[str]) -> Iterator[Broken]:
    """One terminal state per delivery and generation, and one outcome per hop."""
    for delivery in account.of(accepted):
        if len(delivery.ends) > 1:
            yield Broken("one terminal state", delivery.ident, ", ".join(delivery.ends))
        hops = [hop for hop, _, _ in delivery.outcomes]
        for hop in sorted({hop for hop in hops if hops.count(hop) > 1}):
            yield Broken("one outcome per hop", delivery.ident, f"hop {hop} has {hops.count(hop)}")


def intents_before_outcomes(account: Account, accepted: Iterable[str]) -> Iterator[Broken]:
    """No outcome of an attempt without an intent before it in the log, and no copy without any intent."""
    for delivery in account.of(accepted):
        first: dict[int, int] = {}
        for hop, offset, _ in delivery.intents:
            first[hop] = min(offset, first.get(hop, offset))
        for hop, offset, record in delivery.outcomes:
            if record["result"] in _OF_ATTEMPTS and not first.get(hop, offset) < offset:
                yield Broken(
                    "no outcome without an intent", delivery.ident, f"hop {hop} is {record['result']} at {offset}"
                )
        if delivery.copies and not delivery.intents:
            yield Broken("no body without an intent", delivery.ident, "the witness has a copy, the books no intent")


def copies_within_the_rule(account: Account, accepted: Iterable[str]) -> Iterator[Broken]:
    """At most one copy and one more for each doubt that was sent again, all of the same bytes."""
    for delivery in account.of(accepted):
        if len(delivery.copies) > 1 + delivery.resent:
            yield Broken(
                "copies",
                delivery.ident,
                f"the witness has {len(delivery.copies)}, {delivery.resent} doubts were sent again",
            )
        if len({copy.digest for copy in delivery.copies}) > 1:
            yield Broken("a resend is the same bytes", delivery.ident, "the copies differ")


def doubt_is_no_fact(account: Account, accepted: Iterable[str]) -> Iterator[Broken]:
    """Delivered means that the witness has it; any other end without a doubt means that it has not."""
    for delivery in account.of(accepted):
        if "delivered" in delivery.ends and not delivery.copies:
            yield Broken("doubt is no fact", delivery.ident, "recorded as delivered, and the witness has no copy")
        if delivery.copies and delivery.ends and "delivered" not in delivery.ends and not delivery.doubts:
            yield Broken(
                "doubt is no fact",
                delivery.ident,
                f"the witness has {len(delivery.copies)} copies, the books say {delivery.ends[-1]} and no doubt",
            )


def positions_pass_nothing_unsettled(account: Account, accepted: Iterable[str]) -> Iterator[Broken]:
    """Committed offsets never pass a dispatch record without an outcome of its own or of a later hop."""
    latest: dict[str, int] = {}
    for (lane, number), low in account.committed.items():
        settled = account.settled[lane, number]
        for hop in account.hops[lane, number]:
            if hop.offset >= low or hop.offset in settled:
                continue
            if hop.ident is not None:
                if hop.ident not in latest:
                    latest[hop.ident] = _latest_outcome(account.deliveries.get(hop.ident))
                if latest[hop.ident] >= hop.hop:
                    continue
            yield Broken(
                "positions pass nothing unsettled",
                f"{lane}[{number}]",
                f"committed to {low}, past {hop.offset} ({hop.ident}#{hop.hop})",
            )


def _latest_outcome(delivery: Delivery | None) -> int:
    return -1 if delivery is None else max((hop for hop, _, _ in delivery.outcomes), default=-1)


def replay_guard_held(account: Account, accepted: Iterable[str]) -> Iterator[Broken]:
    """A recipient that was delivered to or suppressed is not mailed by a replay unless an operator forced it."""
    forced = {(r.message_id, r.recipient, r.generation) for r in account.replays if r.forced}
    for message in accepted:
        ended: dict[str, tuple[int, str]] = {}  # recipient -> the first generation that was delivered or suppressed
        generations = sorted(account.of([message]), key=_generation)
        for delivery in generations:
            recipient, generation = _recipient(delivery), _generation(delivery)
            before = ended.get(recipient)
            if before is not None and delivery.copies and (message, recipient, generation) not in forced:
                yield Broken("replay guard", delivery.ident, f"sent, and generation {before[0]} was {before[1]}")
            if before is None and delivery.ends and delivery.ends[-1] in ("delivered", "suppressed"):
                ended[recipient] = generation, delivery.ends[-1]


def _recipient(delivery: Delivery) -> str:
    return str(delivery.events[0]["recipient"]) if delivery.events else ""


def _generation(delivery: Delivery) -> int:
    return int(delivery.ident.rpartition(".")[2])


def ledger_is_the_fold(
    account: Account, accepted: Iterable[str], rows: Mapping[str, Mapping[str, object]]
) -> Iterator[Broken]:
    """The ledger's rows (`state`, `doubts` by delivery id) say what the log ends in. It needs more than an account."""
    for delivery in account.of(accepted):
        row = rows.get(delivery.ident)
        last = delivery.ends[-1] if delivery.ends else None
        if row is None:
            yield Broken("the ledger is the fold of the log", delivery.ident, f"the log says {last}, there is no row")
        elif last is not None and not _afterwards(delivery) and row["state"] != last:
            yield Broken(
                "the ledger is the fold of the log", delivery.ident, f"the log says {last}, the row {row['state']}"
            )
        elif row["doubts"] != delivery.doubts:
            yield Broken(
                "the ledger is the fold of the log",
                delivery.ident,
                f"the log has {delivery.doubts} doubts, the row {row['doubts']}",
            )


def _afterwards(delivery: Delivery) -> bool:
    return any(event["type"] in ("Discarded", "Resolved") for event in delivery.events)


def nothing_from_nowhere(account: Account, accepted: Iterable[str]) -> Iterator[Broken]:
    """Every copy of an accepted message belongs to a delivery that the books know."""
    for message in accepted:
        known = account.by_message.get(message, set())
        for ident in _copied(account).get(message, ()):
            if ident not in known:
                yield Broken("nothing from nowhere", ident, "the witness has a copy, the books no event")


def _copied(account: Account) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for ident, delivery in account.deliveries.items():
        if delivery.copies and not delivery.events:
            found[ident.partition(".")[0]].append(ident)
    return found


LOCAL: tuple[Checker, ...] = (
    one_end,
    intents_before_outcomes,
    copies_within_the_rule,
    positions_pass_nothing_unsettled,
    replay_guard_held,
)
FINAL: tuple[Checker, ...] = (*LOCAL, accepted_is_kept, doubt_is_no_fact, nothing_from_nowhere)


def check(
    account: Account, accepted: Iterable[str], checkers: Iterable[Checker] = FINAL, *, found_max: int = 1_000
) -> list[Broken]:
    """Everything that is broken for these messages, at most `found_max`."""
    messages = list(accepted)
    found: list[Broken] = []
    for checker in checkers:
        for broken in checker(account, messages):
            found.append(broken)
            if len(found) >= found_max:
                return found
    return found
