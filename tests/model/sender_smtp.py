"""Steps of the SMTP conversations: the body begins, and what the server or the wire answers."""

from __future__ import annotations

from collections.abc import Iterator

from .explorer import Step, spend
from .sender_oracle import accept, begins_body
from .sender_rules import LAPSE, LOSE_REPLY, REFUSE, Rules
from .sender_state import (
    BODY,
    CHECKED,
    DELIVERED,
    FAILED,
    NAMES,
    OUTCOME_UNKNOWN,
    READY,
    RELEASED,
    UNCERTAIN,
    Sender,
    World,
    put,
    with_sender,
)


def smtp_steps(rules: Rules, world: World, who: int) -> Iterator[Step]:
    sender = world.senders[who]
    frozen = rules.frozen_while_unknown and sender.tick == OUTCOME_UNKNOWN
    for k, item in enumerate(sender.book):
        if item == READY:
            if not frozen:
                yield from _ready(rules, world, who, k)
        elif item == CHECKED:
            if not frozen:
                yield _begin(rules, world, who, k)
        elif item == BODY:
            yield from _answer(rules, world, who, k)


def _becomes(world: World, who: int, k: int, item: str) -> World:
    sender: Sender = world.senders[who]
    return with_sender(world, who, sender._replace(book=put(sender.book, k, item)))


def _label(world: World, who: int, k: int) -> str:
    offset = world.senders[who].base + k
    return f"{NAMES[who]} d{world.dispatch[offset].delivery}@{offset}"


def _ready(rules: Rules, world: World, who: int, k: int) -> Iterator[Step]:
    label = _label(world, who, k)
    lapsed = (world.senders[who].base + k, who) in world.ghost.lapsed
    if lapsed:
        yield Step(f"{label}: the intent has lapsed, released", _becomes(world, who, k, RELEASED))
    elif (budget := spend(world.budget, LAPSE)) is not None:
        after = _becomes(world, who, k, RELEASED)._replace(budget=budget)
        yield Step(f"{label}: finds no connection, released", after, fault=True)
    if lapsed and rules.deadline_checked:
        return
    if rules.pause_after_check:
        yield Step(f"{label}: the intent still holds", _becomes(world, who, k, CHECKED))
    else:
        yield _begin(rules, world, who, k)


def _begin(rules: Rules, world: World, who: int, k: int) -> Step:
    offset = world.senders[who].base + k
    broken = begins_body(rules, world, who, offset)
    after = _becomes(world, who, k, BODY)
    if rules.recorder != "none":
        after = after._replace(ghost=after.ghost._replace(begun=after.ghost.begun | {(offset, who)}))
    return Step(f"{_label(world, who, k)}: begins the body", after, broken)


def _answer(rules: Rules, world: World, who: int, k: int) -> Iterator[Step]:
    label = _label(world, who, k)
    offset = world.senders[who].base + k
    after, broken = accept(rules, _becomes(world, who, k, DELIVERED), who, offset)
    yield Step(f"{label}: dot, 250", after, broken)
    if not rules.release_only_unbegun and (budget := spend(world.budget, LAPSE)) is not None:
        after, broken = accept(rules, _becomes(world, who, k, RELEASED)._replace(budget=budget), who, offset)
        yield Step(f"{label}: lapses after the body was begun, released, but accepted", after, broken, fault=True)
    if (budget := spend(world.budget, REFUSE)) is not None:
        after = _becomes(world, who, k, FAILED)._replace(budget=budget)
        yield Step(f"{label}: 451, or cut before the dot", after, fault=True)
    if (budget := spend(world.budget, LOSE_REPLY)) is not None:
        item = UNCERTAIN if rules.lost_reply_is == "uncertain" else FAILED
        cut = _becomes(world, who, k, item)._replace(budget=budget)
        after, broken = accept(rules, cut, who, offset)
        yield Step(f"{label}: dot, accepted, the reply is lost", after, broken, fault=True)
        if rules.wire_outlives:
            cut = cut._replace(ghost=cut.ghost._replace(adrift=cut.ghost.adrift | {(offset, who)}))
        yield Step(f"{label}: dot, not accepted, the reply is lost", cut, fault=True)
