"""Accounts of deliveries for the tests of drills: a healthy one, to be spoilt."""

from __future__ import annotations

from postlane.core.identity import delivery_id
from postlane.ops.drill.account import Account, Copy, Delivery, Hop

MESSAGE = "00000000-0000-7000-8000-000000000001"
RECIPIENT = "ada@example.com"
LANE = ("transactional", 0)


def delivered(account: Account, message: str = MESSAGE, generation: int = 0, offset: int = 0) -> Delivery:
    """One mail, sent once: request, intent, copy, outcome, position."""
    ident = delivery_id(message, RECIPIENT, generation)
    delivery = account.delivery(ident)
    account.by_message[message].add(ident)
    for kind in ("Routed", "Attempted", "Delivered"):
        delivery.events.append(event(ident, kind))
    delivery.intents.append((0, 10 * offset, {"kind": "intent", "offset": offset}))
    delivery.outcomes.append((0, 10 * offset + 1, {"kind": "outcome", "offset": offset, "result": "Delivered"}))
    delivery.copies.append(Copy(100.0, "primary", "digest"))
    account.hops[LANE].append(Hop(offset, ident, 0))
    account.settled[LANE].add(offset)
    account.committed[LANE] = offset + 1
    return delivery


def event(ident: str, kind: str, **more: object) -> dict[str, object]:
    return {
        "type": kind,
        "delivery_id": ident,
        "message_id": ident.partition(".")[0],
        "recipient": RECIPIENT,
        "at": "2030-01-01T00:00:10Z",
        **more,
    }


def healthy() -> tuple[Account, Delivery]:
    account = Account()
    return account, delivered(account)
