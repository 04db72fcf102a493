"""Running what `postlane dead-letters` and `postlane replay` ask for: connect, plan, ask, do, report."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import click

from postlane.cli.cluster import log_of, quiet
from postlane.cli.exits import REFUSED, Stop, confirm
from postlane.cli.output import answer, note
from postlane.config import ConfigurationError, Environment

if TYPE_CHECKING:
    from postlane.core.replay import Choices, Counts
    from postlane.ops.letter_orders import Resolution, Row, Story
    from postlane.ops.letters import Filters
    from postlane.ops.replay import Plan, What
    from postlane.ops.replay_requests import Manner

_SLOTS = 8
_TOLD_S = 0.1
Told = Callable[[str, int, int], None]


async def listing(
    environment: Environment, filters: Filters, status: str | None, limit: int | None, as_json: bool
) -> list[Row]:
    """The dead letters that are meant."""
    from postlane.core.replay import Status
    from postlane.ops.letter_orders import listed
    from postlane.ops.replay_reading import Reading

    wanted = None if status is None else Status(status)
    with shown() as told:
        async with log_of(environment) as log:
            reading = Reading(log, environment.names, told)
            return [row async for row in listed(reading, environment.names, filters, wanted, limit)]


async def story_of(environment: Environment, ident: str | tuple[int, int]) -> Story:
    """One dead letter's story."""
    from postlane.ops.letter_orders import story
    from postlane.ops.replay_reading import Reading

    async with log_of(environment) as log:
        return await story(Reading(log, environment.names), environment.names, ident)


async def resolve_run(
    environment: Environment, delivery: str, state: Literal["delivered", "bounced"], why: str
) -> Resolution:
    """Settle one uncertain delivery."""
    from postlane.ops.letter_orders import resolve
    from postlane.ops.replay import Writer
    from postlane.ops.replay_reading import Reading
    from postlane.ops.replay_requests import Manner, Scribe

    names = environment.names
    with transactional_id(environment) as ident:
        async with log_of(environment) as log:
            transactor = await log.transactor(ident)
            writer = Writer(log, names, transactor)
            scribe = Scribe(names, Manner(), secrets.token_hex(8), await log.partition_count(names.requests))
            reading = Reading(log, names)
            return await resolve(reading, names, writer, scribe, delivery, state, why, datetime.now(UTC))


def replay_run(
    environment: Environment,
    what: What,
    filters: Filters,
    choices: Choices,
    manner: Manner,
    *,
    dry_run: bool,
    rate: float | None,
    yes: bool,
    as_json: bool,
    named: bool,
) -> None:
    """Plan, say what would happen, ask, replay, say what happened."""
    asyncio_run(_replay(environment, what, filters, choices, manner, dry_run, rate, yes, as_json, named))


async def _replay(
    environment: Environment,
    what: What,
    filters: Filters,
    choices: Choices,
    manner: Manner,
    dry_run: bool,
    rate: float | None,
    yes: bool,
    as_json: bool,
    named: bool,
) -> None:
    from postlane.ops.replay import Pace, Runner, make_plan
    from postlane.ops.replay_reading import Reading
    from postlane.ops.replay_requests import Scribe

    names = environment.names
    began = time.monotonic()
    with ExitStack() as stack:
        ident = None if dry_run else stack.enter_context(transactional_id(environment))
        async with log_of(environment) as log:
            transactor = None if ident is None else await log.transactor(ident)
            with shown() as told:
                made = await make_plan(Reading(log, names, told), names, what, filters, choices, manner)
            if transactor is None or not made.total:
                _report(made, choices, 0, dry_run, as_json, time.monotonic() - began)
                _refuse_if_all_guarded(made.counts, named)
                return
            if not yes:
                note(_counts_text(made.counts, "would be replayed", "replay"))
                confirm(f"Replay {made.total} mails?", yes)
            scribe = Scribe(names, manner, secrets.token_hex(8), await log.partition_count(names.requests))
            with shown() as told:
                runner = Runner(log, names, transactor, scribe, Pace(rate, time.monotonic), told)
                written = await runner.run(made)
    _report(made, choices, written, dry_run, as_json, time.monotonic() - began)


def discard_run(
    environment: Environment,
    filters: Filters,
    limit: int | None,
    why: str,
    *,
    dry_run: bool,
    rate: float | None,
    yes: bool,
    as_json: bool,
    named: bool,
) -> None:
    """Plan, say what would happen, ask, discard, say what happened."""
    asyncio_run(_discard(environment, filters, limit, why, dry_run, rate, yes, as_json, named))


