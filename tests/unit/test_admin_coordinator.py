"""A group whose coordinator is moving is asked again, within a bound."""

from __future__ import annotations

import pytest

from postlane.eventlog import admin_groups
from postlane.eventlog.errors import Fatal, LogError, Retriable, Unreachable


class Answers:
    """Raises what it is given, in turn; then answers."""

    def __init__(self, *errors: LogError) -> None:
        self.left, self.asked = list(errors), 0

    async def ask(self) -> str:
        self.asked += 1
        if self.left:
            raise self.left.pop(0)
        return "answer"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_groups, "COORDINATOR_WAIT_S", 0)


async def test_it_is_asked_again_while_it_moves() -> None:
    answers = Answers(Retriable("NOT_COORDINATOR"), Retriable("COORDINATOR_LOAD_IN_PROGRESS"))
    assert await admin_groups.coordinated(answers.ask, 3) == "answer"


async def test_the_last_refusal_is_raised() -> None:
    answers = Answers(*[Retriable("NOT_COORDINATOR")] * 9)
    with pytest.raises(Retriable):
        await admin_groups.coordinated(answers.ask, 3)
    assert answers.asked == 3


@pytest.mark.parametrize("error", [Unreachable("no broker"), Fatal("not authorized")])
async def test_what_waiting_does_not_mend_is_raised_at_once(error: LogError) -> None:
    answers = Answers(error)
    with pytest.raises(type(error)):
        await admin_groups.coordinated(answers.ask, 3)
    assert answers.asked == 1


async def test_a_restore_waits_for_brokers_as_well() -> None:
    assert await admin_groups.coordinated(Answers(Unreachable("no broker")).ask, 3, unreachable=True) == "answer"
