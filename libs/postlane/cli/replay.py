"""`postlane dead-letters list|show|replay|discard|resolve` and `postlane replay`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from postlane.cli.cluster import run, settings
from postlane.cli.output import answer, columns, document, json_option
from postlane.cli.replay_options import (
    choices_of,
    doing_options,
    filter_options,
    filters_of,
    identity,
    manner_of,
    replaying_options,
)
from postlane.cli.replay_run import discard_run, listing, replay_run, resolve_run, story_of
from postlane.core.lifecycle import State

if TYPE_CHECKING:
    from postlane.ops.letter_orders import Row, Story

_STATES = [state.value for state in State]


@click.group()
def dead_letters() -> None:
    """Look at what was given up; replay, discard or resolve it.

    A dead letter has an id, <partition>-<offset>. Replaying mails its delivery again as a new generation; one that was
    delivered or suppressed meanwhile is guarded unless it is included by name, one that is still on its way always.
    """


@dead_letters.command(name="list")
@filter_options
@click.option("--status", type=click.Choice(["open", "replayed", "discarded", "resolved"]), help="Only of this status.")
@json_option
def list_letters(status: str | None, as_json: bool, **given: Any) -> None:
    """What is in the dead letters, by partition and offset."""
    rows = run(listing(settings().environment, filters_of(given), status, given["limit"], as_json))
    if as_json:
        for row in rows:
            click.echo(document(_row_document(row)))
        return
    if not rows:
        click.echo("No dead letters." if status is None else f"No dead letters that are {status}.", err=True)
        return
    head = ("ID", "AT", "STATUS", "REASON", "LANE", "RECIPIENT", "ATTEMPTS", "PROVIDER", "REPLY")
    click.echo(columns([head, *(_row_cells(row) for row in rows)]))


@dead_letters.command()
@click.argument("ident", metavar="ID|DELIVERY_ID")
@json_option
def show(ident: str, as_json: bool) -> None:
    """One dead letter: why it is there, what it holds, what happened before and after."""
    found = run(story_of(settings().environment, identity(ident)))
    answer(_story_document(found), as_json, _story_text(found))


@dead_letters.command(name="replay")
@click.argument("idents", nargs=-1, metavar="[ID|DELIVERY_ID]...")
@filter_options
@doing_options
@replaying_options
@click.option("--new-key", is_flag=True, help="Mail what was refused for its key (key_conflict) as mails of their own.")
@json_option
def replay_letters(
    idents: tuple[str, ...], dry_run: bool, rate: float | None, yes: bool, as_json: bool, **given: Any
) -> None:
    """Mail dead letters again, those that are named or that the filters mean, each as a new generation.

    Whatever is uncertain or undecodable must be named: by its id, --reason or --include. Run it again after an
    interruption: nothing is sent twice.
    """
    choices = choices_of(given, idents)
    replay_run(
        settings().environment,
        "dead letters",
        filters_of(given, idents),
        choices,
        manner_of(given, choices.run),
        dry_run=dry_run,
        rate=rate,
        yes=yes,
        as_json=as_json,
        named=bool(idents),
    )


@dead_letters.command()
@click.argument("idents", nargs=-1, metavar="[ID|DELIVERY_ID]...")
@filter_options
@doing_options
@json_option
def discard(idents: tuple[str, ...], dry_run: bool, rate: float | None, yes: bool, as_json: bool, **given: Any) -> None:
    """Write down that dead letters, those that are named or that the filters mean, will not be replayed."""
    discard_run(
        settings().environment,
        filters_of(given, idents),
        given["limit"],
        given["why"][:200],
        dry_run=dry_run,
        rate=rate,
        yes=yes,
        as_json=as_json,
        named=bool(idents),
    )


@dead_letters.command()
@click.argument("delivery_id")
@click.option("--as", "state", type=click.Choice(["delivered", "bounced"]), required=True, help="What became of it.")
@click.option("--note", "why", default="", metavar="TEXT", help="How you know; kept in the event.")
@json_option
def resolve(delivery_id: str, state: Literal["delivered", "bounced"], why: str, as_json: bool) -> None:
    """Settle an uncertain delivery by what you found out."""
    if not isinstance(identity(delivery_id), str):
        raise click.UsageError("give the delivery id, as `postlane dead-letters show` says it")
    done = run(resolve_run(settings().environment, delivery_id, state, why[:200]))
    answer(done, as_json, f"{delivery_id} is {state}" + ("" if done.changed else " (it was on record already)"))


@click.command()
@filter_options
@click.option("--to-state", multiple=True, type=click.Choice(_STATES), help="Only those whose latest state is this.")
@doing_options
@replaying_options
@json_option
def replay(dry_run: bool, rate: float | None, yes: bool, as_json: bool, **given: Any) -> None:
    """Mail a window of requests again, each delivery as a new generation, with the guards of `dead-letters replay`.

    The window is over the times of the requests. --to-state expired replays what has expired, and so on.
    """
    if given["since"] is None and given["until"] is None:
        raise click.UsageError("which window? give --since, --until or both")
    choices = choices_of(given, kind="replay")
    replay_run(
        settings().environment,
        "requests",
        filters_of(given),
        choices,
        manner_of(given, choices.run),
        dry_run=dry_run,
        rate=rate,
        yes=yes,
        as_json=as_json,
        named=False,
    )


# -------------------------------------------------------------------------------------------------------- how it looks


def _row_document(row: Row) -> dict[str, Any]:
    return {**row.letter.fields(), "source": row.letter.source, "status": row.status.value}


def _row_cells(row: Row) -> tuple[object, ...]:
    said = row.letter.fields()
    names = ("reason", "lane", "recipient", "attempts", "provider")
    more = said.get("message")
    reply = said.get("reply") or (more if more != said.get("reason") else None) or "-"
    return said["id"], said["at"], row.status.value, *(said.get(name, "-") for name in names), reply[:60]


def _story_document(found: Story) -> dict[str, Any]:
    letter = found.letter
    assert letter is not None
    record, content = letter.record, letter.mail or letter.request
    told: dict[str, Any] = {**letter.fields(), "source": letter.source, "status": found.status.value}
    if letter.origin is not None:
        told |= {
            "original": {
                "topic": letter.origin.topic,
                "partition": letter.origin.partition,
                "offset": letter.origin.offset,
                "timestamp_ms": letter.origin.timestamp_ms,
                "consumer_group": letter.origin.group,
            },
            "omitted_bytes": letter.origin.omitted_bytes,
        }
    told["headers"] = {
        name: (value or b"").decode("utf-8", "backslashreplace")
        for name, value in record.headers
        if not name.startswith("kafka_dlt-original-")
    }
    told["key"] = None if record.key is None else record.key.decode("utf-8", "backslashreplace")
    told["bytes"] = len(record.value or b"")
    told["mail"] = content
    if content is None:
        told["value"] = (record.value or b"")[:4096].decode("utf-8", "backslashreplace")
    told["events"] = list(found.events)
    return told


def _story_text(found: Story) -> str:
    told = _story_document(found)
    lines = [f"{name}: {told[name]}" for name in told if not isinstance(told[name], dict | list) and name != "mail"]
    lines += [f"original {name}: {value}" for name, value in told.get("original", {}).items()]
    lines += [f"header {name}: {value}" for name, value in told["headers"].items()]
    if told["mail"] is not None:
        mail = told["mail"]
        content = getattr(mail, "content", mail)
        lines += [f"--- {name}\n{body}" for name in ("text", "html") if (body := getattr(content, name)) is not None]
    lines.append("--- events")
    lines += [_event_line(event) for event in found.events]
    return "\n".join(lines)


def _event_line(event: Any) -> str:
    said = event.model_dump(mode="json", exclude_none=True, exclude={"message_id", "delivery_id", "recipient", "type"})
    at, generation = said.pop("at"), said.pop("generation", "-")
    rest = ", ".join(f"{name} {value}" for name, value in said.items() if value not in ("", False))
    return f"{at}  generation {generation}  {event.type}  {rest}"
