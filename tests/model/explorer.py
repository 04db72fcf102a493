"""Breadth-first exploration of a model: the first broken property with a shortest trace, or how much was exhausted.

A state is any hashable value (a NamedTuple of tuples is cheap enough). A model gives an initial state and the steps
out of a state; faults are ordinary steps that the model stops offering once their budget is spent.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

Budget = tuple[int, ...]
"""How often each fault may still happen, in the model's order of names; the last number is all of them together."""


class Step(NamedTuple):
    """One way on: what happens, the state it leads to, the property it breaks (if any), whether it is a fault.

    Faults do not count as progress: a state with nothing but faults left is final.
    """

    label: str
    state: Any
    broken: str | None = None
    fault: bool = False


class Model(Protocol):
    """What the explorer asks of a model; it must be deterministic (no clock, no randomness)."""

    def initial(self) -> Hashable: ...

    def steps(self, state: Any) -> Iterable[Step]: ...

    def broken(self, state: Any) -> str | None:
        """The property that this state itself breaks, or None."""

    def unfinished(self, state: Any) -> str | None:
        """Why this state should not be the end of a history, or None."""


class Result(NamedTuple):
    """`broken` is None when nothing broke; `exhausted` is False when a bound stopped the exploration first."""

    broken: str | None
    trace: tuple[str, ...]
    exhausted: bool
    states: int
    transitions: int
    seconds: float

    @property
    def verdict(self) -> str:
        if self.broken:
            return self.broken
        return "exhausted, nothing broken" if self.exhausted else "bound reached, nothing broken so far"


def budget(names: tuple[str, ...], allowed: Mapping[str, int], together: int | None = None) -> Budget:
    """A budget for faults named `names`; `together` bounds their sum (default: no further bound)."""
    unknown = set(allowed) - set(names)
    if unknown:
        raise ValueError(f"unknown faults {sorted(unknown)}; known: {', '.join(names)}")
    counts = tuple(allowed.get(name, 0) for name in names)
    return (*counts, sum(counts) if together is None else together)


def spend(left: Budget, fault: int) -> Budget | None:
    """The budget after one more fault of index `fault`, or None when it is used up."""
    if left[fault] < 1 or left[-1] < 1:
        return None
    return (*left[:fault], left[fault] - 1, *left[fault + 1 : -1], left[-1] - 1)


def explore(
    model: Model, states_max: int = 1_000_000, seconds_max: float = 60.0, *, may_finish: bool = False
) -> Result:
    """Explore `model` breadth first until a property breaks, nothing is left, or a bound is reached.

    A state with nothing left but faults must not be `unfinished`. With `may_finish` it is also checked that from every
    state an end that is not unfinished can still be reached without further faults (no livelock); this costs memory.
    """
    begun = time.monotonic()
    first = model.initial()
    came_from: dict[Hashable, tuple[Any, str] | None] = {first: None}
    waiting: deque[Any] = deque([first])
    backwards: dict[Hashable, list[Any]] = {}
    transitions = 0

    def result(broken: str | None, state: Any = None, label: str | None = None, *, exhausted: bool = False) -> Result:
        trace = _trace(came_from, state, label) if broken else ()
        return Result(broken, trace, exhausted, len(came_from), transitions, time.monotonic() - begun)

    wrong = model.broken(first)
    if wrong:
        return result(wrong, first)
    while waiting:
        state = waiting.popleft()
        progress = False
        for label, following, broken, fault in model.steps(state):
            transitions += 1
            progress = progress or not fault
            if broken:
                return result(broken, state, label)
            if may_finish and not fault:
                backwards.setdefault(following, []).append(state)
            if following in came_from:
                continue
            came_from[following] = (state, label)
            wrong = model.broken(following)
            if wrong:
                return result(wrong, following)
            waiting.append(following)
        if not progress and (wrong := model.unfinished(state)):
            return result(wrong, state)
        if len(came_from) >= states_max or (transitions & 0x3FF == 0 and time.monotonic() - begun > seconds_max):
            return result(None)
    if may_finish and (caught := _caught(model, came_from, backwards)) is not None:
        return result(f"cannot finish any more: {model.unfinished(caught)}", caught)
    return result(None, exhausted=True)


def _caught(model: Model, states: Mapping[Hashable, Any], backwards: Mapping[Hashable, list[Any]]) -> Any:
    """The first state from which no finished one can be reached without faults, or None."""
    ends = [state for state in states if model.unfinished(state) is None]
    fine = set(ends)
    while ends:
        for before in backwards.get(ends.pop(), ()):
            if before not in fine:
                fine.add(before)
                ends.append(before)
    return next((state for state in states if state not in fine), None)


def _trace(came_from: Mapping[Hashable, tuple[Any, str] | None], state: Any, label: str | None) -> tuple[str, ...]:
    path = [] if label is None else [label]
    while (origin := came_from[state]) is not None:
        state, label = origin
        path.append(label)
    return tuple(reversed(path))
