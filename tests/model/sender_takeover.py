"""Steps of a takeover: O and S, the bound of mail.state, reading it, and what becomes of the in doubt."""

from __future__ import annotations

from collections.abc import Iterator

from .explorer import Step
from .sender_oracle import status
from .sender_rules import Rules
from .sender_state import (
    ASSIGNED,
    BOUNDED,
    CLOSED,
    COMMITTED,
    DELIVERED,
    FAILED,
    FETCHED,
    FRESH,
    IN_DOUBT,
    INTENT,
    NAMES,
    OPEN,
    RUNNING,
    UNCERTAIN,
    Offsets,
    Sender,
    World,
    put,
    undecided,
    with_sender,
)

_TAKEN_FOR = {"uncertain": IN_DOUBT, "fresh": FRESH, "delivered": DELIVERED, "failed": FAILED}


def takeover_steps(rules: Rules, world: World, who: int) -> Iterator[Step]:
    sender, name = world.senders[who], NAMES[who]
    if sender.mode == ASSIGNED:
        pending = any(t and t.offsets is not None and (t.phase == OPEN or t.offsets_marker) for t in world.transactions)
        if not pending or not rules.stable_fetch:
            low_water, floor = _where(rules, world)
            mode = CLOSED if low_water < 0 else FETCHED
            after = sender._replace(mode=mode, base=max(low_water, 0), floor=max(floor, 0))
            yield Step(f"{name} takes over: O={low_water}, S={floor}", with_sender(world, who, after))
    elif sender.mode == FETCHED:
        bound = len(world.log) if rules.restore_to == "high watermark" else undecided(world.log)
        yield Step(
            f"{name} takes over: mail.state ends at {bound}",
            with_sender(world, who, sender._replace(mode=BOUNDED, bound=bound)),
        )
    elif sender.mode == BOUNDED and undecided(world.log) >= sender.bound:
        yield _read(rules, world, who, sender)


def _where(rules: Rules, world: World) -> Offsets:
    """O and S to start from; -1: do not start."""
    if world.committed.low_water < 0 and world.log:
        if rules.missing_offset == "latest":
            return Offsets(len(world.dispatch), len(world.log))
        if rules.missing_offset == "fail closed":
            return world.committed
    start = world.committed if world.committed.low_water >= 0 else Offsets(0, world.log_start)
    gone = start.floor < world.log_start and rules.missing_head != "go on"
    return Offsets(-1, -1) if gone else start


def _read(rules: Rules, world: World, who: int, sender: Sender) -> Step:
    if sender.floor < world.log_start and rules.missing_head == "fail closed":
        # looked at when S was fetched is not enough: retention may come between
        closed = with_sender(world, who, sender._replace(mode=CLOSED))
        return Step(f"{NAMES[who]} takes over: mail.state begins above S={sender.floor}, fails closed", closed)
    entries = world.log[sender.floor : sender.bound]
    offsets = range(sender.base, len(world.dispatch))
    believed = [status(rules, world, offset, entries) for offset in offsets]
    book = tuple(_settle_doubt(rules, world, who, offset, item) for offset, item in zip(offsets, believed, strict=True))
    marks = tuple(
        _first(world, sender, offset) if item != FRESH else -1 for offset, item in zip(offsets, book, strict=True)
    )
    after = sender._replace(mode=RUNNING, book=book, marks=marks, known_end=sender.bound)
    read = ", ".join(f"@{offset} {item}" for offset, item in zip(offsets, book, strict=True)) or "nothing"
    label = f"{NAMES[who]} takes over: reads mail.state[{sender.floor}:{sender.bound}]: {read}"
    return Step(label, with_sender(world, who, after))


def _first(world: World, sender: Sender, offset: int) -> int:
    for position in range(sender.floor, sender.bound):
        entry = world.log[position]
        if entry and entry.fate == COMMITTED and entry.offset == offset:
            return position
    return sender.floor


def _settle_doubt(rules: Rules, world: World, who: int, offset: int, item: str) -> str:
    if item != IN_DOUBT:
        return item
    if rules.recorder != "none" and world.senders[who].lock:
        own = _own_intent(rules, world, who, offset)
        if own is not None and (offset, own) not in world.ghost.begun:
            return FRESH  # the flight recorder proves that the body was never begun
    return _TAKEN_FOR[rules.doubt_is]


def _own_intent(rules: Rules, world: World, who: int, offset: int) -> int | None:
    """The process whose committed intent of `offset` is this instance's own, or None."""
    for entry in world.log:
        if entry and entry.kind == INTENT and entry.offset == offset and entry.fate == COMMITTED:
            same = entry.writer == who or (rules.static_twins and {entry.writer, who} == {0, 1})
            return entry.writer if same else None
    return None


def doubt_steps(rules: Rules, world: World, who: int) -> Iterator[Step]:
    """An intent without outcome is settled as uncertain once its time-to-live is over on this owner's clock."""
    sender, name = world.senders[who], NAMES[who]
    for k, item in enumerate(sender.book):
        if item != IN_DOUBT:
            continue
        offset = sender.base + k
        label = f"d{world.dispatch[offset].delivery}@{offset}"
        writers = [e.writer for e in world.log if e and e.kind == INTENT and e.offset == offset and e.fate == COMMITTED]
        intent = (offset, writers[0] if writers else who)
        over = intent in world.ghost.lapsed
        if rules.doubt_waits and not over:
            lapsed = world.ghost._replace(lapsed=world.ghost.lapsed | {intent})
            yield Step(f"time: {NAMES[intent[1]]}'s intent of {label} lapses", world._replace(ghost=lapsed))
        else:
            book = put(sender.book, k, UNCERTAIN)
            yield Step(f"{name}: {label} is uncertain", with_sender(world, who, sender._replace(book=book)))
