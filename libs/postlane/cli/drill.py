"""`postlane drill`: rehearse failures on a throwaway stack, or carefully on a staging stack."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from postlane.cli.cluster import quiet
from postlane.cli.exits import FAILED, REFUSED, Stop, confirm
from postlane.cli.output import answer, columns, json_option, note

if TYPE_CHECKING:
    from postlane.ops.drill.result import Result
    from postlane.ops.drill.run import Pace
    from postlane.ops.drill.scene import Scenario

_THROWAWAY = "a throwaway stack"
_SHORT = "A minute instead of ten: short faults, quick sessions."


@click.command()
@click.argument("names", nargs=-1, metavar="[SCENARIO]...")
@click.option("--list", "only_list", is_flag=True, help="What there is.")
@click.option("--brokers", type=click.Choice(["1", "3"]), help="Of the throwaway stack. [default: as a scenario needs]")
@click.option("--rate", type=click.FloatRange(min=0.1, max=500), help="Mails a second. [default: 20, or ENV's]")
@click.option("--hold", type=click.FloatRange(min=1, max=3600), help="Seconds that each fault lasts.")
@click.option("--short", is_flag=True, help=_SHORT)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--rules",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Alert rules for Prometheus. [default: observability/prometheus/rules.yml of the checkout]",
)
@click.option(
    "--report",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where drill.json, drill.md and drill.html go. [default: drills/TIME]",
)
@click.option("--keep", is_flag=True, help="Keep the throwaway stack's logs and data beside the report.")
@click.option(
    "--against",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="ENV",
    help="A staging stack, described by this file; it must say `drillable: true`.",
)
@click.option("--undo", is_flag=True, help="With --against: take back what a drill that was killed has left behind.")
@click.option("--yes", is_flag=True, help="With --against: do not ask.")
@json_option
def drill(
    names: tuple[str, ...],
    only_list: bool,
    brokers: str | None,
    rate: float | None,
    hold: float | None,
    short: bool,
    seed: int,
    rules: Path | None,
    report: Path | None,
    keep: bool,
    against: Path | None,
    undo: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Inject faults under load and say what came of every mail. Without SCENARIO: all of them, one after another."""
    from postlane.ops.drill.run import Pace
    from postlane.ops.drill.stage import scenarios

    quiet()
    known = scenarios()
    if only_list:
        _list(known, as_json)
        return
    wanted = [_known(known, name) for name in names] or list(known.values())
    if undo and against is None:
        raise click.UsageError("--undo goes with --against ENV")
    pace = Pace(hold_s=hold, per_s=rate or 20.0)
    if short:
        pace = Pace(hold_s=hold, per_s=rate or 20.0, before_s=1.0, after_s=1.0, hold_factor=0.4)
    folder = report or Path("drills") / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    with _stopping() as stopping:
        if against is not None:
            _against(wanted, bool(names), against, pace, rate, undo, yes, folder, stopping, seed, as_json)
            return
        session_ms = 6_000 if short else 10_000
        _throwaway(
            wanted, pace, int(brokers) if brokers else None, rules, folder, keep, stopping, seed, session_ms, as_json
        )


def _throwaway(
    wanted: list[Scenario],
    pace: Pace,
    brokers: int | None,
    rules: Path | None,
    folder: Path,
    keep: bool,
    stopping: Callable[[], str | None],
    seed: int,
    session_timeout_ms: int,
    as_json: bool,
) -> None:
    from postlane.ops.drill.stage import play_on_throwaway

    began = datetime.now(UTC)
    results: list[Result] = []
    with _work(folder / "stack" if keep else None) as work:
        for result in play_on_throwaway(
            wanted,
            work,
            pace,
            _teller(),
            stopping,
            brokers=brokers,
            rules=rules,
            session_timeout_ms=session_timeout_ms,
            seed=seed,
        ):
            results.append(result)
            note(f"{result.scenario}: {result.verdict}" + (f": {result.why}" if result.why else ""))
            _write(results, _THROWAWAY, began, pace, folder)  # a drill that is cut short has told what it knew
    _say(results, _THROWAWAY, began, pace, folder, as_json)
    _end(results)


