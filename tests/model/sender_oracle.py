"""The properties of the sender's model, and the commit where most of them are decided.

1 nothing is lost  2 no body without a committed intent  3 copies <= 1 + recorded doubts (park: 1)  4 offsets never
pass an unsettled delivery  5 doubt is never recorded as fact  6 one outcome and one next hop each  7 no body for a
settled record  8 no plain failure claimed over an accepted copy
"""

from __future__ import annotations

from .sender_rules import Rules
from .sender_state import (
    COMMITTED,
    COMMITTING,
    DELIVERED,
    FAILED,
    FRESH,
    IN_DOUBT,
    INTENT,
    NAMES,
    RELEASED,
    SETTLED,
    UNCERTAIN,
    Entry,
    Ghost,
    Record,
    Transaction,
    World,
    put,
    with_transaction,
)


def commit(rules: Rules, world: World, who: int) -> tuple[World, str | None]:
    """The coordinator decides the transaction of `who`: hops are visible, both markers are on their way."""
    transaction = world.transactions[who]
    assert transaction is not None
    ghost, broken = record(rules, world, who, transaction.intents, transaction.outcomes)
    offsets = transaction.offsets
    broken = broken or scheduled_twice(rules, world, transaction.hops)
    if offsets is not None and not broken:
        broken = passes_unsettled(rules, world, ghost, offsets.low_water)
    decided = Transaction(COMMITTING, (), (), False, (), (), offsets, True, offsets is not None)
    after = with_transaction(world, who, decided)
    return after._replace(ghost=ghost, delayed=tuple(sorted(world.delayed + transaction.hops))), broken


def record(
    rules: Rules, world: World, who: int, intents: tuple[int, ...], outcomes: tuple[tuple[int, str], ...]
) -> tuple[Ghost, str | None]:
    """What the witness thinks of committed intents and outcomes."""
    ghost = world.ghost
    doubts, terminal, settled, broken = ghost.doubts, ghost.terminal, ghost.settled, None
    for offset, result in outcomes:
        row = world.dispatch[offset]
        delivery = row.delivery
        wrong = _wrong_outcome(rules, ghost, row, (offset, who), offset in settled, result)
        broken = broken or wrong
        settled = settled | {offset}
        if result == UNCERTAIN and rules.policies[delivery] == "resend":
            doubts = put(doubts, delivery, doubts[delivery] + 1)
        if next_hop(rules, row, result) is None:
            terminal = put(terminal, delivery, result)
    told = ghost.intents | {(offset, who) for offset in intents} if intents else ghost.intents
    return ghost._replace(doubts=doubts, terminal=terminal, settled=settled, intents=told), broken


def _wrong_outcome(
    rules: Rules, ghost: Ghost, row: Record, attempt: tuple[int, int], again: bool, result: str
) -> str | None:
    wanted = rules.properties
    name = f"d{row.delivery}@{attempt[0]}"
    taken = attempt in ghost.accepted
    if "6" in wanted and again:
        return f"6: a second outcome ({result}) is recorded for {name}"
    if "5" in wanted:
        if result == DELIVERED and not taken:
            return f"5: {name} is recorded as delivered without evidence"
        if result in (FAILED, RELEASED) and taken:
            return f"5: {name} is recorded as {result} but the server accepted it"
    if "8" in wanted and result == FAILED and ghost.copies[row.delivery] and next_hop(rules, row, result) is None:
        said = row.doubted and rules.doubt_carried
        if not said:
            return f"8: d{row.delivery} ends as failed, and nothing says that an earlier copy may have been accepted"
    return None


def scheduled_twice(rules: Rules, world: World, hops: tuple[Record, ...]) -> str | None:
    if "6" in rules.properties and hops:
        there = {row[:2] for row in (*world.dispatch, *world.delayed)}
        for hop in hops:
            if hop[:2] in there:
                return f"6: hop {hop.hop} of d{hop.delivery} is scheduled twice"
    return None


