"""Steps of the broker, the group and the clock of processes: markers, time-outs, the cleaner, crashes, rebalances."""

from __future__ import annotations

from collections.abc import Iterator

from .explorer import Step, spend
from .sender_oracle import accept, passes_unsettled, record
from .sender_rules import COMPACT, CRASH, EXPIRE, FORGET, KICK, MOVE, RETAIN, TWIN, Rules
from .sender_state import (
    ABORTED,
    ASSIGNED,
    COMMITTED,
    COMMITTING,
    IDLE,
    NAMES,
    NO_TICK,
    OFFSETS_SENT,
    OPEN,
    OUTCOME_UNKNOWN,
    REVOKED,
    RUNNING,
    TIMED_OUT,
    Offsets,
    Sender,
    Transaction,
    World,
    aborted,
    cut_off,
    put,
    stamped,
    undecided,
    with_sender,
    with_transaction,
)

NOBODY = Sender(alive=False)


def broker_steps(rules: Rules, world: World) -> Iterator[Step]:
    """Everything that no particular sender does."""
    yield from _delay_stage(world)
    yield from _cleaner(rules, world)
    yield from _retention(world)
    for offset, who in world.ghost.adrift:
        after, broken = accept(rules, world, who, offset)
        adrift = world.ghost.adrift - {(offset, who)}
        after = after._replace(ghost=after.ghost._replace(adrift=adrift))
        yield Step(f"server: takes what {NAMES[who]} wrote of @{offset} before it was cut off", after, broken)
    for who, transaction in enumerate(world.transactions):
        if transaction:
            yield from _coordinator(rules, world, who, transaction)


def _delay_stage(world: World) -> Iterator[Step]:
    for row in dict.fromkeys(world.delayed):
        at = world.delayed.index(row)
        left = (*world.delayed[:at], *world.delayed[at + 1 :])
        offset = len(world.dispatch)
        senders = tuple(
            s._replace(book=(*s.book, "fresh"), marks=(*s.marks, -1)) if s.mode == RUNNING else s for s in world.senders
        )
        yield Step(
            f"delay stage: hop {row.hop} of d{row.delivery} -> dispatch@{offset}",
            world._replace(dispatch=(*world.dispatch, row), delayed=left, senders=senders),
        )


def _cleaner(rules: Rules, world: World) -> Iterator[Step]:
    if not world.budget[COMPACT]:
        return
    log = list(world.log)
    seen: set[int] = set()
    for position in range(undecided(world.log) - 1, -1, -1):
        entry = log[position]
        if entry is None:
            continue
        key = entry.offset if rules.compaction_key == "hop" else world.dispatch[entry.offset].delivery
        if entry.fate == ABORTED or key in seen:
            log[position] = None
        if entry.fate != ABORTED:
            seen.add(key)
    if tuple(log) != world.log:
        budget = put(world.budget, COMPACT, world.budget[COMPACT] - 1)
        yield Step("broker: compacts mail.state", world._replace(log=tuple(log), budget=budget), fault=True)


def _retention(world: World) -> Iterator[Step]:
    if world.committed.low_water >= 0 and (left := spend(world.budget, FORGET)) is not None:
        after = world._replace(committed=Offsets(-1, -1), budget=left)
        yield Step("broker: the group's offsets expire", after, fault=True)
    end = undecided(world.log)
    if end > world.log_start and (left := spend(world.budget, RETAIN)) is not None:
        after = world._replace(log=(None,) * end + world.log[end:], log_start=end, budget=left)
        yield Step(f"broker: retention takes mail.state below {end}", after, fault=True)


def _coordinator(rules: Rules, world: World, who: int, transaction: Transaction) -> Iterator[Step]:
    name, sender = NAMES[who], world.senders[who]
    if transaction.state_marker:
        log = stamped(world, who, COMMITTED)
        left = transaction._replace(state_marker=False) if transaction.offsets_marker else None
        yield Step(f"broker: {name}'s commit reaches mail.state", with_transaction(world, who, left)._replace(log=log))
    if transaction.offsets_marker and transaction.offsets:
        left = transaction._replace(offsets_marker=False) if transaction.state_marker else None
        after = with_transaction(world, who, left)._replace(committed=transaction.offsets)
        yield Step(f"broker: {name}'s commit reaches the offsets {tuple(transaction.offsets)}", after)
    if transaction.phase == OPEN:
        gone = aborted(world, who)
        if not sender.alive:
            yield Step(f"broker: times out the transaction of dead {name}", gone)
        elif (budget := spend(world.budget, EXPIRE)) is not None:
            dead = Transaction(TIMED_OUT, (), (), False, (), ())
            gone = with_transaction(gone, who, dead)._replace(budget=budget)
            yield Step(f"broker: times out the transaction of {name}", gone, fault=True)
        if sender.stray:
            yield _stray_end(rules, world, who, transaction)


