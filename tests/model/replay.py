"""Replay: operators publish dead letters again as new generations; the router drops what was published before.

A letter is (mail, generation). Two operators may replay the same letters at once, each may be killed at any point and
run again, and an acknowledgement may be lost. Properties: 1 a mail is accepted by the server at most once; 2 a letter
that a run reports as replayed is routed as a later generation; 3 a generation is routed at
most once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from .explorer import Budget, Step, budget, spend
from .sender_state import NAMES, put

FAULTS = (
    "kill",  # an operator's run is killed, and started again later
    "silence",  # a publish is written but not acknowledged
    "refuse",  # a replayed mail fails again and is a dead letter of its new generation
    "rerun",  # an operator replays once more, with what is dead by then
)
KILL, SILENCE, REFUSE, RERUN = range(len(FAULTS))
PLANNING, SENDING, UNSURE, DONE, KILLED = "planning", "sending", "unsure", "done", "killed"


@dataclass(frozen=True, slots=True)
class Rules:
    """The replay protocol; the defaults are as designed."""

    mails: int = 2
    operators: int = 2
    generation: Literal["letter + 1", "latest + 1", "same"] = "letter + 1"
    dedup: Literal["mail and generation", "mail", "none"] = "mail and generation"
    window: bool = False  # the world: a window of requests is replayed, mail 0 is still on its way to the server
    guard: Literal["is dead", "not known delivered", "none"] = "is dead"  # what must be known of a mail to be replayed
    progress: Literal["after acknowledgement", "before publishing"] = "after acknowledgement"
    resume: bool = True  # False: a run that is started again begins at its first letter, with a new plan


class Operator(NamedTuple):
    """A run: its plan (letters as it saw them) and how far its progress file says it is."""

    stage: str = PLANNING
    plan: tuple[tuple[int, int], ...] = ()
    progress: int = 0


class World(NamedTuple):
    letters: frozenset[tuple[int, int]]  # dead letters: (mail, generation)
    requests: tuple[tuple[int, int], ...]  # published, not yet routed
    published: frozenset[tuple[int, int]]
    routed: tuple[tuple[int, int], ...]  # in flight towards the server
    seen: frozenset[tuple[int, int]]  # the router's memory: routed before
    accepted: tuple[int, ...]  # copies per mail
    known: frozenset[int]  # delivered, as the ledger knows (it may be behind)
    finished: frozenset[tuple[int, int]]  # letters that a run reported as replayed
    operators: tuple[Operator, ...]
    budget: Budget


class ReplayModel:
    """Operators over the dead letters of a few mails, under `rules`, with `faults` and at most `together` of them."""

    def __init__(self, rules: Rules, faults: Mapping[str, int], together: int | None = None) -> None:
        self.rules = rules
        self.budget = budget(FAULTS, faults, together)

    def initial(self) -> World:
        mails, nothing = range(self.rules.mails), frozenset[tuple[int, int]]()
        first = frozenset((mail, 0) for mail in mails)
        on_its_way = ((0, 0),) if self.rules.window else ()
        return World(
            letters=first - set(on_its_way),
            requests=(),
            published=nothing,
            routed=on_its_way,
            seen=first,
            accepted=(0,) * len(mails),
            known=frozenset(),
            finished=nothing,
            operators=(Operator(),) * self.rules.operators,
            budget=self.budget,
        )

    def broken(self, state: World) -> str | None:
        for mail, copies in enumerate(state.accepted):
            if copies > 1:
                return f"1: the server has {copies} copies of mail {mail}"
        for request in state.routed:
            if state.routed.count(request) > 1:
                return f"3: mail {request[0]} was routed twice as generation {request[1]}"
        return None

    def unfinished(self, state: World) -> str | None:
        for mail, generation in state.finished:
            if not any(m == mail and g > generation for m, g in state.seen):
                return f"2: mail {mail} was reported as replayed but never routed again"
        if state.requests or state.routed or any(operator.stage != DONE for operator in state.operators):
            return "2: a run cannot go on"
        return None

    def steps(self, state: World) -> Iterator[Step]:
        yield from self._route(state)
        yield from self._send(state)
        for who, operator in enumerate(state.operators):
            yield from self._operate(state, who, operator)

    def _route(self, world: World) -> Iterator[Step]:
        if not world.requests:
            return
        mail, generation = request = world.requests[0]
        left = world._replace(requests=world.requests[1:])
        dedup = self.rules.dedup
        repeat = request in world.seen if dedup == "mail and generation" else any(m == mail for m, _ in world.seen)
        if repeat and dedup != "none":
            yield Step(f"router: mail {mail} generation {generation} is a repeat", left)
        else:
            after = left._replace(routed=(*world.routed, request), seen=world.seen | {request})
            yield Step(f"router: routes mail {mail} generation {generation}", after)

    def _send(self, world: World) -> Iterator[Step]:
        for at, request in enumerate(world.routed):
            mail, generation = request
            left = world._replace(routed=(*world.routed[:at], *world.routed[at + 1 :]))
            label = f"server: mail {mail} generation {generation}"
            taken = left._replace(accepted=put(world.accepted, mail, world.accepted[mail] + 1))
            yield Step(f"{label} is accepted", taken)
            if (budget_left := spend(world.budget, REFUSE)) is not None:
                dead = left._replace(letters=world.letters | {request}, budget=budget_left)
                yield Step(f"{label} is refused, a dead letter", dead, fault=True)
        for mail, copies in enumerate(world.accepted):
            if copies and mail not in world.known:
                yield Step(f"ledger: knows that mail {mail} was delivered", world._replace(known=world.known | {mail}))

    def _operate(self, world: World, who: int, operator: Operator) -> Iterator[Step]:
        name = NAMES[who]
        if operator.stage == PLANNING:
            there = world.seen if self.rules.window else world.letters
            plan = tuple(dict(sorted(there)).items())  # the latest generation of each mail
            yield Step(f"{name} plans to replay {plan}", _put(world, who, Operator(SENDING, plan)))
        elif operator.stage == KILLED:
            again = operator._replace(stage=SENDING) if self.rules.resume else Operator()
            yield Step(f"{name} is started again", _put(world, who, again))
        elif operator.stage == DONE:
            if (left := spend(world.budget, RERUN)) is not None:
                yield Step(f"{name} replays once more", _put(world, who, Operator())._replace(budget=left), fault=True)
        elif operator.progress == len(operator.plan):
            yield Step(f"{name} is done", _put(world, who, operator._replace(stage=DONE)))
        else:
            yield from self._publish(world, who, operator)
        if operator.stage in (SENDING, UNSURE) and (left := spend(world.budget, KILL)) is not None:
            dead = _put(world, who, operator._replace(stage=KILLED))._replace(budget=left)
            yield Step(f"{name} is killed", dead, fault=True)

    def _publish(self, world: World, who: int, operator: Operator) -> Iterator[Step]:
        name, rules = NAMES[who], self.rules
        letter = operator.plan[operator.progress]
        mail, generation = letter
        moved = operator._replace(stage=SENDING, progress=operator.progress + 1)
        finished = world._replace(finished=world.finished | {letter})
        dead = letter in world.letters
        if (rules.guard == "is dead" and not dead) or (rules.guard == "not known delivered" and mail in world.known):
            yield Step(f"{name}: mail {mail} is guarded", _put(world, who, moved))
            return
        if rules.generation == "letter + 1":
            generation += 1
        elif rules.generation == "latest + 1":
            generation = 1 + max(g for m, g in world.seen | world.published if m == mail)
        request = (mail, generation)
        label = f"{name} publishes mail {mail} generation {generation}"
        if rules.progress == "before publishing" and (left := spend(world.budget, KILL)) is not None:
            killed = _put(finished, who, moved._replace(stage=KILLED))._replace(budget=left)
            yield Step(f"{name} notes mail {mail} as replayed and is killed", killed, fault=True)
        written = world._replace(requests=(*world.requests, request), published=world.published | {request})
        acked = _put(written._replace(finished=finished.finished), who, moved)
        yield Step(f"{label}, acknowledged", acked)
        if (left := spend(world.budget, SILENCE)) is not None:
            unsure = operator._replace(stage=UNSURE)
            yield Step(f"{label}, not acknowledged", _put(written, who, unsure)._replace(budget=left), fault=True)
        if (left := spend(world.budget, KILL)) is not None:
            killed = _put(written, who, operator._replace(stage=KILLED))._replace(budget=left)
            yield Step(f"{label}, and is killed", killed, fault=True)


def _put(world: World, who: int, operator: Operator) -> World:
    return world._replace(operators=put(world.operators, who, operator))
