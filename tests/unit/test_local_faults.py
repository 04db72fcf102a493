"""The rules of misbehaviour: what matches, how often, and what is refused as nonsense."""

from __future__ import annotations

from typing import Any

import pytest

from postlane.local.practice.faults import Faults, InvalidRule


def book(*rules: dict[str, Any]) -> Faults:
    faults = Faults()
    faults.replace(rules)
    return faults


def action(faults: Faults, phase: str, *rcpts: str, server: str = "primary", delivery: str | None = None) -> str | None:
    verdict = faults.decide(phase, server, rcpts, delivery)
    return verdict.rule.action if verdict is not None and verdict.rule is not None else None


def test_without_rules_nothing_goes_wrong() -> None:
    assert Faults().decide("dot", "primary", ["a@b"]) is None


def test_delays_add_up_and_the_first_other_rule_decides() -> None:
    faults = book(
        {"action": "delay", "phase": "dot", "delay_s": 1},
        {"action": "delay", "phase": "dot", "delay_s": 0.5},
        {"action": "reply", "phase": "dot", "code": 451},
        {"action": "drop", "phase": "dot"},
    )
    verdict = faults.decide("dot", "primary", ["a@b"])
    assert verdict is not None
    assert verdict.delay_s == 1.5
    assert verdict.rule is not None
    assert verdict.rule.reply == "451 4.0.0 Practice fault"
    assert [rule.hits for rule in faults.rules()] == [1, 1, 1, 0]


def test_recipient_patterns() -> None:
    faults = book(
        {"action": "reply", "phase": "rcpt", "code": 550, "recipient": "*@GONE.example"},
        {"action": "reply", "phase": "rcpt", "code": 450, "recipient_regex": r"^slow\d+@"},
    )
    assert action(faults, "rcpt", "ada@gone.example") == "reply"
    assert action(faults, "rcpt", "ada@gone.example.org") is None
    assert action(faults, "rcpt", "slow12@x.example") == "reply"
    assert action(faults, "rcpt", "notslow12@x.example") is None


def test_at_the_dot_one_matching_recipient_is_enough() -> None:
    faults = book({"action": "accept_drop", "recipient": "*@b.example"})
    assert action(faults, "dot", "x@a.example", "y@b.example") == "accept_drop"
    assert action(faults, "dot", "x@a.example") is None


def test_a_count_is_used_up() -> None:
    faults = book({"action": "drop", "phase": "dot", "count": 2})
    assert [action(faults, "dot", "a@b") for _ in range(4)] == ["drop", "drop", None, None]


def test_a_rule_may_hold_for_one_listener_and_one_delivery() -> None:
    faults = book({"action": "drop", "phase": "dot", "server": "backup", "delivery": "abc*"})
    assert action(faults, "dot", "a@b", server="primary", delivery="abc1") is None
    assert action(faults, "dot", "a@b", server="backup", delivery="xyz1") is None
    assert action(faults, "dot", "a@b", server="backup", delivery=None) is None
    assert action(faults, "dot", "a@b", server="backup", delivery="abc1") == "drop"


def test_the_same_seed_gives_the_same_run() -> None:
    def run(seed: int) -> list[str | None]:
        faults = book({"action": "drop", "phase": "dot", "probability": 0.5, "seed": seed})
        return [action(faults, "dot", "a@b") for _ in range(64)]

    assert run(7) == run(7)
    assert run(7) != run(8)
    assert {None, "drop"} == set(run(7))


def test_probability_zero_and_one() -> None:
    faults = book({"action": "drop", "phase": "dot", "probability": 0}, {"action": "hang", "phase": "dot"})
    assert [action(faults, "dot", "a@b") for _ in range(50)] == ["hang"] * 50


def test_rules_come_and_go_by_id_and_the_version_tells() -> None:
    faults = book({"id": "x", "action": "drop", "phase": "mail"})
    version = faults.version
    assert faults.add({"action": "hang", "phase": "mail"}).id != "x"
    faults.add({"id": "x", "action": "drop", "phase": "dot"})
    assert [rule.id for rule in faults.rules()][-1] == "x"
    assert action(faults, "mail") == "hang"
    assert faults.remove("nobody") == 0
    assert faults.remove("x") == 1
    assert faults.remove() == 1
    assert faults.rules() == []
    assert faults.version > version


def test_what_the_server_shows_it_takes_back() -> None:
    faults = book({"action": "reply", "phase": "dot", "code": 451, "text": "4.7.1 Later", "probability": 0.25})
    shown = [rule.as_json() for rule in faults.rules()]
    assert [rule.as_json() for rule in faults.replace(shown)] == shown


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ([], "JSON object"),
        ({}, "action"),
        ({"action": "explode"}, "action"),
        ({"action": "drop", "phase": "noon"}, "phase"),
        ({"action": "drop", "colour": "red"}, "colour"),
        ({"action": "delay"}, "delay_s"),
        ({"action": "delay", "delay_s": -1}, "negative"),
        ({"action": "delay", "delay_s": "1"}, "wrong type"),
        ({"action": "reply"}, "code"),
        ({"action": "reply", "code": 250}, "400 to 599"),
        ({"action": "reply", "code": True}, "wrong type"),
        ({"action": "reply", "code": 451, "phase": "body"}, "final dot"),
        ({"action": "reply", "code": 451, "text": "a\r\nb"}, "one line"),
        ({"action": "accept_drop", "phase": "mail"}, "phase dot"),
        ({"action": "drop", "phase": "mail", "recipient": "*"}, "recipient"),
        ({"action": "drop", "phase": "rcpt", "delivery": "*"}, "delivery"),
        ({"action": "drop", "probability": 1.5}, "probability"),
        ({"action": "drop", "recipient_regex": "("}, "regular expression"),
        ({"action": "refuse", "probability": 0.5}, "all connections"),
        ({"action": "slow_read"}, "bytes_per_s"),
        ({"action": "slow_read", "bytes_per_s": 0}, "at least 1"),
        ({"action": "max_connections"}, "limit"),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(rule: Any, says: str) -> None:
    faults = book({"id": "kept", "action": "drop", "phase": "mail"})
    with pytest.raises(InvalidRule, match=says):
        faults.add(rule)
    with pytest.raises(InvalidRule, match=says):
        faults.replace([rule])
    assert [kept.id for kept in faults.rules()] == ["kept"]


def test_two_rules_with_one_id_are_refused() -> None:
    with pytest.raises(InvalidRule, match="same id"):
        book({"id": "a", "action": "drop"}, {"id": "a", "action": "hang"})
