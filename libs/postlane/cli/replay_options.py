"""The options that `dead-letters` and `replay` share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

import click
import orjson

from postlane.cli.inputs import Moment

if TYPE_CHECKING:
    from postlane.core.replay import Choices
    from postlane.ops.letters import Filters
    from postlane.ops.replay_requests import Manner

F = TypeVar("F", bound=Callable[..., Any])

_FILTERS = [
    click.option("--reason", help="Only of this reason (e.g. policy, uncertain, undecodable)."),
    click.option("--lane", help="Only of this lane."),
    click.option("--tenant", help="Only of this tenant."),
    click.option("--campaign", help="Only of this campaign."),
    click.option("--recipient-domain", "domain", metavar="DOMAIN", help="Only to this domain."),
    click.option("--provider", help="Only those that this provider had last."),
    click.option("--since", type=Moment(), help="Not before this time (ISO 8601, or -2h)."),
    click.option("--until", type=Moment(), help="Before this time."),
    click.option("--where", metavar="EXPR", help="A condition, e.g. \"attempts > 3 and domain = 'example.com'\"."),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many."),
]
_DOING = [
    click.option("--dry-run", is_flag=True, help="Say exactly what would happen, and do nothing."),
    click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="At most so many a second."),
    click.option("--yes", is_flag=True, help="Do not ask."),
    click.option("--note", "why", default="", metavar="TEXT", help="Why; kept in the events."),
]
_REPLAYING = [
    click.option(
        "--include",
        multiple=True,
        metavar="STATE",
        help="Mail these too: delivered, suppressed, uncertain, possibly_delivered, cancelled, discarded, bounced, "
        "undecodable. May be given several times, or as a list with commas.",
    ),
    click.option("--expires", "expires_at", type=Moment(), help="When the new mails expire.  [default: by policy]"),
    click.option("--newest-template", is_flag=True, help="Render with the newest version of their templates."),
    click.option(
        "--run",
        metavar="NAME",
        help="Name of this replay; what was included by name is replayed once in a run.  [default: from the filters]",
    ),
]


def filter_options(command: F) -> F:
    """The filters of the contract."""
    return _all(_FILTERS, command)


def doing_options(command: F) -> F:
    """--dry-run, --rate, --yes."""
    return _all(_DOING, command)


def replaying_options(command: F) -> F:
    """What a replay may be told by name."""
    return _all(_REPLAYING, command)


def _all(options: list[Any], command: F) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def filters_of(given: dict[str, Any], idents: tuple[str, ...] = ()) -> Filters:
    """Raises UsageError, InvalidExpression."""
    from postlane.core.addresses import InvalidAddress
    from postlane.core.where import parse
    from postlane.ops.letters import FIELDS, Filters, domain_filter

    letters, deliveries = identities(idents)
    try:
        domain = None if given["domain"] is None else domain_filter(given["domain"])
    except InvalidAddress as error:
        raise click.UsageError(f"--recipient-domain: {error}") from None
    if given["since"] and given["until"] and given["since"] >= given["until"]:
        raise click.UsageError("--since must lie before --until")
    return Filters(
        **{name: given[name] for name in ("reason", "lane", "tenant", "campaign", "provider", "since", "until")},
        domain=domain,
        where=None if given["where"] is None else parse(given["where"], FIELDS),
        letters=letters,
        deliveries=deliveries,
    )


def identities(idents: tuple[str, ...]) -> tuple[frozenset[tuple[int, int]], frozenset[str]]:
    """Ids of dead letters, and delivery ids. Raises UsageError."""
    found = [identity(ident) for ident in idents]
    return frozenset(i for i in found if isinstance(i, tuple)), frozenset(i for i in found if isinstance(i, str))


def identity(text: str) -> tuple[int, int] | str:
    """`<partition>-<offset>`, or a delivery id. Raises UsageError."""
    from postlane.core.identity import split_delivery_id
    from postlane.ops.letters import letter_id

    try:
        return letter_id(text)
    except ValueError as error:
        try:
            split_delivery_id(text)
        except ValueError:
            raise click.UsageError(str(error)) from None
        return text


def choices_of(given: dict[str, Any], idents: tuple[str, ...] = (), kind: str = "dead-letters") -> Choices:
    """What is asked for by name. A dead letter named by its id, or by its reason, is named. Raises UsageError."""
    from postlane.core.lifecycle import State
    from postlane.core.replay import NAMED, Choices, Guard

    include = set()
    for name in (part.strip() for text in given["include"] for part in text.split(",")):
        if name not in NAMED:
            never = name in frozenset(Guard)
            said = "is never mailed again" if never else f"is not one of {', '.join(sorted(NAMED))}"
            raise click.UsageError(f"--include: {name[:40]!a} {said}")
        include.add(Guard(name))
    by_reason = {"uncertain": Guard.UNCERTAIN, "undecodable": Guard.UNDECODABLE}
    if kind == "dead-letters":
        include |= {guard for reason, guard in by_reason.items() if given["reason"] == reason or idents}
    states = frozenset(State(state) for state in given.get("to_state", ()))
    return Choices(
        include=frozenset(include),
        run=given["run"] or _run_name([kind, *sorted(idents)], given),
        new_key=bool(given.get("new_key")),
        states=states,
        reason=given["reason"],
        provider=given["provider"],
        limit=given["limit"],
    )


def _run_name(said: list[Any], given: dict[str, Any]) -> str:
    """The same for two runs that ask for the same, however far they look back."""
    names = ("reason", "lane", "tenant", "campaign", "domain", "provider", "where", "include", "to_state", "new_key")
    asked = [*said, *(given.get(name) for name in names)]
    return "auto-" + blake2b(orjson.dumps(asked, default=str), digest_size=6).hexdigest()


def manner_of(given: dict[str, Any], run: str) -> Manner:
    """How the new mails are to be."""
    from postlane.ops.replay_requests import Manner

    return Manner(given["expires_at"], given["newest_template"], given["why"][:200], run)
