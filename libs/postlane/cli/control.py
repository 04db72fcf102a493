"""`postlane pause|resume|cancel`: orders that the router and the senders follow within moments."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import UUID

import click

from postlane.cli.cluster import settings
from postlane.cli.output import answer, json_option, note
from postlane.cli.tables import on_log

if TYPE_CHECKING:
    from postlane.ops.tables import Scope

F = TypeVar("F", bound=Callable[..., Any])


def _one_scope(command: F) -> F:
    for scope in ("provider", "campaign", "tenant", "lane"):
        command = click.option(f"--{scope}", metavar="NAME", help=f"This {scope}.")(command)
    return command


@click.command()
@_one_scope
@click.option("--reason", default="", help="Why; kept with the order.")
@json_option
def pause(reason: str, as_json: bool, **scopes: str | None) -> None:
    """Hold back a lane, tenant, campaign or provider; its mails wait in Kafka, and no attempt is spent."""
    from postlane.ops.tables import pause as pause_it

    scope, name = _scope(scopes)
    order = on_log(lambda log, names: pause_it(log, names, scope, name, reason, datetime.now(UTC)))
    answer(order, as_json, f"{scope} {name} is paused")


@click.command()
@_one_scope
@json_option
def resume(as_json: bool, **scopes: str | None) -> None:
    """Let a paused lane, tenant, campaign or provider go on."""
    from postlane.ops.tables import resume as resume_it

    scope, name = _scope(scopes)
    was_paused = on_log(lambda log, names: resume_it(log, names, scope, name))
    text = f"{scope} {name} goes on" if was_paused else f"{scope} {name} was not paused"
    answer({"action": "resume", "scope": scope, "name": name, "was_paused": was_paused}, as_json, text)


@click.command()
@click.argument("message_id", required=False)
@click.option("--campaign", metavar="NAME", help="Everything of this campaign that was requested until now.")
@click.option("--reason", default="", help="Why; kept with the order.")
@json_option
def cancel(message_id: str | None, campaign: str | None, reason: str, as_json: bool) -> None:
    """Call off a mail or a campaign: what has not begun its body by then is not sent."""
    from postlane.mail import check_name
    from postlane.ops.tables import cancel as cancel_it

    if (message_id is None) == (campaign is None):
        raise click.UsageError("give a MESSAGE_ID or --campaign NAME")
    now = datetime.now(UTC)
    if campaign is not None:
        name = check_name("--campaign", campaign)
        order = on_log(lambda log, names: cancel_it(log, names, "campaign", name, reason, now))
        answer(order, as_json, f"campaign {campaign} is cancelled for what was requested until {now.isoformat()}")
        return
    ident = _message_id(message_id or "")
    order = on_log(lambda log, names: cancel_it(log, names, "message", ident, reason, now))
    answer(order, as_json, f"{ident} is cancelled")


def _message_id(text: str) -> str:
    try:
        return str(UUID(text.split(".", 1)[0]))  # a delivery id begins with the message's
    except ValueError:
        raise click.UsageError(f"{text[:60]!a} is no message id (as `postlane send` prints it)") from None


def _scope(scopes: dict[str, str | None]) -> tuple[Scope, str]:
    from postlane.mail import check_name

    given = [(scope, name) for scope, name in scopes.items() if name is not None]
    if len(given) != 1:
        raise click.UsageError("give exactly one of --lane, --tenant, --campaign, --provider")
    scope, name = given[0]
    check_name(f"--{scope}", name)
    if scope in ("lane", "provider"):
        _check_known(scope, name)
    return cast("Scope", scope), name


def _check_known(scope: str, name: str) -> None:
    """An order for a lane that does not exist would hold back nothing without a word."""
    environment, config = settings()
    known = list(config.lanes if scope == "lane" else config.providers)
    if name in known:
        return
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!a}?" if near else f"known: {', '.join(known)}"
    if environment.config_file is not None:
        raise click.UsageError(f"--{scope}: {environment.config_file} has no {scope} {name!a}; {hint}")
    note(f"postlane: without a postlane.yaml here nobody knows whether there is a {scope} {name!a}; {hint}")