async def _discard(
    environment: Environment,
    filters: Filters,
    limit: int | None,
    why: str,
    dry_run: bool,
    rate: float | None,
    yes: bool,
    as_json: bool,
    named: bool,
) -> None:
    from postlane.ops.letter_orders import discard, plan_discard
    from postlane.ops.replay import Pace, Writer
    from postlane.ops.replay_reading import Reading
    from postlane.ops.replay_requests import Manner, Scribe

    names, manner = environment.names, Manner(reason=why)
    with ExitStack() as stack:
        ident = None if dry_run else stack.enter_context(transactional_id(environment))
        async with log_of(environment) as log:
            transactor = None if ident is None else await log.transactor(ident)
            reading = Reading(log, names)
            made = await plan_discard(reading, names, filters, limit)
            done = 0
            if transactor is not None and made.counts.total:
                if not yes:
                    note(_counts_text(made.counts, "would be discarded", "discard"))
                    confirm(f"Discard {made.counts.total} dead letters?", yes)
                scribe = Scribe(names, manner, secrets.token_hex(8), await log.partition_count(names.requests))
                writer, pace = Writer(log, names, transactor), Pace(rate, time.monotonic)
                done = await discard(reading, names, writer, scribe, made, manner, datetime.now(UTC), pace)
    document = {"dry_run": dry_run, "planned": made.counts.total, "discarded": done, **_summary(made.counts)}
    verb = "would be discarded" if dry_run else "discarded"
    answer(document, as_json, _counts_text(made.counts, verb, "discard"))
    if not made.counts.total:
        _refuse_if_all_guarded(made.counts, named)


def asyncio_run(work: Any) -> None:
    """Run the work of a command to its end."""
    quiet()
    asyncio.run(work)


@contextmanager
def transactional_id(environment: Environment) -> Iterator[str]:
    """An id of our own while the block runs, and if possible one that a killed run had: beginning it settles at once
    what that one left open, which every reader would otherwise wait for until it times out."""
    from postlane.instance_lock import instance_lock

    prefix = environment.topic_prefix
    for slot in range(_SLOTS):
        try:
            with ExitStack() as stack:
                stack.enter_context(instance_lock(environment.data_dir, "replay", f"{environment.instance_id}.{slot}"))
                kept = stack.pop_all()
        except ConfigurationError:
            continue
        with kept:
            yield f"{prefix}replay.{environment.instance_id}.{slot}"
        return
    yield f"{prefix}replay.{environment.instance_id}.{secrets.token_hex(8)}"


# -------------------------------------------------------------------------------------------------------- how it looks


def _summary(counts: Counts) -> dict[str, Any]:
    from postlane.ops.letter_orders import summary_of

    return summary_of(counts)


def _report(made: Plan, choices: Choices, written: int, dry_run: bool, as_json: bool, took_s: float) -> None:
    document = {
        "dry_run": dry_run,
        "planned": made.total,
        "replayed": written,
        **_summary(made.counts),
        "guarded_total": sum(made.counts.guarded.values()),
        "run": choices.run,
        "seconds": round(took_s, 3),
    }
    answer(document, as_json, _counts_text(made.counts, "would be replayed" if dry_run else "replayed", "replay"))


def _counts_text(counts: Counts, verb: str, order: str) -> str:
    said = _summary(counts)
    lines = [f"{counts.total} {verb}"]
    for title, name in (("reason", "by_reason"), ("lane", "by_lane"), ("domain", "by_domain")):
        lines += [f"  {title} {value}: {count}" for value, count in said[name].items()]
    guarded = said["guarded"]
    if guarded:
        lines.append(f"{sum(guarded.values())} guarded")
        lines += [f"  {guard}: {count}{_hint(guard, order)}" for guard, count in guarded.items()]
    return "\n".join(lines)


def _hint(guard: str, order: str) -> str:
    from postlane.core.replay import NAMED, Guard

    if order != "replay":
        return ""
    if guard == Guard.KEY_CONFLICT:
        return " (--new-key makes them mails of their own)"
    if guard == Guard.REPLAYED_BY_RUN:
        return " (once in each run; another --run NAME replays them again)"
    return f" (--include {guard})" if guard in NAMED else ""


def _refuse_if_all_guarded(counts: Counts, named: bool) -> None:
    """What was asked for by id and cannot be done is a refusal; filters that mean nothing new are not."""
    if named and not counts.total and counts.guarded:
        reasons = ", ".join(f"{count} {guard}" for guard, count in sorted(counts.guarded.items()))
        raise Stop(f"nothing of what was named may be done: {reasons}", REFUSED)
    if named and not counts.total:
        raise Stop("nothing of what was named is in the dead letters")


@contextmanager
def shown() -> Iterator[Told]:
    """A progress bar on stderr, for a person only."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    told_at = 0.0
    with bar:
        task = bar.add_task("reading", total=None)

        def told(what: str, done: int, total: int) -> None:
            nonlocal told_at
            if time.monotonic() - told_at >= _TOLD_S or done >= total:
                told_at = time.monotonic()
                bar.update(task, description=what, completed=done, total=total)

        yield told
    click.echo("", err=True, nl=False)