def passes_unsettled(rules: Rules, world: World, ghost: Ghost, low_water: int) -> str | None:
    if "4" in rules.properties:
        for offset in range(min(low_water, len(world.dispatch))):
            if offset not in ghost.settled:
                return f"4: O={low_water} passes d{world.dispatch[offset].delivery}@{offset}, which is not settled"
    return None


def next_hop(rules: Rules, row: Record, result: str) -> Record | None:
    """The dispatch record that an outcome calls for, or None when it is terminal."""
    delivery, hop, attempt, doubted = row
    more = attempt < rules.attempts_max[delivery]
    if result == FAILED and more:
        return Record(delivery, hop + 1, attempt + 1, doubted)
    if result == UNCERTAIN and rules.policies[delivery] == "resend" and more:
        return Record(delivery, hop + 1, attempt + 1, True)
    if result not in (DELIVERED, FAILED, UNCERTAIN):
        return Record(delivery, hop + 1, attempt, doubted)
    return None


def status(rules: Rules, world: World, offset: int, entries: tuple[Entry | None, ...]) -> str:
    """What a takeover that read `entries` believes of the dispatch record at `offset`."""
    delivery, hop, attempt, _ = world.dispatch[offset]
    believed = FRESH
    for entry in entries:
        if entry is None or entry.fate != COMMITTED:
            continue
        row = world.dispatch[entry.offset]
        if rules.lookup == "hop":
            same = entry.offset == offset
        elif rules.lookup == "attempt":
            same = (row.delivery, row.attempt) == (delivery, attempt)
        else:
            same = row.delivery == delivery
        if same:
            if entry.kind != INTENT:
                return SETTLED
            believed = IN_DOUBT
        elif rules.later_hop_settles and row.delivery == delivery and row.hop > hop:
            return SETTLED
    return believed


def begins_body(rules: Rules, world: World, who: int, offset: int) -> str | None:
    """The property that `who` breaks when it begins the body of the record at `offset`."""
    ghost = world.ghost
    name = f"d{world.dispatch[offset].delivery}@{offset}"
    if "2" in rules.properties and (offset, who) not in ghost.intents:
        return f"2: {NAMES[who]} begins the body of {name} without a committed intent"
    if "7" in rules.properties and offset in ghost.settled:
        return f"7: {NAMES[who]} begins the body of {name} after it was settled"
    return None


def accept(rules: Rules, world: World, who: int, offset: int) -> tuple[World, str | None]:
    """The SMTP server takes a copy."""
    ghost = world.ghost
    delivery = world.dispatch[offset].delivery
    copies = put(ghost.copies, delivery, ghost.copies[delivery] + 1)
    after = world._replace(ghost=ghost._replace(copies=copies, accepted=ghost.accepted | {(offset, who)}))
    may = 1 if rules.policies[delivery] == "park" else 1 + ghost.doubts[delivery]
    if "3" in rules.properties and copies[delivery] > may:
        policy = rules.policies[delivery]
        return after, f"3: the server has {copies[delivery]} copies of d{delivery}, {policy}, doubts {may - 1}"
    return after, None


def lost(rules: Rules, world: World) -> str | None:
    """On a quiet broker: a delivery that is not terminal, not delayed, and that a takeover would skip."""
    if "1" not in rules.properties or any(world.transactions):
        return None
    low_water, floor = world.committed
    if low_water < 0 or floor < world.log_start:
        return None  # nobody takes over from here: fail closed, or `unfinished` finds the loss
    missing = {delivery for delivery in range(rules.deliveries) if not world.ghost.terminal[delivery]}
    missing -= {row.delivery for row in world.delayed}
    if not missing:
        return None
    entries = world.log[floor:]
    for offset in range(low_water, len(world.dispatch)):
        delivery = world.dispatch[offset].delivery
        if delivery in missing and status(rules, world, offset, entries) != SETTLED:
            missing.discard(delivery)
    if missing:
        return f"1: d{min(missing)} is not terminal nor delayed, and a takeover from O={low_water}, S={floor} skips it"
    return None
