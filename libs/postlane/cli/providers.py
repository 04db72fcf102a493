"""`postlane providers`: how the providers do, for the whole fleet."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import click

from postlane.cli.cluster import Settings, log_of, run, settings
from postlane.cli.output import answers, columns, json_option

HINT_S = 15.0  # how long a word is told as true where the senders are told not to listen
_HEAD = ("PROVIDER", "STATE", "DELIVERED", "BOUNCED", "DEFERRED", "BLOCKED", "FAILED", "P95", "SENDERS", "WHY")


@click.command()
@click.option("--domains", is_flag=True, help="Also each provider's recipient domains, those with the most results.")
@json_option
def providers(domains: bool, as_json: bool) -> None:
    """How the providers do, as the fleet's health service says; counts are of its window (30 s by default).

    `unknown`: nothing recent, too little to say, or the service has only just begun to watch.
    """
    told = run(_ask(settings()))
    if as_json:
        answers(told, True, str)
        return
    click.echo(columns([_HEAD, *(row for one in told for row in _rows(one, domains))]))


async def _ask(set_up: Settings) -> list[dict[str, Any]]:
    from postlane.ops.health import fleet_health

    environment, config = set_up
    async with log_of(environment) as log:
        believed_s = config.health.hint_s or HINT_S
        return await fleet_health(log, environment.names, config.providers, datetime.now(UTC), believed_s)


def _rows(told: dict[str, Any], domains: bool) -> Iterable[tuple[object, ...]]:
    senders = f"{told['senders']}, {told['senders_open']} shut" if told.get("senders") else "-"
    yield (told["provider"], *_figures(told), senders, told.get("reason", ""))
    if domains:
        for domain, figures in told.get("domains", {}).items():
            yield (f"  {domain}", *_figures(figures), "", figures.get("reason", ""))


def _figures(told: dict[str, Any]) -> tuple[object, ...]:
    if "delivered" not in told:
        return (told["state"], *"-----", "-")
    slow = told.get("answer_p95_s")
    return (
        told["state"],
        told["delivered"],
        told["bounced"],
        told["deferred"] + told["throttled"],
        told["blocked"],
        told["failed"] + told["unreached"],
        "-" if slow is None else f"{slow:g} s",
    )