def _stray_end(rules: Rules, world: World, who: int, transaction: Transaction) -> Step:
    """librdkafka#5423: a delayed EndTxn of the same epoch decides what has arrived of the next transaction.

    What the client sends afterwards opens another transaction (the client has no KIP-890 part 2).
    """
    fate = world.senders[who].stray
    world = with_sender(world, who, world.senders[who]._replace(stray=""))
    verb = "commits" if fate == COMMITTED else "aborts"
    label = f"network: a delayed EndTxn of {NAMES[who]} {verb} what its next transaction has so far"
    arrived, broken = not transaction.queued, None
    rest = transaction._replace(
        intents=() if arrived else transaction.intents,
        outcomes=() if arrived else transaction.outcomes,
        hops=transaction.hops if transaction.hops_queued else (),
        offsets=None if fate == ABORTED else transaction.offsets,
    )
    if fate == COMMITTED:
        ghost = world.ghost
        if arrived:
            ghost, broken = record(rules, world, who, transaction.intents, transaction.outcomes)
        if transaction.offsets and not broken:
            broken = passes_unsettled(rules, world, ghost, transaction.offsets.low_water)
        hops = () if transaction.hops_queued else transaction.hops
        delayed = tuple(sorted(world.delayed + hops))
        world = world._replace(ghost=ghost, delayed=delayed, committed=transaction.offsets or world.committed)
    elif arrived and not transaction.hops_queued and world.senders[who].tick == OFFSETS_SENT:
        rest = Transaction(TIMED_OUT, (), (), False, (), ())  # nothing is left to send: the client's EndTxn is refused
    after = with_transaction(world, who, rest)._replace(log=stamped(world, who, fate))
    return Step(label, after, broken)


def assign(rules: Rules, world: World, who: int) -> World:
    """The group gives the partition to `who`: assignment callback, new snapshot, an empty book."""
    sender = world.senders[who]
    if not rules.empty_book and sender.book:
        fresh = sender._replace(mode=RUNNING, stale=False)
    else:
        fresh = Sender(alive=True, mode=ASSIGNED, stray=sender.stray, fenced=sender.fenced, lock=sender.lock)
    return with_sender(world, who, fresh)._replace(owner=who)


def heirs(world: World, who: int) -> list[int]:
    """Other members that the group may give the partition to."""
    return [k for k, s in enumerate(world.senders) if k != who and s.alive and world.members[k]]


def process_steps(rules: Rules, world: World, who: int) -> Iterator[Step]:
    """Crash and restart of `who`, and what the group does with it."""
    sender, transaction, name = world.senders[who], world.transactions[who], NAMES[who]
    if not sender.alive:
        yield from _start(rules, world, who)
        return
    if (budget := spend(world.budget, CRASH)) is not None:
        gone = cut_off(world, who, rules.wire_outlives)
        gone = with_sender(gone, who, NOBODY)._replace(budget=budget, members=put(world.members, who, False))
        if transaction and transaction.phase == TIMED_OUT:
            gone = with_transaction(gone, who, None)
        for label, after in hand_over(rules, gone, who):
            yield Step(f"{name} crashes{label}", after, fault=True)
    if world.members[who] and world.owner == who:
        if (budget := spend(world.budget, KICK)) is not None:
            gone = with_sender(world, who, sender._replace(stale=True))  # the group goes on to a new generation
            gone = gone._replace(budget=budget, members=put(world.members, who, False))
            for label, after in hand_over(rules, gone, who):
                yield Step(f"group: {name} misses its session and runs on, a zombie{label}", after, fault=True)
        if (sender.tick == NO_TICK or not rules.revoke_waits) and (budget := spend(world.budget, MOVE)) is not None:
            again = [who] if sender.tick == NO_TICK and rules.drop_revoked else []
            for heir in again + heirs(world, who):
                yield _move(rules, world._replace(budget=budget), who, heir)
    if not world.members[who]:
        yield _notice(rules, world, who)


