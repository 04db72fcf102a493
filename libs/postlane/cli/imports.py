"""`postlane import`: a list of mails from a CSV or NDJSON file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from postlane.cli.cluster import quiet, settings
from postlane.cli.exits import FAILED, Stop
from postlane.cli.inputs import Moment
from postlane.cli.output import answer, json_option, note

if TYPE_CHECKING:
    from postlane.ops.import_files import Progress, Rejected
    from postlane.ops.importer import ImportOptions, Summary
    from postlane.ops.rows import Position, Row

_TOLD_S = 0.1


@click.command(name="import")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--from", "sender", metavar="ADDRESS", help="Who sends it (else the rows name their sender).")
@click.option("--template", metavar="ID", help="A template renders each row's data; ID@3 pins version 3.")
@click.option("--campaign", help="What they belong to; campaign and recipient are the key of a row.")
@click.option("--key-column", metavar="NAME", help="The column that holds each row's idempotency key.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Mails a second at most.")
@click.option("--lane", default=None, help="Which lane they take.  [default: bulk]")
@click.option("--tenant", default="default", show_default=True, help="Whose they are.")
@click.option("--at", "send_at", type=Moment(absolute=True), help="Not before this time (ISO 8601).")
@click.option("--expires", "expires_at", type=Moment(absolute=True), help="Not after this time (ISO 8601).")
@click.option("--format", "kind", type=click.Choice(["auto", "csv", "ndjson"]), default="auto", show_default=True)
@click.option("--delimiter", help="Between the columns of a CSV file.  [default: , ; or tab, by the first line]")
@click.option("--encoding", default="utf-8", show_default=True, help="Of the file.")
@click.option("--rejected", type=click.Path(dir_okay=False, path_type=Path), help="[default: FILE.rejected.ndjson]")
@json_option
def import_(file: Path, rate: float | None, as_json: bool, **given: Any) -> None:
    """Publish a list of mails, one a row of FILE (or - for the standard input).

    CSV: the column 'email' or 'to' is the recipient, and all columns are the template's data; without --template
    the columns 'subject', 'text' and 'html' are the content. NDJSON: a line is {"to": …, "data": {…}} or has the
    fields of a mail. A run that was interrupted goes on where it stopped when it is run again, and no row is sent
    twice. Rows that cannot be sent are kept with line and reason in FILE.rejected.ndjson.
    """
    from postlane.ops.importer import Import, Pace
    from postlane.publisher import Publisher

    environment, config = settings()
    options = _options(given, tuple(config.lanes))
    quiet()
    began = time.monotonic()
    with _opened(file) as stream, Publisher.from_environment(environment, source="postlane/import") as publisher:
        # Before anything is asked of Kafka, the file is looked at: its mistakes are the caller's.
        rejected, progress = _beside(file, given["rejected"], f"{options.digest()} {environment.topic_prefix}")
        resumed = progress.resume() if progress is not None else None
        rows, is_csv = _rows(stream, file, given, options, resumed.at if resumed else None)
        publisher.connect()
        rejected.begin(resumed.rejected_bytes if resumed else 0, resumed.rejected if resumed else 0)
        work = Import(options, publisher, rejected, progress, Pace(rate), is_csv)
        if resumed is not None:
            work.summary.before, work.summary.at = resumed.published, resumed.at
            note(f"postlane: going on after line {resumed.at.line}, where an earlier run stopped")
        try:
            with _shown(file, work.summary) as work.told:
                summary = work.run(rows)
        finally:
            rejected.close()
    _report(file, summary, rejected, time.monotonic() - began, as_json)


def _report(file: Path, summary: Summary, rejected: Rejected, took_s: float, as_json: bool) -> None:
    document = {
        "file": str(file),
        "published": summary.published,
        "published_before": summary.before,
        "rejected": rejected.count,
        "rejected_file": str(rejected.path) if rejected.count else None,
        "seconds": round(took_s, 3),
    }
    text = f"{summary.published} published" + (f" ({summary.before} by earlier runs)" if summary.before else "")
    if rejected.count:
        text += f", {rejected.count} rejected: see {rejected.path}"
    answer(document, as_json, text)
    if rejected.count and not (summary.published or summary.before):
        raise Stop("no row could be sent", FAILED)


def _options(given: dict[str, Any], lanes: tuple[str, ...]) -> ImportOptions:
    from postlane.cli.send import template_reference
    from postlane.mail import check_name
    from postlane.ops.importer import ImportOptions

    template = None
    if given["template"] is not None:
        reference = template_reference(given["template"], {})
        template = (reference["id"], reference.get("version"))
    lane = given["lane"] or ("bulk" if "bulk" in lanes else lanes[0])
    if lane not in lanes:
        raise click.UsageError(f"--lane: there is no lane {lane!a}; known: {', '.join(lanes)}")
    for name in ("campaign", "tenant"):
        if given[name] is not None:
            check_name(f"--{name}", given[name])
    _check_sender(given["sender"])
    return ImportOptions(
        sender=given["sender"],
        template=template,
        campaign=given["campaign"],
        key_column=given["key_column"],
        lane=lane,
        tenant=given["tenant"],
        send_at=given["send_at"],
        expires_at=given["expires_at"],
    )


def _check_sender(sender: str | None) -> None:
    from postlane.core.addresses import InvalidAddress, parse_mailbox

    try:
        if sender is not None:
            parse_mailbox(sender)
    except InvalidAddress as error:
        raise click.UsageError(f"--from: {error}") from None


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    with file.open("rb") as stream:
        yield stream


def _beside(file: Path, rejected: Path | None, options: str) -> tuple[Rejected, Progress | None]:
    from postlane.ops.import_files import Progress, Rejected

    if str(file) == "-":
        return Rejected(rejected or Path("stdin.rejected.ndjson")), None
    progress = Progress(file.with_name(file.name + ".progress.json"), file, options)
    return Rejected(rejected or file.with_name(file.name + ".rejected.ndjson")), progress


def _rows(
    stream: BinaryIO, file: Path, given: dict[str, Any], options: ImportOptions, start: Position | None
) -> tuple[Iterable[Row], bool]:
    from postlane.ops.importer import check_columns
    from postlane.ops.rows import CsvRows, Position, check_encoding, json_rows

    encoding = check_encoding(given["encoding"])
    kind = given["kind"]
    if kind == "auto":
        suffix = file.suffix.lower()
        if suffix not in (".csv", ".tsv", ".txt", ".ndjson", ".jsonl"):
            raise click.UsageError("--format csv or ndjson? The name of the file does not tell")
        kind = "ndjson" if suffix in (".ndjson", ".jsonl") else "csv"
    if kind == "ndjson":
        if start is not None:
            stream.seek(start.offset)
        return json_rows(stream, start or Position(), encoding), False
    delimiter = given["delimiter"]
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise click.UsageError("--delimiter: one character is expected")
    rows = CsvRows(stream, encoding, delimiter, start)
    check_columns(rows, options)
    return rows, True


@contextmanager
def _shown(file: Path, summary: Summary) -> Iterator[Callable[[Summary], None]]:
    """A progress bar on stderr, for a person only."""
    if not sys.stderr.isatty() or str(file) == "-":
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[published]} published, {task.fields[rejected]} rejected"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    told_at = 0.0
    with bar:
        task = bar.add_task(
            file.name, total=max(1, file.stat().st_size), completed=summary.at.offset, published=0, rejected=0
        )

        def told(now: Summary) -> None:
            nonlocal told_at
            if time.monotonic() - told_at >= _TOLD_S:
                told_at = time.monotonic()
                bar.update(task, completed=now.at.offset, published=now.published, rejected=now.rejected)

        yield told
        bar.update(task, completed=summary.at.offset, published=summary.published, rejected=summary.rejected)
