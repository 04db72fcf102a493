"""Misbehaviour on order: rules that say what goes wrong, where, for whom and how often.

A rule is a JSON object. `action` says what happens:

| action | what the server does | needs |
| --- | --- | --- |
| `delay` | waits, then goes on | `delay_s` |
| `reply` | answers with this reply instead of its own; 421, and any reply at `connect`, ends the connection | `code` |
| `drop` | closes the connection without an answer; nothing is accepted | |
| `hang` | never answers again on this connection | |
| `accept_drop` | takes responsibility (it is in the ledger), then closes without the 250 | |
| `accept_hang` | takes responsibility, then answers after `delay_s`, or never | |
| `slow_read` | reads no faster than this on each connection | `bytes_per_s` |
| `max_connections` | answers 421 to connections beyond the limit | `limit` |
| `refuse` | an outage: nothing listens, live connections are reset, until the rule goes | |

`phase` says where: `connect`, `ehlo`, `auth`, `mail`, `rcpt`, `data`, `body` (before the final dot), `dot` (after it).
The rest narrows it down: `server` (name of the listener), `recipient` (a glob) or `recipient_regex` (from `rcpt` on),
`delivery` (a glob over X-Postlane-Delivery, at `dot`), `probability` (with `seed`, so that a run can be repeated) and
`count` (only the next so many). Rules are asked in their order: delays add up, and the first other rule decides.
"""

from __future__ import annotations

import fnmatch
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

PHASES = ("connect", "ehlo", "auth", "mail", "rcpt", "data", "body", "dot")
RULES_MAX = 1000
_HAS_RECIPIENTS = frozenset({"rcpt", "data", "body", "dot"})
_FIXED_PHASE = {
    "accept_drop": "dot",
    "accept_hang": "dot",
    "slow_read": "connect",
    "max_connections": "connect",
    "refuse": "connect",
}
_ACTIONS = ("delay", "reply", "drop", "hang", *_FIXED_PHASE)
_STANDING = frozenset({"slow_read", "max_connections", "refuse"})
_NEEDS = {"delay": "delay_s", "reply": "code", "slow_read": "bytes_per_s", "max_connections": "limit"}


class InvalidRule(ValueError):
    """A rule that says nothing, or contradicts itself; the message says which field and why."""


