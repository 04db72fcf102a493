"""`postlane suppress …` and `postlane template …`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

from postlane.cli.cluster import log_of, run, settings
from postlane.cli.exits import FAILED, Stop
from postlane.cli.inputs import TextOrFile
from postlane.cli.output import answer, answers, columns, json_option, note

if TYPE_CHECKING:
    from postlane.core.events import Suppression
    from postlane.eventlog.kafka import KafkaLog
    from postlane.eventlog.topics import TopicNames
    from postlane.ops.rows import Row

T = TypeVar("T")
_HEADER = b"email\n"
_tenant = click.option("--tenant", default="default", show_default=True, help="Whose list; '*': every tenant's.")
_reason = click.option("--reason", default="manual", show_default=True, help="Why; kept with the address.")


def on_log(work: Callable[[KafkaLog, TopicNames], Awaitable[T]]) -> T:
    """Run `work` with the cluster and the names of its topics."""

    async def connected() -> T:
        environment = settings().environment
        async with log_of(environment) as log:
            return await work(log, environment.names)

    return run(connected())


# ------------------------------------------------------------------------------------------------------ suppressions


@click.group()
def suppress() -> None:
    """The addresses that are never mailed."""


@suppress.command()
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
@_tenant
@_reason
@json_option
def add(addresses: tuple[str, ...], tenant: str, reason: str, as_json: bool) -> None:
    """Never mail these."""
    from postlane.core.events import Suppression
    from postlane.ops.tables import add_suppressions

    now = datetime.now(UTC)
    kept = _addresses(addresses)
    entries = [Suppression(tenant=_owner(tenant), address=address, reason=reason, at=now) for address in kept]
    count = on_log(lambda log, names: add_suppressions(log, names, entries))
    answer({"added": count, "tenant": tenant, "addresses": kept}, as_json, f"{count} suppressed for {tenant}")


@suppress.command()
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
@_tenant
@json_option
def remove(addresses: tuple[str, ...], tenant: str, as_json: bool) -> None:
    """Mail these again."""
    from postlane.ops.tables import remove_suppressions

    kept = _addresses(addresses)
    count = on_log(lambda log, names: remove_suppressions(log, names, _owner(tenant), kept))
    answer({"removed": count, "tenant": tenant, "addresses": kept}, as_json, f"{count} lifted for {tenant}")


@suppress.command(name="list")
@click.option("--tenant", help="Only this tenant's.")
@json_option
def list_suppressions(tenant: str | None, as_json: bool) -> None:
    """Who is suppressed, one a line."""
    from postlane.ops.tables import suppressions

    found = on_log(lambda log, names: suppressions(log, names, tenant))
    answers(found, as_json, lambda s: f"{s.tenant}\t{s.address}\t{s.reason}\t{s.at.isoformat()}", "Nobody.")


@suppress.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_tenant
@_reason
@json_option
def import_suppressions(file: Path, tenant: str, reason: str, as_json: bool) -> None:
    """Suppress a list: an address a line, or a CSV with a column 'email' or 'address' and perhaps 'reason'.

    Lines that are no address are kept with the reason in FILE.rejected.ndjson.
    """
    from postlane.ops.import_files import Rejected
    from postlane.ops.tables import add_suppressions

    rejected = Rejected(file.with_name(file.name + ".rejected.ndjson"))
    rejected.begin(0, 0)
    with file.open("rb") as stream:
        entries = _entries(stream, _owner(tenant), reason, datetime.now(UTC), rejected.keep)
        count = on_log(lambda log, names: add_suppressions(log, names, entries))
    rejected.close()
    place = str(rejected.path) if rejected.count else None
    text = f"{count} suppressed" + (f", {rejected.count} rejected: see {place}" if place else "")
    answer({"added": count, "rejected": rejected.count, "rejected_file": place}, as_json, text)
    if rejected.count and not count:
        raise Stop("no line was an address", FAILED)


def _entries(
    stream: BinaryIO, tenant: str, reason: str, now: datetime, refuse: Callable[[Row, str], None]
) -> Iterator[Suppression]:
    from postlane.core.addresses import InvalidAddress
    from postlane.core.events import Suppression
    from postlane.ops.tables import suppression_address

    for row, address, why in _listed(stream, reason):
        try:
            if row.problem is not None:
                refuse(row, row.problem)
            else:
                yield Suppression(tenant=tenant, address=suppression_address(address), reason=why, at=now)
        except InvalidAddress as error:
            refuse(row, str(error))


def _listed(stream: BinaryIO, reason: str) -> Iterator[tuple[Row, str, str]]:
    """(row, address, reason) of a CSV with a header, or of a plain list, whose first line is an address already."""
    from postlane.ops.rows import CsvRows, ImportRefused

    rows = CsvRows(stream)
    by_name = {name.lower(): name for name in rows.columns}
    column = next((by_name[name] for name in ("email", "address", "to", "e-mail") if name in by_name), None)
    if column is None:
        if len(rows.columns) != 1 or "@" not in rows.columns[0]:
            raise ImportRefused("no column 'email' or 'address', and the first line is no address either")
        stream.seek(0)
        rows = CsvRows(_Headed(stream))  # type: ignore[arg-type]  # reads lines, which is all that is asked of it
        column = "email"
    lines, octets = (0, 0) if column in by_name.values() else (1, len(_HEADER))
    for found in rows:
        row = replace(found, line=found.line - lines, offset=found.offset - octets, end=found.end - octets)
        values: dict[str, Any] = row.values or {}
        own = str(values.get(by_name.get("reason", "reason"), "")).strip()
        yield row, str(values.get(column, "")).strip(), own or reason


class _Headed:
    """A plain list, read as if a header stood before it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._first = True

    def readline(self, limit: int) -> bytes:
        if self._first:
            self._first = False
            return _HEADER
        return self._stream.readline(limit)