def hand_over(rules: Rules, world: World, who: int) -> Iterator[tuple[str, World]]:
    if world.owner != who:
        yield "", world
        return
    there = heirs(world, who)
    for heir in there:
        yield f"; the partition goes to {NAMES[heir]}", assign(rules, world, heir)
    if not there:
        yield "", world._replace(owner=None)


def _start(rules: Rules, world: World, who: int) -> Iterator[Step]:
    faults_left = world.budget[-1] and any(world.budget[k] for k in (CRASH, KICK, MOVE))
    twin = rules.static_twins and who == 1
    if rules.static_twins and who < 2 and world.senders[0].alive != twin:
        return  # one restart beside the zombie; after that the instance is whoever lives
    if twin:
        budget = spend(world.budget, TWIN)
        other = world.transactions[0]
        if budget is None or (rules.epoch_fences and other and other.phase == COMMITTING):
            return
        after = world._replace(budget=budget)
        if rules.epoch_fences:
            after = aborted(after, 0)
            after = with_sender(after, 0, after.senders[0]._replace(fenced=True))
        members = put(put(after.members, 0, False), 1, True)
        lock = rules.recorder == "shared"
        after = with_sender(after, 1, Sender(alive=True, lock=lock))._replace(members=members)
        if world.owner in (0, None):
            after = assign(rules, after, 1)
        yield Step("B starts as the instance that A is, A runs on: same partitions, same generation", after, fault=True)
    elif world.owner is None or faults_left:
        transaction = world.transactions[who]
        after = aborted(world, who) if transaction and transaction.phase == OPEN else world
        members = put(after.members, who, True)
        after = with_sender(after, who, Sender(alive=True, lock=rules.recorder != "none"))._replace(members=members)
        if world.owner is None:
            after = assign(rules, after, who)
        yield Step(f"{NAMES[who]} starts again (InitProducerId)", after)


def _move(rules: Rules, world: World, who: int, heir: int) -> Step:
    sender = world.senders[who]
    in_flight = sender.tick != NO_TICK
    if rules.drop_revoked:
        world = cut_off(world, who, rules.wire_outlives)
        kept = sender._replace(mode=REVOKED, stale=True) if in_flight else _empty(sender)
    else:
        kept = sender._replace(stale=in_flight)
    after = assign(rules, with_sender(world, who, kept), heir)
    also = ", a tick in flight" if in_flight else ""
    moves = (
        f"moves from {NAMES[who]} to {NAMES[heir]}" if heir != who else f"is revoked and given to {NAMES[who]} again"
    )
    return Step(f"group: the partition {moves}{also}", after, fault=True)


def _empty(sender: Sender) -> Sender:
    return Sender(alive=True, mode=IDLE, stray=sender.stray, fenced=sender.fenced, lock=sender.lock)


def _notice(rules: Rules, world: World, who: int) -> Step:
    """A member that the group has dropped learns of it: lost callback, discard, rejoin (a fenced instance exits)."""
    sender, transaction, name = world.senders[who], world.transactions[who], NAMES[who]
    after = cut_off(world, who, rules.wire_outlives)
    if transaction and transaction.phase in (OPEN, TIMED_OUT):
        after = aborted(after, who)
    if rules.static_twins and who == 0 and not world.budget[TWIN]:
        return Step(f"{name} is told FENCED_INSTANCE_ID and exits", with_sender(after, who, NOBODY))
    kept = _empty(sender)
    if sender.tick == OUTCOME_UNKNOWN and rules.rebuild_when_lost:
        kept = kept._replace(stray="")
    if not rules.empty_book and sender.book and sender.tick == NO_TICK:
        kept = sender._replace(mode=IDLE)
    after = with_sender(after, who, kept)._replace(members=put(after.members, who, True))
    if world.owner is None:
        after = assign(rules, after, who)
    return Step(f"{name} notices that it was dropped: discards, joins again", after)
