"""The router's protocol: requests -> dispatch records and a changelog of keys, in one transaction with the position.

Properties: 1 a key is dispatched at most once; 2 the committed position never passes a request whose key was not
dispatched; 3 every request is routed in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .explorer import Step, budget, spend
from .router_state import (
    ABORTED,
    ASSIGNED,
    BEGUN,
    BOUNDED,
    CATCHING_UP,
    COMMITTED,
    COMMITTING,
    CRASH,
    EXPIRE,
    FAULTS,
    FETCHED,
    HALF_REMEMBERED,
    IDLE,
    KICK,
    NO_PASS,
    OFFSETS_SENT,
    OPEN,
    OUTCOME_UNKNOWN,
    REMEMBERING,
    RUNNING,
    UNKNOWN,
    WIPE,
    Router,
    Rules,
    Seen,
    Transaction,
    World,
    stamped,
    undecided,
)
from .sender_state import NAMES, put


class RouterModel:
    """Two routers over one partition, under `rules`, with `faults` and at most `together` of them."""

    def __init__(self, rules: Rules, faults: Mapping[str, int], together: int | None = None) -> None:
        self.rules = rules
        self.budget = budget(FAULTS, faults, together)

    def initial(self) -> World:
        first = Router(True, mode=ASSIGNED)
        if self.rules.replaced_changelog:
            first = first._replace(store=frozenset("b"), applied=1, foreign=True)
        return World((), 0, (None, None), (first, Router(True)), (True, True), 0, (), self.budget)

    def steps(self, state: World) -> Iterator[Step]:
        for who, router in enumerate(state.routers):
            yield from self._broker(state, who)
            yield from self._process(state, who)
            if router.alive:
                yield from self._takeover(state, who, router)
                yield from self._pass(state, who, router)

    def broken(self, state: World) -> str | None:
        for key in state.dispatched:
            if state.dispatched.count(key) > 1:
                return f"1: key {key} was dispatched twice"
        for offset in range(state.position):
            if self.rules.requests[offset] not in state.dispatched:
                return f"2: position {state.position} passes request {offset}, which was never dispatched"
        return None

    def unfinished(self, state: World) -> str | None:
        missing = set(self.rules.requests) - set(state.dispatched)
        return f"3: nothing more can happen, and {missing} was never dispatched" if missing else None

    # ------------------------------------------------------------------------------------------- broker and group

    def _broker(self, world: World, who: int) -> Iterator[Step]:
        transaction, name = world.transactions[who], NAMES[who]
        if transaction is None:
            return
        if transaction.seen_marker:
            left = transaction._replace(seen_marker=False) if transaction.offsets_marker else None
            after = _transact(world, who, left)._replace(seen=stamped(world.seen, who, COMMITTED))
            yield Step(f"broker: {name}'s commit reaches mail.seen", after)
        if transaction.offsets_marker and transaction.position is not None:
            left = transaction._replace(offsets_marker=False) if transaction.seen_marker else None
            after = _transact(world, who, left)._replace(position=transaction.position)
            yield Step(f"broker: {name}'s commit reaches the position {transaction.position}", after)
        if transaction.phase == OPEN:
            if not world.routers[who].alive:
                yield Step(f"broker: times out the transaction of dead {name}", _abort(world, who))
            elif (left_over := spend(world.budget, EXPIRE)) is not None:
                yield Step(
                    f"broker: times out the transaction of {name}",
                    _abort(world, who)._replace(budget=left_over),
                    fault=True,
                )

    def _process(self, world: World, who: int) -> Iterator[Step]:
        router, name = world.routers[who], NAMES[who]
        volume = Router(False, *router[1:4])
        if not router.alive:
            open_still = world.transactions[who]
            after = _abort(world, who) if open_still and open_still.phase == OPEN else world
            yield Step(f"{name} starts again (InitProducerId)", _join(after, who, volume._replace(alive=True)))
            return
        for fault, kept, label in ((CRASH, volume, "crashes"), (WIPE, Router(False), "crashes and loses its volume")):
            if (left := spend(world.budget, fault)) is not None:
                after = _put(world, who, kept)._replace(budget=left, members=put(world.members, who, False))
                yield Step(f"{name} {label}", _hand_over(after, who), fault=True)
        if world.owner == who and world.members[who] and (left := spend(world.budget, KICK)) is not None:
            after = _put(world, who, router._replace(stale=True))
            after = after._replace(budget=left, members=put(world.members, who, False))
            yield Step(f"group: {name} misses its session and runs on, a zombie", _hand_over(after, who), fault=True)
        if not world.members[who]:
            open_still = world.transactions[who]
            after = _abort(world, who) if open_still and open_still.phase == OPEN else world
            yield Step(
                f"{name} notices that it was dropped, joins again", _join(after, who, volume._replace(alive=True))
            )

    # ------------------------------------------------------------------------------------------- takeover

    def _takeover(self, world: World, who: int, router: Router) -> Iterator[Step]:
        rules, name = self.rules, NAMES[who]
        if router.mode == ASSIGNED:
            pending = any(
                t and t.position is not None and (t.phase == OPEN or t.offsets_marker) for t in world.transactions
            )
            if not pending or not rules.stable_fetch:
                yield Step(
                    f"{name} takes over at {world.position}",
                    _put(world, who, router._replace(mode=FETCHED, next=world.position)),
                )
        elif router.mode == FETCHED:
            whole = rules.restore_to == "high watermark"
            bound = len(world.seen) if whole else undecided(world.seen)
            yield Step(
                f"{name} takes over: mail.seen ends at {bound}",
                _put(world, who, router._replace(mode=BOUNDED, bound=bound)),
            )
        elif router.mode == BOUNDED:
            ahead = router.applied > router.bound and rules.foreign_store == "position"
            if ahead or (router.foreign and rules.foreign_store == "topic id"):
                empty = router._replace(store=frozenset(), applied=0, foreign=False)
                yield Step(f"{name}'s store is not of this mail.seen: thrown away", _put(world, who, empty))
            elif not rules.catch_up and router.store:
                yield Step(f"{name} has a store, goes on", _put(world, who, router._replace(mode=RUNNING)))
            elif undecided(world.seen) >= router.bound or not rules.restore_committed_only:
                believed = (COMMITTED,) if rules.restore_committed_only else (COMMITTED, ABORTED, OPEN)
                entries = world.seen[router.applied : router.bound]
                keys = router.store | {entry.key for entry in entries if entry.fate in believed}
                applied = max(router.applied, router.bound)
                yield from self._remember(world, who, router, keys, applied, CATCHING_UP)
        elif router.mode == CATCHING_UP:
            known = router._replace(mode=RUNNING, store=router.store | set(router.accepted), accepted=())
            yield Step(f"{name} knows the keys too", _put(world, who, known))

    def _remember(
        self, world: World, who: int, router: Router, keys: frozenset[str], applied: int, half: str
    ) -> Iterator[Step]:
        """Keys and applied position in one write (or position first, without store_atomic)."""
        known = f"{NAMES[who]} knows {''.join(sorted(keys)) or 'no key'} up to {applied}"
        if self.rules.store_atomic:
            after = router._replace(store=keys, applied=applied, mode=RUNNING, stage=NO_PASS, accepted=())
        elif half == CATCHING_UP:
            after = router._replace(applied=applied, mode=CATCHING_UP, accepted=tuple(sorted(keys - router.store)))
        else:
            after = router._replace(applied=applied, stage=half)
        yield Step(known, _put(world, who, after))

    # ------------------------------------------------------------------------------------------- one pass

    def _pass(self, world: World, who: int, router: Router) -> Iterator[Step]:
        transaction, name = world.transactions[who], NAMES[who]
        if router.stage == NO_PASS:
            if router.mode == RUNNING and transaction is None:
                for taken in range(1, min(self.rules.batch_max, len(self.rules.requests) - router.next) + 1):
                    yield self._begin(world, who, router, taken)
        elif router.stage == BEGUN:
            yield from self._offsets(world, who, router)
        elif router.stage == OFFSETS_SENT:
            yield from self._commit(world, who, router)
        elif router.stage == OUTCOME_UNKNOWN:
            if transaction is None or transaction.phase == OPEN:
                yield self._find_out(world, who, router)
        elif router.stage == REMEMBERING:
            own = [position for position, entry in enumerate(world.seen) if entry.writer == who]
            applied = max(router.applied, own[-1] + 1) if own and router.accepted else router.applied
            moved = router._replace(next=router.next + router.taken, taken=0)
            keys = router.store | set(router.accepted)
            yield from self._remember(world, who, moved, keys, applied, HALF_REMEMBERED)
        elif router.stage == HALF_REMEMBERED:
            known = router._replace(store=router.store | set(router.accepted), accepted=(), stage=NO_PASS)
            yield Step(f"{name} knows the keys too", _put(world, who, known))
        if transaction and transaction.phase == OPEN and transaction.queued and router.stage in (BEGUN, OFFSETS_SENT):
            arrived = tuple(Seen(key, who, OPEN) for key in transaction.queued)
            after = _transact(world, who, transaction._replace(queued=()))
            yield Step(f"{name}: its keys reach mail.seen", after._replace(seen=world.seen + arrived))

    def _begin(self, world: World, who: int, router: Router, taken: int) -> Step:
        rules = self.rules
        accepted: list[str] = []
        for key in rules.requests[router.next : router.next + taken]:
            if key not in router.store and (key not in accepted or not rules.dedup_in_batch):
                accepted.append(key)
        keys = tuple(accepted)
        after = router._replace(stage=BEGUN, taken=taken, accepted=keys)
        if not rules.store_after_commit:
            after = after._replace(store=router.store | set(keys))
        transaction = Transaction(OPEN, keys, keys, None)
        if not rules.seen_in_transaction:
            transaction = transaction._replace(queued=())
            world = world._replace(seen=world.seen + tuple(Seen(key, who, COMMITTED) for key in keys))
        if not rules.position_in_transaction and not after.stale:
            world = world._replace(position=router.next + taken)
        label = f"{NAMES[who]} reads requests {router.next}..{router.next + taken - 1}, accepts {keys}"
        return Step(label, _transact(_put(world, who, after), who, transaction))

    def _offsets(self, world: World, who: int, router: Router) -> Iterator[Step]:
        transaction, name = world.transactions[who], NAMES[who]
        if transaction is None:
            unknown = router._replace(stage=OUTCOME_UNKNOWN)
            yield Step(f"{name}: the transaction is gone", _put(world, who, unknown))
        elif not self.rules.group_metadata or (world.members[who] and not router.stale):
            position = router.next + router.taken if self.rules.position_in_transaction else None
            after = _transact(world, who, transaction._replace(position=position))
            yield Step(f"{name}: sends position {position}", _put(after, who, router._replace(stage=OFFSETS_SENT)))
        else:
            idle = Router(True, *router[1:4], ASSIGNED if world.owner == who else IDLE, stale=not world.members[who])
            yield Step(f"{name}: position refused (fenced), aborted", _put(_abort(world, who), who, idle))

    def _commit(self, world: World, who: int, router: Router) -> Iterator[Step]:
        transaction, name = world.transactions[who], NAMES[who]
        unknown = router._replace(stage=OUTCOME_UNKNOWN)
        if transaction is None:
            yield Step(f"{name}: EndTxn refused, the transaction is gone", _put(world, who, unknown))
        elif not transaction.queued:
            position = transaction.position
            decided = Transaction(COMMITTING, (), (), position, True, position is not None)
            after = _transact(world, who, decided)
            after = after._replace(dispatched=tuple(sorted(world.dispatched + transaction.dispatched)))
            done = router._replace(stage=REMEMBERING)
            yield Step(f"{name}: COMMITTED", _put(after, who, done))
            if (left := spend(world.budget, UNKNOWN)) is not None:
                applied = _put(after, who, unknown)._replace(budget=left)
                yield Step(f"{name}: commit outcome unknown (it was applied)", applied, fault=True)
                lost = _put(world, who, unknown)._replace(budget=left)
                yield Step(f"{name}: commit outcome unknown (it was not applied)", lost, fault=True)

    def _find_out(self, world: World, who: int, router: Router) -> Step:
        after = _abort(world, who)
        if self.rules.after_unknown == "assume":
            known = router._replace(stage=REMEMBERING)
        elif self.rules.after_unknown == "say again":
            known = router._replace(stage=NO_PASS, taken=0, accepted=())
        else:
            known = Router(True, *router[1:4], ASSIGNED if world.owner == who else IDLE, stale=router.stale)
        return Step(f"{NAMES[who]} rebuilds its producer: {self.rules.after_unknown}", _put(after, who, known))


def _put(world: World, who: int, router: Router) -> World:
    return world._replace(routers=put(world.routers, who, router))


def _transact(world: World, who: int, transaction: Transaction | None) -> World:
    return world._replace(transactions=put(world.transactions, who, transaction))


def _abort(world: World, who: int) -> World:
    return _transact(world, who, None)._replace(seen=stamped(world.seen, who, ABORTED))


def _assign(world: World, who: int) -> World:
    router = world.routers[who]
    return _put(world, who, Router(True, *router[1:4], ASSIGNED))._replace(owner=who)


def _join(world: World, who: int, router: Router) -> World:
    after = _put(world, who, router)._replace(members=put(world.members, who, True))
    return _assign(after, who) if world.owner is None else after


def _hand_over(world: World, who: int) -> World:
    if world.owner != who:
        return world
    heir = 1 - who
    if world.routers[heir].alive and world.members[heir]:
        return _assign(world, heir)
    return world._replace(owner=None)
