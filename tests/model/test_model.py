"""The short form of the models: what is designed exhausts clean, every rule switched off is caught or backed up."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from .all_cases import CASES
from .cases import Case
from .explorer import Step, budget, explore, spend

SHORT = [case for case in CASES if case.size == "short"]


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_a_case_comes_out_as_it_must(case: Case) -> None:
    result = explore(case.build(), states_max=200_000, seconds_max=60.0, may_finish=True)
    assert case.as_expected(result), "\n".join((case.about, result.verdict, *result.trace))


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


class _Counter(NamedTuple):
    """A toy: counts up to 3, may fall into a pit at 2, may go round in circles at 1."""

    pit: bool = False
    circle: bool = False

    def initial(self) -> int:
        return 0

    def steps(self, state: int) -> list[Step]:
        steps = [Step(f"{state} + 1", state + 1)] if 0 <= state < 3 else []
        if self.pit and state == 2:
            steps.append(Step("falls", -1))
        if self.circle and state == 1:
            steps.append(Step("turns", 10))
        if state in (10, 11):
            steps.append(Step("turns on", 21 - state))
        return steps

    def broken(self, state: int) -> str | None:
        return "in the pit" if state == -1 else None

    def unfinished(self, state: int) -> str | None:
        return None if state == 3 else "not at 3"


def test_the_explorer_exhausts() -> None:
    result = explore(_Counter())
    assert (result.broken, result.exhausted, result.states, result.transitions) == (None, True, 4, 3)


def test_the_explorer_gives_the_shortest_trace() -> None:
    result = explore(_Counter(pit=True))
    assert result.broken == "in the pit"
    assert result.trace == ("0 + 1", "1 + 1", "falls")


def test_the_explorer_finds_a_livelock() -> None:
    assert explore(_Counter(circle=True)).broken is None
    result = explore(_Counter(circle=True), may_finish=True)
    assert result.broken == "cannot finish any more: not at 3"
    assert result.trace == ("0 + 1", "turns")


def test_the_explorer_says_when_a_bound_stopped_it() -> None:
    result = explore(_Counter(), states_max=2)
    assert not result.exhausted
    assert result.broken is None


def test_a_budget_bounds_each_fault_and_all_together() -> None:
    left = budget(("crash", "kick"), {"crash": 2, "kick": 1}, together=2)
    left = spend(left, 0) or left
    assert left == (1, 1, 1)
    left = spend(left, 1) or left
    assert spend(left, 0) is None
    with pytest.raises(ValueError, match="unknown faults"):
        budget(("crash",), {"fire": 1})


def test_the_page_knows_every_case() -> None:
    page = (Path(__file__).parents[2] / "docs" / "model.md").read_text(encoding="utf-8")
    assert [case.name for case in CASES if f"| {case.name} |" not in page] == []
