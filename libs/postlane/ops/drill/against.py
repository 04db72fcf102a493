"""Scenarios on a staging stack: the first one that is not passed ends the drill, and everything is undone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from postlane.eventlog.errors import LogError
from postlane.eventlog.kafka import KafkaLog
from postlane.ops.drill.result import Result
from postlane.ops.drill.run import Drill, Pace
from postlane.ops.drill.scene import Scenario
from postlane.ops.drill.staging import StagingSite
from postlane.ops.tables import cancel


def play_against(
    site: StagingSite,
    wanted: Sequence[Scenario],
    pace: Pace,
    tell: Callable[[str], None],
    stopping: Callable[[], str | None],
    seed: int = 1,
) -> Iterator[Result]:
    """A result each. Budgets are for all of them together."""
    drill = Drill(site, pace, tell, stopping, from_now=True, seed=seed)
    try:
        for scenario in wanted:
            result = drill.play(scenario)
            if result.verdict != "passed":
                tell(f"{scenario.name}: {result.verdict}; nothing more is injected")
                _call_off(site, drill.campaigns, tell)
                yield result
                return
            yield result
    finally:
        with contextlib.suppress(OSError):
            site.undo(tell)


def _call_off(site: StagingSite, campaigns: Sequence[str], tell: Callable[[str], None]) -> None:
    """Mails of this drill that are still on their way shall not arrive after it."""

    async def work() -> None:
        log = KafkaLog(site.bootstrap, site.options, "postlane-drill")
        try:
            for campaign in campaigns:
                await cancel(log, site.names, "campaign", campaign, "drill abandoned", datetime.now(UTC))
                tell(f"campaign {campaign} is called off")
        finally:
            await log.close()

    with contextlib.suppress(LogError):
        asyncio.run(work())