@contextlib.contextmanager
def _work(kept: Path | None) -> Iterator[Path]:
    """Where the throwaway stack lives: a folder that goes with it, or one that is kept."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="postlane-drill-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def _against(
    wanted: list[Scenario],
    named: bool,
    env: Path,
    pace: Pace,
    rate: float | None,
    undo: bool,
    yes: bool,
    folder: Path,
    stopping: Callable[[], str | None],
    seed: int,
    as_json: bool,
) -> None:
    from dataclasses import replace

    from postlane.ops.drill.against import play_against
    from postlane.ops.drill.staging import StagingSite, read_staging

    described = read_staging(env)
    site = StagingSite(described, env.parent)
    if undo:
        done = site.undo(note)
        answer({"undone": done}, as_json, "\n".join(done) or "Nothing was left behind.")
        return
    site.check()
    possible = [s for s in wanted if s.why_not(site) is None]
    refused = [f"{s.name}: {s.why_not(site)}" for s in wanted if s not in possible]
    if named and refused:
        raise Stop("; ".join(refused), REFUSED)
    if not possible:
        raise Stop(f"{described.name} allows no scenario: mark its witness and services as drillable", REFUSED)
    budget = described.budget
    pace = replace(
        pace,
        per_s=rate or described.mails_per_s,
        seconds_max=budget.seconds,
        mails_max=budget.mails,
        affected_max=budget.affected,
    )
    for line in refused:
        note(f"not played: {line}")
    confirm(
        f"Inject {', '.join(s.name for s in possible)} into {described.name}, for at most {budget.seconds:g} s, "
        f"{budget.mails} mails of its own and {budget.affected} of others?",
        yes,
    )
    began = datetime.now(UTC)
    results = list(play_against(site, possible, pace, _teller(), stopping, seed))
    _say(results, described.name, began, pace, folder, as_json)
    _end(results)


def _list(known: dict[str, Scenario], as_json: bool) -> None:
    rows = [{"scenario": s.name, "what": s.what, "hold_s": s.hold_s, "needs": sorted(s.needs)} for s in known.values()]
    answer(rows, as_json, columns((s.name, f"{s.hold_s:g} s", s.what) for s in known.values()))


def _known(known: dict[str, Scenario], name: str) -> Scenario:
    from difflib import get_close_matches

    if name in known:
        return known[name]
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    raise click.UsageError(f"there is no scenario {name!a}; {hint}")


def _say(results: list[Result], site: str, began: datetime, pace: Pace, folder: Path, as_json: bool) -> None:
    from postlane.ops.drill.report import HEAD, row

    body, files = _write(results, site, began, pace, folder)
    answer(body, as_json, columns([HEAD, *(row(result) for result in results)]))
    note("report: " + " ".join(str(path) for path in files))


def _write(
    results: list[Result], site: str, began: datetime, pace: Pace, folder: Path
) -> tuple[dict[str, Any], list[Path]]:
    from postlane.ops.drill.report import document, write

    body = document(results, site, began, asdict(pace))
    return body, list(write(folder, body, results).values())


def _end(results: list[Result]) -> None:
    bad = [result.scenario for result in results if result.verdict != "passed"]
    if bad or not results:
        raise Stop(f"not passed: {', '.join(bad) or 'nothing was played'}", FAILED)


def _teller() -> Callable[[str], None]:
    began = time.monotonic()
    return lambda said: note(f"{time.monotonic() - began:7.1f} s  {said}")


@contextlib.contextmanager
def _stopping() -> Iterator[Callable[[], str | None]]:
    """Whether SIGINT or SIGTERM came; the second one changes nothing, what was done is undone all the same."""
    came: list[str] = []

    def remember(signum: int, frame: Any) -> None:
        if not came:
            os.write(2, b"postlane: undoing what was done ...\n")
        came.append(signal.Signals(signum).name)

    before = {signum: signal.signal(signum, remember) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: f"{came[0]} was received" if came else None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
