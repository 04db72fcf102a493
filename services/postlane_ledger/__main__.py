"""`python -m postlane_ledger`: the ledger process; `python -m postlane_ledger rebuild`: fold the whole log again."""

from __future__ import annotations

import asyncio
import dataclasses
import sys

import click
import orjson

from postlane.clock import SystemClock
from postlane.config import ConfigurationError, Environment, read_environment
from postlane.eventlog.errors import LogError, Retriable
from postlane.ops.books_database import DatabaseRefused, DatabaseUnavailable, open_database
from postlane.service import PORTS, run
from postlane.telemetry import logs
from postlane_ledger.bootstrap import build, cluster_of, collect_garbage_seldom
from postlane_ledger.rebuild import Progress, Rebuilt, WouldForget, rebuild

FAILED, USED_WRONGLY, UNREACHABLE, REFUSED = 1, 2, 3, 4


@click.group(invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """Without a command: run the ledger until SIGTERM."""
    if context.invoked_subcommand is None:
        sys.exit(run("ledger", PORTS["ledger"], build))


@main.command("rebuild")
@click.option("--yes", is_flag=True, help="Also when the log no longer has everything that the ledger knows.")
@click.option("--fresh", is_flag=True, help="Do not take up a rebuild that was interrupted.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def rebuild_command(yes: bool, fresh: bool, as_json: bool) -> None:
    """Fold the whole of mail.events again and swap the new tables in; a running ledger goes on by itself."""
    code, sentence = USED_WRONGLY, ""
    try:
        environment = read_environment()
        logs.configure("ledger", environment.instance_id, "WARNING")
        result = asyncio.run(_rebuild(environment, yes, fresh))
        _say(result, as_json)
        return
    except ConfigurationError as error:
        sentence = str(error)
    except WouldForget as error:
        code, sentence = REFUSED, f"{error}; repeat with --yes if that is wanted"
    except (Retriable, DatabaseUnavailable) as error:
        code, sentence = UNREACHABLE, f"{error}; run it again, it goes on where it was"
    except (LogError, DatabaseRefused) as error:
        code, sentence = FAILED, str(error)
    click.echo(f"postlane ledger rebuild: {sentence}", err=True)
    sys.exit(code)


async def _rebuild(environment: Environment, yes: bool, fresh: bool) -> Rebuilt:
    collect_garbage_seldom()
    engine = open_database(environment.database_url)
    cluster = cluster_of(environment)
    try:
        return await rebuild(
            cluster,
            engine,
            environment.names.events,
            SystemClock(),
            forget=yes,
            fresh=fresh,
            progress=_progress(sys.stderr.isatty()),
        )
    finally:
        await cluster.close()
        engine.dispose()


def _progress(terminal: bool) -> Progress:
    def show(done: int, known: int) -> None:
        if terminal:
            click.echo(f"\r{done:,} of {known:,} events", err=True, nl=done >= known)

    return show


def _say(result: Rebuilt, as_json: bool) -> None:
    if as_json:
        body = dataclasses.asdict(result) | {"next_offsets": {str(p): o for p, o in result.next_offsets.items()}}
        click.echo(orjson.dumps(body).decode())
    else:
        click.echo(
            f"rebuilt: {result.messages:,} mails, {result.deliveries:,} deliveries, {result.events:,} events"
            + (f", {result.unreadable:,} unreadable records" if result.unreadable else "")
        )


if __name__ == "__main__":
    main(prog_name="python -m postlane_ledger")
