"""Every promise has a checker, and every checker sees its promise broken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.unit.drill_accounts import LANE, MESSAGE, RECIPIENT, delivered, event, healthy

from postlane.ops.drill import checkers
from postlane.ops.drill.account import Account, Copy, Delivery, Hop, Request
from postlane.ops.drill.checkers import FINAL, LOCAL, check


def test_nothing_is_broken_in_a_healthy_account() -> None:
    account, _ = healthy()
    assert check(account, [MESSAGE]) == []


def test_a_doubt_allows_one_more_copy_of_the_same_bytes() -> None:
    account, delivery = healthy()
    delivery.events.insert(2, event(delivery.ident, "Uncertain", next_at="2030-01-01T00:00:20Z"))
    delivery.copies.append(Copy(120.0, "backup", "digest"))
    assert check(account, [MESSAGE]) == []


def _no_events(account: Account, delivery: Delivery) -> None:
    account.by_message.clear()


def _no_end(account: Account, delivery: Delivery) -> None:
    delivery.events.pop()


def _two_ends(account: Account, delivery: Delivery) -> None:
    delivery.events.append(event(delivery.ident, "Bounced"))


def _two_outcomes(account: Account, delivery: Delivery) -> None:
    delivery.outcomes.append(delivery.outcomes[0])


def _outcome_first(account: Account, delivery: Delivery) -> None:
    delivery.intents[0] = (0, 7, delivery.intents[0][2])


def _no_intent(account: Account, delivery: Delivery) -> None:
    delivery.intents.clear()
    delivery.outcomes.clear()


def _two_copies(account: Account, delivery: Delivery) -> None:
    delivery.copies.append(Copy(101.0, "backup", "digest"))


def _other_bytes(account: Account, delivery: Delivery) -> None:
    delivery.events.insert(2, event(delivery.ident, "Uncertain", next_at="2030-01-01T00:00:20Z"))
    delivery.copies.append(Copy(120.0, "backup", "another"))


def _no_copy(account: Account, delivery: Delivery) -> None:
    delivery.copies.clear()


def _sent_and_denied(account: Account, delivery: Delivery) -> None:
    delivery.events[-1] = event(delivery.ident, "DeadLettered")


def _position_passed(account: Account, delivery: Delivery) -> None:
    account.hops[LANE].append(Hop(5, delivery.ident, 1))
    account.committed[LANE] = 6


def _position_passed_unreadable(account: Account, delivery: Delivery) -> None:
    account.hops[LANE].append(Hop(5, None, 0))
    account.committed[LANE] = 6


def _replayed_to_the_same(account: Account, delivery: Delivery) -> None:
    delivered(account, generation=1, offset=1)
    account.replays.append(Request(MESSAGE, RECIPIENT, 1, forced=False))


def _foreign_copy(account: Account, delivery: Delivery) -> None:
    account.delivery(f"{MESSAGE}.0000000000000000.0").copies.append(Copy(100.0, "primary", "digest"))


SPOILT: list[tuple[Callable[[Account, Delivery], None], str]] = [
    (_no_events, "accepted is kept"),
    (_no_end, "accepted is kept"),
    (_two_ends, "one terminal state"),
    (_two_outcomes, "one outcome per hop"),
    (_outcome_first, "no outcome without an intent"),
    (_no_intent, "no body without an intent"),
    (_two_copies, "copies"),
    (_other_bytes, "a resend is the same bytes"),
    (_no_copy, "doubt is no fact"),
    (_sent_and_denied, "doubt is no fact"),
    (_position_passed, "positions pass nothing unsettled"),
    (_position_passed_unreadable, "positions pass nothing unsettled"),
    (_replayed_to_the_same, "replay guard"),
    (_foreign_copy, "nothing from nowhere"),
]


@pytest.mark.parametrize(("spoil", "promise"), SPOILT, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_promise_is_seen(spoil: Callable[[Account, Delivery], None], promise: str) -> None:
    account, delivery = healthy()
    spoil(account, delivery)
    assert promise in {broken.promise for broken in check(account, [MESSAGE])}


def test_every_checker_has_a_mistake_that_it_sees() -> None:
    seen = set()
    for spoil, _ in SPOILT:
        account, delivery = healthy()
        spoil(account, delivery)
        seen |= {checker for checker in FINAL if list(checker(account, [MESSAGE]))}
    assert seen == set(FINAL)


def test_a_later_hop_settles_the_earlier_ones() -> None:
    account, delivery = healthy()
    account.hops[LANE].append(Hop(5, delivery.ident, 0))  # settled by the outcome of hop 0
    account.committed[LANE] = 6
    assert check(account, [MESSAGE], LOCAL) == []


def test_a_replay_that_was_forced_by_name_may_mail_again() -> None:
    account, _ = healthy()
    delivered(account, generation=1, offset=1)
    account.replays.append(Request(MESSAGE, RECIPIENT, 1, forced=True))
    assert check(account, [MESSAGE]) == []


def test_what_is_not_asked_about_is_not_judged() -> None:
    account, delivery = healthy()
    _two_copies(account, delivery)
    assert check(account, []) == []


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"state": "delivered", "doubts": 0}, None),
        ({"state": "bounced", "doubts": 0}, "the row bounced"),
        ({"state": "delivered", "doubts": 1}, "the row 1"),
        (None, "there is no row"),
    ],
)
def test_the_ledger_is_held_to_the_log(row: dict[str, object] | None, says: str | None) -> None:
    account, delivery = healthy()
    rows = {} if row is None else {delivery.ident: row}
    found = [broken.said for broken in checkers.ledger_is_the_fold(account, [MESSAGE], rows)]
    assert (not found) if says is None else (len(found) == 1 and says in found[0])
