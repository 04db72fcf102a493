"""How a drill ends: passed, failed, or abandoned by a broken promise, a budget or a wish, and always undone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.unit.drill_accounts import delivered, event

from postlane.eventlog.topics import TopicNames
from postlane.ops.drill.account import Account, Copy
from postlane.ops.drill.load import Accepted
from postlane.ops.drill.run import Drill, Pace
from postlane.ops.drill.scene import Scenario, Scene

QUICK = Pace(before_s=0.0, after_s=0.0, arrive_timeout_s=5, settle_timeout_s=0.6, ledger_timeout_s=0.1)


class Site:
    name, bootstrap, names, lanes = "fake", "", TopicNames(""), ("transactional",)
    options: dict[str, str] = {}  # noqa: RUF012
    database_url = prometheus = None
    abilities = frozenset({"witness"})
    recipients_domain, sender = "example.com", "a@example.org"
    restarts = 0


class Following:
    """An account in which each look delivers one more mail."""

    def __init__(self) -> None:
        self.account = Account()
        self.accepted: dict[str, Accepted] = {}
        self.stopped = False
        self.on_look: Callable[[Following], None] = lambda _: None

    def catch_up(self, timeout_s: float = 0.0) -> bool:
        self.on_look(self)
        if self.stopped:
            return True
        number, now = len(self.accepted), time.time()
        message = f"00000000-0000-7000-8000-{number:012d}"
        delivered(self.account, message, offset=number).copies = [Copy(now, "primary", "digest")]
        self.accepted[message] = Accepted(message, f"k{number}", "transactional", "r@example.com", 0, now, now)
        return True

    def close(self) -> None: ...


class Loading:
    published = 0

    def __init__(self, following: Following) -> None:
        self._following = following

    def start(self) -> None: ...

    def stop(self, timeout_s: float = 0.0) -> None:
        self._following.stopped = True

    def accepted(self) -> dict[str, Accepted]:
        return dict(self._following.accepted)


class Publishing:
    def connect(self) -> None: ...

    def close(self, timeout_s: float = 0.0) -> None: ...


class Faked(Drill):
    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.following = Following()

    def _publisher(self) -> Any:
        return Publishing()

    def _follower(self) -> Any:
        return self.following

    def _load(self, publisher: Any, scenario: Scenario) -> Any:
        return Loading(self.following)


def _scenario(undone: list[str], needs: str = "witness") -> Scenario:
    @contextmanager
    def play(scene: Scene) -> Iterator[str]:
        try:
            yield "injected"
            scene.site.restarts = 2  # type: ignore[misc]
        finally:
            undone.append("undone")

    return Scenario("s", "what", 0.6, frozenset({needs}), play)


def _play(
    pace: Pace = QUICK, on_look: Callable[[Following], None] = lambda _: None, **more: Any
) -> tuple[Any, list[str]]:
    undone: list[str] = []
    drill = Faked(Site(), pace, lambda _: None, **more)
    drill.following.on_look = on_look
    return drill.play(_scenario(undone)), undone


def test_a_drill_in_which_everything_is_kept_is_passed() -> None:
    result, undone = _play()
    assert (result.verdict, result.broken, result.unmet) == ("passed", [], [])
    assert result.rto_s is not None
    assert undone == ["undone"]
    assert result.figures["restarts"] == 2


def test_what_the_site_does_not_allow_is_not_played() -> None:
    undone: list[str] = []
    result = Faked(Site(), QUICK, lambda _: None).play(_scenario(undone, "brokers"))
    assert (result.verdict, undone) == ("not played", [])
    assert "brokers" in result.why


def _second_copy(following: Following) -> None:
    if len(following.accepted) > 2:
        next(iter(following.account.deliveries.values())).copies.append(Copy(time.time(), "backup", "digest"))


def test_the_first_broken_promise_ends_the_drill_and_the_fault_is_undone() -> None:
    result, undone = _play(on_look=_second_copy)
    assert result.verdict == "abandoned"
    assert "copies" in result.why
    assert result.broken
    assert undone == ["undone"]


def _loses_its_end(following: Following) -> None:
    if following.stopped:
        delivery = next(iter(following.account.deliveries.values()))
        delivery.events = [e for e in delivery.events if e["type"] != "Delivered"]


def test_a_mail_without_an_end_fails_the_drill() -> None:
    result, undone = _play(on_look=_loses_its_end)
    assert (result.verdict, result.lost) == ("failed", 1)
    assert undone == ["undone"]


def test_a_wish_to_stop_abandons_it() -> None:
    ends = time.monotonic() + 0.4
    result, undone = _play(stopping=lambda: "SIGTERM was received" if time.monotonic() > ends else None)
    assert (result.verdict, result.why) == ("abandoned", "SIGTERM was received")
    assert undone in ([], ["undone"])  # before the fault there is nothing to undo


def test_a_budget_of_seconds_abandons_it() -> None:
    result, _ = _play(Pace(before_s=0.0, seconds_max=0.3, hold_s=5.0))
    assert result.verdict == "abandoned"
    assert "budget" in result.why


@pytest.mark.parametrize(("affected_max", "verdict"), [(0, "abandoned"), (1, "passed")])
def test_a_budget_of_mails_of_others_abandons_it(affected_max: int, verdict: str) -> None:
    def touched(following: Following) -> None:
        other = following.account.delivery("00000000-0000-7000-8000-000000000999.0000000000000000.0")
        other.events = [event(other.ident, "Deferred", at="2999-01-01T00:00:00Z")]

    pace = Pace(before_s=0.0, after_s=0.0, settle_timeout_s=0.6, affected_max=affected_max)
    result, undone = _play(pace, on_look=touched)
    assert result.verdict == verdict
    assert undone == ["undone"]
    assert result.others_affected == 1
