"""Throwaway stacks, one after another: one Kafka for those that want the same number of brokers, the rest anew."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from postlane.local.kafka import KafkaCluster
from postlane.ops.drill import scenarios_processes, scenarios_providers, scenarios_publishers, scenarios_tables
from postlane.ops.drill.prometheus import find_rules
from postlane.ops.drill.result import Result
from postlane.ops.drill.run import Drill, Pace
from postlane.ops.drill.scene import SCENARIOS, Scenario
from postlane.ops.drill.throwaway import ThrowawaySite, Wanted

# Importing them registers their scenarios.
_REGISTERED = (scenarios_providers, scenarios_processes, scenarios_tables, scenarios_publishers)


def scenarios() -> dict[str, Scenario]:
    """Every scenario, by name."""
    return dict(SCENARIOS)


def play_on_throwaway(
    wanted: Sequence[Scenario],
    folder: Path,
    pace: Pace,
    tell: Callable[[str], None],
    stopping: Callable[[], str | None],
    *,
    brokers: int | None = None,
    kafka: KafkaCluster | None = None,
    rules: Path | None = None,
    session_timeout_ms: int = 10_000,
    seed: int = 1,
) -> Iterator[Result]:
    """A result each, as they come. `brokers` overrides what the scenarios ask for; `kafka` is one that runs already.

    Raises LocalError when a stack does not come up.
    """
    rules = find_rules(rules)
    for count in sorted({brokers or s.brokers for s in wanted}):
        mine = [s for s in wanted if (brokers or s.brokers) == count]
        with _kafka(kafka, folder / f"kafka-{count}", count, tell) as cluster:
            for scenario in mine:
                why = stopping()
                if why:
                    yield Result(scenario.name, scenario.what, why=why)
                    continue
                site_wanted = Wanted(
                    scenario.senders,
                    scenario.routers,
                    "relay" in scenario.needs,
                    "auth" in scenario.needs,
                    session_timeout_ms,
                    rules,
                )
                tell(f"{scenario.name}: the stack comes up")
                with ThrowawaySite(cluster, folder / scenario.name, site_wanted) as site:
                    yield Drill(site, pace, _named(scenario, tell), stopping, seed=seed).play(scenario)


def _named(scenario: Scenario, tell: Callable[[str], None]) -> Callable[[str], None]:
    return lambda said: tell(f"{scenario.name}: {said}")


@contextlib.contextmanager
def _kafka(
    given: KafkaCluster | None, folder: Path, brokers: int, tell: Callable[[str], None]
) -> Iterator[KafkaCluster]:
    if given is not None:
        yield given
        return
    cluster = KafkaCluster(folder, brokers=brokers, port=0, tied=True)
    tell(f"Kafka with {brokers} broker{'s' if brokers > 1 else ''} comes up")
    try:
        cluster.start()
        yield cluster
    finally:
        for i in range(brokers):
            cluster.kill(i)  # its data is thrown away
