"""`postlane topics plan|apply`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from postlane.cli.cluster import log_of, run, settings
from postlane.cli.exits import FAILED, Stop
from postlane.cli.output import answer, answers, columns, json_option, note

if TYPE_CHECKING:
    from postlane.ops.topics import Declared, Difference


@click.group()
def topics() -> None:
    """Compare the topics with their declaration; make them so. Nothing is ever deleted."""


@topics.command()
@click.option("--check", is_flag=True, help="End with 1 when anything differs.")
@click.option("--acls", is_flag=True, help="Instead: who may do what, the least that each identity needs. Asks nobody.")
@json_option
def plan(check: bool, acls: bool, as_json: bool) -> None:
    """What differs from the declaration, one difference a line."""
    if acls:
        _show_acls(as_json)
        return
    want, found = run(_plan())
    if found and not as_json:
        click.echo(columns(_row(d) for d in found))
    else:
        answers(found, as_json, str, f"All {len(want.specs)} topics are as declared.")
    if check and found:
        raise Stop(f"{len(found)} differences", FAILED)


@topics.command()
@json_option
def apply(as_json: bool) -> None:
    """Create what is missing and alter what differs; what may not be changed is said and left, with exit code 1."""
    want, found, left = run(_apply())
    created = [d.topic for d in found if d.action == "create"]
    altered = [d for d in found if d.action == "alter"]
    document = {"topics": len(want.specs), "created": created, "altered": altered, "left": left}
    text = f"{len(want.specs)} topics: {len(created)} created, {len(altered)} options altered, {len(left)} left as is."
    answer(document, as_json, text)
    for difference in left:
        note(f"postlane: {_sentence(difference)}")
    refused = [d for d in left if d.action == "refuse"]
    if refused:
        raise Stop(f"{len(refused)} differences may not be changed (see above)", FAILED)


def _show_acls(as_json: bool) -> None:
    from postlane.ops.acls import acls

    environment, config = settings()
    found = acls(environment.names, tuple(config.lanes))
    if as_json:
        answers(found, as_json, str)
        return
    click.echo(columns((a.identity, a.resource, a.pattern, a.name, ",".join(a.operations), a.why) for a in found))


async def _plan() -> tuple[Declared, tuple[Difference, ...]]:
    from postlane.ops.topics import plan as plan_topics

    environment, config = settings()
    async with log_of(environment) as log:
        return await plan_topics(log.admin, environment.names, config)


async def _apply() -> tuple[Declared, tuple[Difference, ...], tuple[Difference, ...]]:
    from postlane.ops.topics import apply as apply_topics
    from postlane.ops.topics import plan as plan_topics

    environment, config = settings()
    async with log_of(environment) as log:
        want, found = await plan_topics(log.admin, environment.names, config)
        return want, found, await apply_topics(log.admin, want, found)


def _row(d: Difference) -> tuple[str, ...]:
    actual = "missing" if d.actual is None and d.setting == "topic" else (d.actual or "not set")
    return d.action, d.topic, d.setting, f"{actual} -> {d.declared}", d.why


def _sentence(d: Difference) -> str:
    return f"{d.topic}: {d.setting} is {d.actual}, declared {d.declared}: {d.why}"
