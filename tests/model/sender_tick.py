"""Steps of a tick: one Kafka transaction with intents, outcomes, next hops and offsets, or its unknown outcome."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from .explorer import Step, spend
from .sender_broker import NOBODY, hand_over
from .sender_oracle import commit, next_hop, scheduled_twice
from .sender_rules import DISCONNECT, HOLD, UNKNOWN, Rules
from .sender_state import (
    ABORTED,
    AFTER_ABORT,
    AFTER_COMMIT,
    ASSIGNED,
    BEGUN,
    COMMITTED,
    DELIVERED,
    FAILED,
    FENCED,
    FRESH,
    HELD,
    IDLE,
    IN_DOUBT,
    INTENT,
    INTENT_TOLD,
    NAMES,
    NO_TICK,
    OFFSETS_SENT,
    OPEN,
    OUTCOME,
    OUTCOME_UNKNOWN,
    READY,
    RELEASED,
    REVOKED,
    RUNNING,
    SETTLED,
    TIMED_OUT,
    TOLD,
    UNCERTAIN,
    Entry,
    Offsets,
    Record,
    Sender,
    Transaction,
    World,
    aborted,
    put,
    undecided,
    with_sender,
    with_transaction,
)

_FINISHED = (DELIVERED, FAILED, UNCERTAIN, RELEASED)


def tick_steps(rules: Rules, world: World, who: int) -> Iterator[Step]:
    sender, transaction = world.senders[who], world.transactions[who]
    if sender.fenced:
        if sender.tick in (BEGUN, OFFSETS_SENT, OUTCOME_UNKNOWN) or set(sender.book) & {FRESH, *_FINISHED}:
            gone = with_sender(world, who, NOBODY)._replace(members=put(world.members, who, False))
            for label, after in hand_over(rules, gone, who):
                yield Step(f"{NAMES[who]} tick: PRODUCER_FENCED, exits{label}", after)
        return
    if sender.tick == NO_TICK:
        if transaction is None and sender.mode == RUNNING:
            yield from _begin(rules, world, who)
        elif transaction and transaction.phase in (OPEN, TIMED_OUT):
            yield Step(f"{NAMES[who]} rebuilds its producer, the leftover transaction is aborted", aborted(world, who))
        return
    producing = (OFFSETS_SENT,) if rules.late_arrival else (BEGUN, OFFSETS_SENT)
    if sender.tick in producing and transaction and transaction.phase == OPEN:
        yield from _arrive(world, who, transaction)
    if sender.tick == BEGUN:
        yield from _send_offsets(rules, world, who)
    elif sender.tick == OFFSETS_SENT:
        yield from _commit(rules, world, who)
    elif sender.tick == OUTCOME_UNKNOWN and (transaction is None or transaction.phase in (OPEN, TIMED_OUT)):
        yield from _find_out(rules, world, who)


def _begin(rules: Rules, world: World, who: int) -> Iterator[Step]:
    book = world.senders[who].book
    fresh = [k for k, item in enumerate(book) if item == FRESH]
    finished = [k for k, item in enumerate(book) if item in _FINISHED]
    held: list[int | None] = [None]
    if spend(world.budget, HOLD) is not None:
        held += fresh
    for hold in held:
        rest = [k for k in fresh if k != hold]
        for count in range(len(rest) + 1):
            for admitted in combinations(rest, count):
                if admitted or finished or hold is not None:
                    yield _build(rules, world, who, admitted, finished, hold)


def _build(
    rules: Rules, world: World, who: int, admitted: tuple[int, ...], finished: list[int], hold: int | None
) -> Step:
    """Step 1 and 2 of a tick: intents, outcomes and next hops go to the producer."""
    sender = world.senders[who]
    book, marks = list(sender.book), list(sender.marks)
    entries: list[Entry] = []
    outcomes: list[tuple[int, str]] = []
    intents: list[int] = []
    hops: list[Record] = []
    for k in admitted:
        book[k] = INTENT_TOLD if rules.intent_first else READY
        if rules.intent_first:
            entries.append(Entry(INTENT, sender.base + k, who, OPEN))
            intents.append(sender.base + k)
    for k in finished if hold is None else [*finished, hold]:
        result = HELD if k == hold else book[k]
        offset = sender.base + k
        book[k] = TOLD[result]
        if result != HELD or rules.held_recorded:
            entries.append(Entry(OUTCOME, offset, who, OPEN))
        outcomes.append((offset, result))
        hop = next_hop(rules, world.dispatch[offset], result)
        if hop:
            hops.append(hop)
    for k in (*admitted, *finished, *([] if hold is None else [hold])):
        if marks[k] < 0:
            marks[k] = sender.known_end  # a lower bound: known before any delivery report of this tick
    said = [f"intent @{o}" for o in intents] + [f"{result} @{o}" for o, result in outcomes]
    label = f"{NAMES[who]} tick: {', '.join(said) or 'nothing to write'}"
    world = world._replace(budget=world.budget if hold is None else spend(world.budget, HOLD) or world.budget)
    broken = None
    if not rules.next_hop_in_transaction:
        broken = scheduled_twice(rules, world, tuple(hops))
        world, hops = world._replace(delayed=tuple(sorted((*world.delayed, *hops)))), []
    idle = not entries and not outcomes
    transaction = Transaction(OPEN, tuple(entries), tuple(hops), bool(hops), tuple(intents), tuple(outcomes))
    after = with_transaction(world, who, None if idle else transaction)
    begun = sender._replace(book=tuple(book), marks=tuple(marks), tick=NO_TICK if idle else BEGUN)
    return Step(label, with_sender(after, who, begun), broken, fault=hold is not None)


def _arrive(world: World, who: int, transaction: Transaction) -> Iterator[Step]:
    """Produced records may reach the broker before or after the offsets do."""
    split = bool(world.senders[who].stray)  # only a stray EndTxn can come between the two topics
    if transaction.queued:
        left = transaction._replace(queued=(), hops_queued=transaction.hops_queued and split)
        after = with_transaction(world, who, left)._replace(log=world.log + transaction.queued)
        yield Step(f"{NAMES[who]} tick: its records reach mail.state", after)
    if transaction.hops_queued and (split or not transaction.queued):
        left = transaction._replace(hops_queued=False)
        yield Step(f"{NAMES[who]} tick: its next hops reach mail.delay", with_transaction(world, who, left))


def _send_offsets(rules: Rules, world: World, who: int) -> Iterator[Step]:
    """Step 3 of a tick: O with S in its metadata, checked by the group against the snapshot."""
    sender, transaction, name = world.senders[who], world.transactions[who], NAMES[who]
    sent = sender._replace(tick=OFFSETS_SENT)
    if transaction is None or transaction.phase == TIMED_OUT:
        gone = with_sender(with_transaction(world, who, None), who, sender._replace(tick=OUTCOME_UNKNOWN))
        yield Step(f"{name} tick: the transaction is gone", gone)
    elif not rules.offsets_every_tick and not transaction.outcomes:
        yield Step(f"{name} tick: only intents, no offsets", with_sender(world, who, sent))
    elif _let_in(rules, world, who, sender):
        offsets: Offsets | None = _offsets(rules, world, who)
        if not rules.offsets_listed and offsets and offsets.low_water <= world.committed.low_water:
            offsets = None
        after = with_transaction(world, who, transaction._replace(offsets=offsets))
        yield Step(f"{name} tick: offsets {offsets and tuple(offsets)}", with_sender(after, who, sent))
    else:
        yield from _refused(rules, world, who)


def _refused(rules: Rules, world: World, who: int) -> Iterator[Step]:
    sender, name = world.senders[who], NAMES[who]
    if sender.mode == REVOKED or world.members[who]:
        mine = sender.mode != REVOKED and world.owner == who
        gone = Sender(alive=True, mode=ASSIGNED if mine else IDLE, stray=sender.stray, lock=sender.lock)
    else:  # dropped, and does not know all of it yet: its conversations go on
        gone = _back(sender, FENCED)
    after = with_sender(aborted(world, who), who, gone)
    yield Step(f"{name} tick: offsets refused (fenced), aborted", after)
    if not rules.rebuild_after_disconnect and (budget := spend(world.budget, DISCONNECT)) is not None:
        after = with_sender(after, who, gone._replace(stray=ABORTED))._replace(budget=budget)
        label = f"{name} tick: offsets refused (fenced), disconnected in abort, the first EndTxn still in the network"
        yield Step(label, after, fault=True)


def _let_in(rules: Rules, world: World, who: int, sender: Sender) -> bool:
    if not rules.group_metadata:
        return True
    known = world.members[who] or not rules.member_checked
    return known and (not sender.stale or (rules.snapshot == "late" and world.members[who]))


def _offsets(rules: Rules, world: World, who: int) -> Offsets:
    sender, log = world.senders[who], world.log
    book = tuple(AFTER_COMMIT.get(item, item) for item in sender.book)
    settled = next((k for k, item in enumerate(book) if item != SETTLED), len(book))
    low_water = sender.base + settled
    if rules.low_water == "off by one":
        low_water = min(low_water + 1, sender.base + len(book))
    elif rules.low_water == "position":
        low_water = sender.base + len(book)
    known = [mark for mark in sender.marks[settled:] if mark >= 0]
    if rules.state_floor in ("records", "next O"):
        floor = min(known, default=sender.known_end)
        return Offsets(sender.base if rules.state_floor == "next O" else low_water, floor)
    if rules.state_floor == "end":
        return Offsets(low_water, len(log))
    unsettled = {sender.base + k for k, item in enumerate(book) if item not in (SETTLED, FRESH)}
    only_intents = rules.state_floor == "unsettled intents"
    speaks = [
        position
        for position, entry in enumerate(log)
        if entry
        and entry.fate != ABORTED
        and (entry.kind == INTENT and entry.offset in unsettled if only_intents else entry.offset >= low_water)
    ]
    return Offsets(low_water, min(speaks, default=len(log)))


def _commit(rules: Rules, world: World, who: int) -> Iterator[Step]:
    sender, transaction, name = world.senders[who], world.transactions[who], NAMES[who]
    unknown = sender._replace(tick=OUTCOME_UNKNOWN)
    if transaction is None or transaction.phase != OPEN:
        gone = with_sender(with_transaction(world, who, None), who, unknown)
        yield Step(f"{name} tick: EndTxn refused, the transaction is gone", gone)
        return
    if transaction.queued or transaction.hops_queued:
        return
    after, broken = commit(rules, world, who)
    done = _committed(rules, after, who)
    yield Step(f"{name} tick: COMMITTED", with_sender(after, who, done), broken)
    if (budget := spend(world.budget, UNKNOWN)) is not None:
        applied = with_sender(after, who, unknown)._replace(budget=budget)
        yield Step(f"{name} tick: commit outcome unknown (it was applied)", applied, broken, fault=True)
        lost = with_sender(world, who, unknown)._replace(budget=budget)
        yield Step(f"{name} tick: commit outcome unknown (it was not applied)", lost, fault=True)
    if (budget := spend(world.budget, DISCONNECT)) is not None:
        went_on = unknown if rules.rebuild_after_disconnect else done
        stray = with_sender(after, who, went_on._replace(stray=COMMITTED))._replace(budget=budget)
        label = f"{name} tick: disconnected in commit; said again and COMMITTED, the first EndTxn still in the network"
        yield Step(label, stray, broken, fault=True)


def _committed(rules: Rules, world: World, who: int) -> Sender:
    sender = world.senders[who]
    if sender.mode == REVOKED and rules.drop_revoked:
        return Sender(alive=True, mode=IDLE, stray=sender.stray, lock=sender.lock)
    own = [position for position, entry in enumerate(world.log) if entry and entry.writer == who]
    book = tuple(AFTER_COMMIT.get(item, item) for item in sender.book)
    return sender._replace(book=book, tick=NO_TICK, known_end=max(sender.known_end, own[-1] + 1 if own else 0))


def _back(sender: Sender, tick: str) -> Sender:
    """The book as if the tick had never been."""
    book = tuple(AFTER_ABORT.get(item, item) for item in sender.book)
    marks = tuple(-1 if item == FRESH else mark for item, mark in zip(book, sender.marks, strict=True))
    return sender._replace(book=book, marks=marks, tick=tick)


def _find_out(rules: Rules, world: World, who: int) -> Iterator[Step]:
    """Unknown outcome: a new producer (InitProducerId settles the old transaction), then reconcile with mail.state."""
    sender, name = world.senders[who], NAMES[who]
    after = aborted(world, who)
    if sender.mode == REVOKED:
        nothing = Sender(alive=True, mode=IDLE, lock=sender.lock)
        yield Step(f"{name} rebuilds its producer, owns nothing", with_sender(after, who, nothing))
        return
    if rules.after_unknown == "say again":
        known = _back(sender, NO_TICK)
    elif rules.after_unknown == "assume":
        known = sender._replace(book=tuple(AFTER_COMMIT.get(item, item) for item in sender.book), tick=NO_TICK)
    elif undecided(after.log) < len(after.log):
        return
    else:
        known = _reconcile(after, who)
    label = f"{name} rebuilds its producer: {rules.after_unknown}: {', '.join(known.book)}"
    yield Step(label, with_sender(after, who, known._replace(stray="")))


def _reconcile(world: World, who: int) -> Sender:
    sender = world.senders[who]
    book, marks = list(sender.book), list(sender.marks)
    start = min((mark for mark in marks if mark >= 0), default=sender.known_end)
    there = [entry for entry in world.log[start:] if entry and entry.fate == COMMITTED]
    for k, item in enumerate(book):
        if item not in AFTER_COMMIT:
            continue
        said = [entry for entry in there if entry.offset == sender.base + k]
        if any(entry.kind == OUTCOME for entry in said):
            book[k] = SETTLED
        elif item != INTENT_TOLD:
            book[k] = AFTER_ABORT[item]
        elif any(entry.writer == who for entry in said):
            book[k] = READY
        else:
            book[k] = IN_DOUBT if said else FRESH
        if book[k] == FRESH:
            marks[k] = -1
    return sender._replace(book=tuple(book), marks=tuple(marks), tick=NO_TICK, known_end=len(world.log))
