"""With a rule of the protocol taken out, an oracle must speak: a proof that cannot fail proves nothing.

Random seeds are tried from `first` on, at most `seeds` of them; where they meet the interleaving too rarely, a scenario
tells it step by step. docs/proof.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest

from postlane.core.rules import Rules, rules_without
from tests.simulation import scenarios
from tests.simulation.world import Result, simulate

SEEDS_MAX = 40
# rule -> (first seed to try, one of the oracles that may speak)
BY_SEED: dict[str, tuple[int, set[str]]] = {
    "intent_before_body": (1, {"no body without an intent"}),
    "doubt_is_not_fresh": (1, {"copies"}),
    "lost_after_dot_is_doubt": (1, {"copies", "doubt is no fact"}),
    "low_water_is_unsettled": (1, {"O passes nothing unsettled"}),
    "lookup_by_hop": (1, {"O passes nothing unsettled", "accepted is kept"}),
    "expiry_everywhere": (1, {"expiry"}),
    "dedup": (1, {"no repeats"}),
    "retry_in_transaction": (3, {"accepted is kept"}),
    "drop_not_owned": (2, {"one outcome per hop"}),
}
BY_SCENARIO: dict[str, tuple[Callable[[Rules | None], Result], set[str]]] = {
    "fence_every_tick": (scenarios.zombie_amid_a_tick, {"no intent after its outcome"}),
    "floor_counts_outcomes": (scenarios.settled_above_what_starts_later, {"S hides nothing"}),
    "group_metadata": (scenarios.zombie_amid_a_tick, {"no intent after its outcome"}),
    "ledger_offsets_with_rows": (
        scenarios.ledger_dies_between_its_transactions,
        {"the ledger is the fold of the log"},
    ),
    "look_again_before_body": (scenarios.zombie_after_the_lapse, {"no body after the lapse"}),
    "replay_raises_generation": (scenarios.replay_of_what_was_given_up, {"accepted is kept"}),
    "restore_to_high_watermark": (scenarios.dead_writers_open_transaction, {"copies"}),
    "reread_unknown_commit": (scenarios.unknown_commit_of_outcomes, {"one outcome per hop"}),
    "wait_for_lapse": (scenarios.zombie_before_the_body, {"no body after its outcome"}),
}


@pytest.mark.parametrize("rule", sorted(BY_SEED))
def test_a_rule_taken_out_is_caught_within_seeds(rule: str) -> None:
    first, oracles = BY_SEED[rule]
    for seed in range(first, first + SEEDS_MAX):
        broken = simulate(seed, rules_without([rule])).broken
        if broken is not None and broken.oracle in oracles:
            return
    pytest.fail(f"without {rule} {SEEDS_MAX} seeds from {first} on held")


@pytest.mark.parametrize("rule", sorted(BY_SCENARIO))
def test_a_rule_taken_out_is_caught_by_a_scenario(rule: str) -> None:
    scenario, oracles = BY_SCENARIO[rule]
    assert scenario(None).broken is None
    broken = scenario(rules_without([rule])).broken
    assert broken is not None, f"without {rule} the scenario held"
    assert broken.oracle in oracles, broken


def test_every_rule_has_its_control() -> None:
    assert {field.name for field in fields(Rules)} == {*BY_SEED, *BY_SCENARIO}