def _addresses(given: tuple[str, ...]) -> list[str]:
    from postlane.core.addresses import InvalidAddress
    from postlane.ops.tables import suppression_address

    try:
        return [suppression_address(address) for address in given]
    except InvalidAddress as error:
        raise click.UsageError(str(error)) from None


def _owner(tenant: str) -> str:
    from postlane.core.events import EVERY_TENANT
    from postlane.mail import check_name

    return tenant if tenant == EVERY_TENANT else check_name("--tenant", tenant)


# ---------------------------------------------------------------------------------------------------------- templates


@click.group()
def template() -> None:
    """The templates that mails are rendered from; versions count up and are never changed."""


@template.command()
@click.argument("ident", metavar="ID")
@click.option("--subject", required=True, help="The subject, a template itself.")
@click.option("--text", type=TextOrFile(), help="The plain text; derived from the HTML when absent.")
@click.option("--html", type=TextOrFile(), help="The HTML; what is put in is escaped.")
@json_option
def put(ident: str, subject: str, text: str | None, html: str | None, as_json: bool) -> None:
    """Write the next version of template ID; the same content again changes nothing."""
    from postlane.core.events import Template
    from postlane.mail import check_name
    from postlane.mime.templates import compile_check
    from postlane.ops.tables import put_template

    now = datetime.now(UTC)
    check_name("ID", ident)
    asks_for = compile_check(Template(id=ident, version=1, subject=subject, text=text, html=html, at=now))
    done = on_log(lambda log, names: put_template(log, names, ident, subject, text, html, now))
    version = done.template.version
    document = {"id": ident, "version": version, "created": done.created, "data": sorted(asks_for)}
    answer(document, as_json, f"{ident} version {version}" + ("" if done.created else " (unchanged)"))
    if asks_for and not as_json:
        note(f"it asks for: {', '.join(sorted(asks_for))}")


@template.command()
@click.argument("ident", metavar="ID")
@click.option("--version", type=click.IntRange(min=1), help="[default: the newest]")
@json_option
def get(ident: str, version: int | None, as_json: bool) -> None:
    """Show one version of a template."""
    from postlane.ops.tables import get_template

    found = on_log(lambda log, names: get_template(log, names, ident, version))
    parts = [f"id: {found.id}", f"version: {found.version}", f"subject: {found.subject}"]
    parts += [f"--- {name}\n{body}" for name, body in (("text", found.text), ("html", found.html)) if body is not None]
    answer(found, as_json, "\n".join(parts))


@template.command(name="list")
@click.option("--all", "every", is_flag=True, help="Every version, not the newest only.")
@json_option
def list_templates(every: bool, as_json: bool) -> None:
    """The templates, one a line."""
    from postlane.ops.tables import templates

    found = on_log(templates)
    shown = found if every else list({t.id: t for t in found}.values())
    rows = [{"id": t.id, "version": t.version, "subject": t.subject, "at": t.at} for t in shown]
    if as_json:
        answers(rows, True, str)
    else:
        click.echo(columns(row.values() for row in rows) or "No templates yet.", err=not rows)