@dataclass(slots=True)
class Rule:
    """One order; `hits` counts how often it was followed."""

    id: str
    action: str
    phase: str
    server: str | None = None
    recipient: str | None = None
    recipient_regex: str | None = None
    delivery: str | None = None
    probability: float = 1.0
    count: int | None = None
    seed: int = 0
    delay_s: float | None = None
    code: int | None = None
    text: str | None = None
    bytes_per_s: int | None = None
    limit: int | None = None
    hits: int = 0
    _dice: random.Random = field(default_factory=random.Random, repr=False, compare=False)
    _pattern: re.Pattern[str] | None = field(default=None, repr=False, compare=False)
    _delivery: re.Pattern[str] | None = field(default=None, repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        """The rule as it can be sent back, with `hits`."""
        return {k: v for k, v in asdict(self).items() if v is not None and not k.startswith("_")}

    @property
    def reply(self) -> str:
        """The reply line of a `reply` rule."""
        code = self.code or 451
        return f"{code} {self.text or _default_text(code)}"

    def matches(self, server: str, recipients: Sequence[str], delivery: str | None) -> bool:
        """Whether the rule is followed now; rolls its dice and uses up its count."""
        if self.count is not None and self.hits >= self.count:
            return False
        if self.server is not None and self.server != server:
            return False
        if self._pattern is not None and not any(self._pattern.search(rcpt) for rcpt in recipients):
            return False
        if self._delivery is not None and not self._delivery.match(delivery or ""):
            return False
        if self.probability < 1.0 and self._dice.random() >= self.probability:
            return False
        self.hits += 1
        return True


def parse_rule(value: object, default_id: str) -> Rule:
    """A rule from JSON. Raises InvalidRule with the first thing that is wrong."""
    if not isinstance(value, Mapping):
        raise InvalidRule("a rule is a JSON object")
    known = {f.name: f for f in fields(Rule) if not f.name.startswith("_") and f.name != "hits"}
    given = {str(k): v for k, v in value.items() if v is not None and k != "hits"}
    for key in given:
        if key not in known:
            raise InvalidRule(f"unknown field {key!r}; known are {', '.join(known)}")
    action = given.get("action")
    if action not in _ACTIONS:
        raise InvalidRule(f"action must be one of {', '.join(_ACTIONS)}")
    given.setdefault("id", default_id)
    given.setdefault("phase", _FIXED_PHASE.get(action, "dot"))
    given.setdefault("seed", random.SystemRandom().getrandbits(32))
    _check_types(given)
    rule = Rule(**given)
    _check(rule)
    rule._dice = random.Random(rule.seed)  # noqa: S311 repeatable by its seed, not a secret
    if rule.recipient is not None:
        rule._pattern = re.compile(fnmatch.translate(rule.recipient), re.IGNORECASE)
    elif rule.recipient_regex is not None:
        try:
            rule._pattern = re.compile(rule.recipient_regex, re.IGNORECASE)
        except re.error as error:
            raise InvalidRule(f"recipient_regex is not a regular expression: {error}") from error
    if rule.delivery is not None:
        rule._delivery = re.compile(fnmatch.translate(rule.delivery))
    return rule


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do at a phase: wait `delay_s`, then follow `rule` (None: go on as usual)."""

    delay_s: float
    rule: Rule | None


class Faults:
    """The rules in force. `version` changes whenever they do, so that sessions notice cheaply."""

    def __init__(self) -> None:
        self.version = 0
        self._rules: list[Rule] = []
        self._by_phase: dict[str, list[Rule]] = {phase: [] for phase in PHASES}
        self._given = 0

    def rules(self) -> list[Rule]:
        """All rules, in their order."""
        return list(self._rules)

    def replace(self, values: Iterable[object]) -> list[Rule]:
        """Put these in place of all. Raises InvalidRule, and then nothing has changed."""
        return self._set(self._parse_all(values, []))

    def add(self, value: object) -> Rule:
        """Add one at the end; a rule with the same id is replaced. Raises InvalidRule."""
        (rule,) = self._parse_all([value], self._rules)
        self._set([*(kept for kept in self._rules if kept.id != rule.id), rule])
        return rule

    def remove(self, rule_id: str | None = None) -> int:
        """Remove one, or all; returns how many went."""
        kept = [rule for rule in self._rules if rule_id is not None and rule.id != rule_id]
        gone = len(self._rules) - len(kept)
        self._set(kept)
        return gone

    def decide(
        self, phase: str, server: str, recipients: Sequence[str] = (), delivery: str | None = None
    ) -> Verdict | None:
        """What goes wrong at this phase, if anything."""
        rules = self._by_phase[phase]
        if not rules:
            return None
        delay_s = 0.0
        for rule in rules:
            if rule.matches(server, recipients, delivery):
                if rule.action != "delay":
                    return Verdict(delay_s, rule)
                delay_s += rule.delay_s or 0.0
        return Verdict(delay_s, None) if delay_s else None

    def standing(self, action: str, server: str) -> list[Rule]:
        """The lasting rules (`slow_read`, `max_connections`, `refuse`) that hold for this listener."""
        return [r for r in self._rules if r.action == action and r.server in (None, server)]

    def _parse_all(self, values: Iterable[object], beside: Sequence[Rule]) -> list[Rule]:
        parsed = []
        for value in values:
            self._given += 1
            parsed.append(parse_rule(value, f"f{self._given}"))
        if len({rule.id for rule in parsed}) != len(parsed):
            raise InvalidRule("two rules have the same id")
        if len(parsed) + len(beside) > RULES_MAX:
            raise InvalidRule(f"more than {RULES_MAX} rules")
        return parsed

    def _set(self, rules: list[Rule]) -> list[Rule]:
        self._rules = rules
        for phase, of_phase in self._by_phase.items():
            of_phase[:] = [r for r in rules if r.phase == phase and r.action not in _STANDING]
        self.version += 1
        return rules


def _default_text(code: int) -> str:
    if code == 421:
        return "4.3.2 Practice server closing"
    return f"{code // 100}.0.0 Practice fault"


def _check_types(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in ("probability", "delay_s"):
            good = isinstance(value, int | float) and not isinstance(value, bool)
        elif name in ("count", "seed", "code", "bytes_per_s", "limit"):
            good = isinstance(value, int) and not isinstance(value, bool)
        else:
            good = isinstance(value, str)
        if not good:
            raise InvalidRule(f"{name} has the wrong type: {value!r}")


def _check(rule: Rule) -> None:
    needed = _NEEDS.get(rule.action)
    if needed is not None and getattr(rule, needed) is None:
        raise InvalidRule(f"action {rule.action} needs {needed}")
    if rule.phase not in PHASES:
        raise InvalidRule(f"phase must be one of {', '.join(PHASES)}")
    fixed = _FIXED_PHASE.get(rule.action)
    if fixed is not None and rule.phase != fixed:
        raise InvalidRule(f"action {rule.action} belongs to phase {fixed}")
    if (rule.recipient or rule.recipient_regex) and rule.phase not in _HAS_RECIPIENTS:
        raise InvalidRule(f"no recipient is known at phase {rule.phase}")
    if rule.delivery is not None and rule.phase != "dot":
        raise InvalidRule("the delivery is known at phase dot only")
    if rule.action == "reply" and rule.phase == "body":
        raise InvalidRule("there is no reply before the final dot; use phase dot")
    if rule.code is not None and not 400 <= rule.code <= 599:
        raise InvalidRule("code must be 400 to 599")
    if rule.text is not None and ("\r" in rule.text or "\n" in rule.text):
        raise InvalidRule("text must be one line")
    if not 0.0 <= rule.probability <= 1.0:
        raise InvalidRule("probability must be 0 to 1")
    if rule.action in _STANDING and (rule.probability != 1.0 or rule.count is not None):
        raise InvalidRule(f"action {rule.action} holds for all connections; it takes no probability and no count")
    for name in ("delay_s", "count", "limit"):
        value = getattr(rule, name)
        if value is not None and value < 0:
            raise InvalidRule(f"{name} must not be negative")
    if rule.bytes_per_s is not None and rule.bytes_per_s < 1:
        raise InvalidRule("bytes_per_s must be at least 1")
