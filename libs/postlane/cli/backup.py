"""`postlane backup`, `postlane verify`, `postlane restore`."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from postlane.cli.cluster import log_of, run, settings
from postlane.cli.exits import FAILED, Stop, confirm
from postlane.cli.inputs import Moment
from postlane.cli.output import answer, columns, json_option, note

if TYPE_CHECKING:
    from postlane.ops.backup.archive import Archive
    from postlane.ops.backup.manifest import Manifest
    from postlane.ops.backup.restore import Plan

F = TypeVar("F", bound=Callable[..., Any])
_TOLD_S = 0.5
_place = click.argument("place", metavar="DIR|s3://BUCKET/PREFIX")


def _key_option(command: F) -> F:
    return click.option(
        "--key-file",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="POSTLANE_BACKUP_KEY_FILE",
        help="32 bytes, raw or as base64 or hex: encrypts and authenticates. [POSTLANE_BACKUP_KEY_FILE]",
    )(command)


# --------------------------------------------------------------------------------------------------------------- backup


@click.command()
@_place
@_key_option
@click.option("--full", is_flag=True, help="Everything, not only what is new since the last backup.")
@click.option(
    "--positions-lost",
    is_flag=True,
    help="Consumer offsets were lost or reset: go by the books alone. Routers and senders must be stopped.",
)
@click.option("--full-every-days", type=click.FloatRange(min=0), default=7, show_default=True)
@click.option(
    "--window-days",
    type=click.FloatRange(min=0),
    default=30,
    show_default=True,
    help="Of requests, events and dead letters, in a full backup.",
)
@click.option("--keep-days", type=click.FloatRange(min=0), help="Forget what no restore to a later time needs.")
@click.option(
    "--textfile",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Say when it succeeded, for the textfile collector of node_exporter.",
)
@json_option
def backup(
    place: str,
    key_file: Path | None,
    full: bool,
    positions_lost: bool,
    full_every_days: float,
    window_days: float,
    keep_days: float | None,
    textfile: Path | None,
    as_json: bool,
) -> None:
    """Copy what cannot be made again, while everything runs; incremental where it can be."""
    from postlane.ops.backup.take import Wishes, check_wishes
    from postlane.ops.backup.textfile import text_of, write_textfile

    keep = None if keep_days is None else timedelta(days=keep_days)
    wishes = Wishes(full, timedelta(days=full_every_days), timedelta(days=window_days), keep, positions_lost)
    check_wishes(wishes)
    began = time.monotonic()
    taken = run(_backup(place, key_file, wishes))
    took_s = time.monotonic() - began
    manifest = taken.manifest
    if textfile is not None:
        write_textfile(textfile, text_of(manifest, taken.stored_bytes, took_s))
    document = {
        "backup": manifest.ident,
        "point": manifest.point,
        "full": manifest.full,
        "records": manifest.records,
        "stored_bytes": taken.stored_bytes,
        "took_s": round(took_s, 3),
        "seal": manifest.seal,
        "encrypted": manifest.key_id is not None,
        "forgotten": taken.forgotten,
        "warnings": list(manifest.warnings),
    }
    kind = "full" if manifest.full else "incremental"
    text = (
        f"backup {manifest.ident} ({kind}) of {manifest.point.isoformat(timespec='seconds')}: {manifest.records} "
        f"records, {taken.stored_bytes} bytes in {took_s:.1f} s; seal {manifest.seal}"
    )
    answer(document, as_json, text)
    for warning in manifest.warnings:
        note(f"postlane: {warning}")
    if taken.forgotten:
        note(f"postlane: forgotten: {', '.join(taken.forgotten)}")


async def _backup(place: str, key_file: Path | None, wishes: Any) -> Any:
    from importlib.metadata import version

    from postlane.ops.backup.encrypt import vault_of
    from postlane.ops.backup.store import open_store
    from postlane.ops.backup.take import Taker

    environment, config = settings()
    store, vault = open_store(place), vault_of(key_file)
    with _told() as told:
        async with log_of(environment) as log:
            taker = Taker(
                log,
                log.admin,
                environment.names,
                config,
                (await log.admin.cluster()).cluster_id,
                version("postlane"),
                store,
                vault,
                secrets.token_hex(4),
                lambda: datetime.now(UTC),
                told,
            )
            return await taker.take(wishes, _ledger_positions(environment.database_url, environment.names.events))


def _ledger_positions(url: str, topic: str) -> dict[int, int]:
    """For the record; a ledger that is not there or does not answer keeps no backup from being made."""
    try:
        from postlane.ops.books import offsets

        return offsets(url, topic)
    except Exception as error:  # whatever it is: another program's database
        note(f"postlane: the ledger's position is not in this backup ({type(error).__name__})")
        return {}


# --------------------------------------------------------------------------------------------------------------- verify


@click.command()
@_place
@_key_option
@click.option("--to", type=Moment(), help="The newest backup not after this time. [default: the newest]")
@click.option("--deep", is_flag=True, help="Restore it into a throwaway Kafka too, and compare by count and digest.")
@json_option
def verify(place: str, key_file: Path | None, to: datetime | None, deep: bool, as_json: bool) -> None:
    """Check every chunk of a backup and of those that it rests on."""
    catalogue, archive = _archive(place, key_file, to)
    newest: Manifest = archive.newest
    checked = archive.check(_bytes_told())
    document: dict[str, Any] = {
        "backup": newest.ident,
        "point": newest.point,
        "rests_on": [m.ident for m in archive.chain[:-1]],
        "chunks": checked.chunks,
        "records": checked.records,
        "stored_bytes": checked.stored_bytes,
        "by_topic": checked.by_topic,
        "unfinished": catalogue.unfinished,
        "ledger_position": newest.positions.ledger,
    }
    text = (
        f"backup {newest.ident} of {newest.point.isoformat(timespec='seconds')} is whole: {checked.chunks} chunks, "
        f"{checked.records} records"
    )
    if deep:
        compared = run(_deep(archive))
        document |= {"scratch_partitions": compared.partitions, "scratch_records": compared.records}
        document["differences"] = compared.differences
        text += f"; restored into a throwaway Kafka: {compared.partitions} partitions, {compared.records} records equal"
        if compared.differences:
            answer(document, as_json, "\n".join(compared.differences))
            raise Stop(f"{len(compared.differences)} partitions differ after a restore", FAILED)
    answer(document, as_json, text)
    for folder in catalogue.unfinished:
        note(f"postlane: {folder} belongs to no finished backup; the next backup clears it away")


async def _deep(archive: Archive) -> Any:
    import tempfile

    from postlane.core.policy import Config, Lane, Topics
    from postlane.eventlog.kafka import KafkaLog
    from postlane.eventlog.topics import TopicNames
    from postlane.local.kafka import KafkaCluster
    from postlane.ops.backup.pending import Manner
    from postlane.ops.backup.restore import Restorer
    from postlane.ops.backup.scratch import compare

    # Nothing of what is compared may be compacted or forgotten meanwhile.
    quiet = {"log.cleaner.enable": "false", "log.retention.check.interval.ms": "86400000"}
    partitions = archive.topics["mail.requests"]
    lanes = {name: Lane(providers=("local",)) for name in archive.newest.lanes}
    config = Config(lanes=lanes, topics=Topics(partitions=partitions))
    with tempfile.TemporaryDirectory(prefix="postlane-verify-") as folder:
        cluster = KafkaCluster(Path(folder), 1, 0, settings=quiet, tied=True)
        cluster.start()
        try:
            log = KafkaLog(cluster.bootstrap_servers, client_id="postlane-verify")
            try:
                names = TopicNames(archive.newest.prefix)
                with _told() as told:
                    restorer = Restorer(log, log.admin, names, config, archive, told)
                    made = await restorer.look(list(archive.topics), Manner.UNCERTAIN, datetime.now(UTC))
                    await restorer.run(made)
                return await compare(log, names, archive, made, config.topics.dispatch_days)
            finally:
                await log.close()
        finally:
            cluster.stop()


# -------------------------------------------------------------------------------------------------------------- restore


@click.command()
@_place
@_key_option
@click.option("--to", type=Moment(), help="The newest backup not after this time. [default: the newest]")
@click.option(
    "--pending",
    type=click.Choice(["uncertain", "fresh"]),
    default="uncertain",
    show_default=True,
    help="What was on its way: may it have been sent after the backup (uncertain: the lane's in_doubt policy decides), "
    "or certainly not, because the senders were stopped before it (fresh)?",
)
@click.option("--topic", "topics", multiple=True, help="Only this topic (without prefix); repeatable.")
@click.option("--from-prefix", help="The backup is of an installation with this POSTLANE_TOPIC_PREFIX.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def restore(
    place: str,
    key_file: Path | None,
    to: datetime | None,
    pending: str,
    topics: tuple[str, ...],
    from_prefix: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Put a backup into empty topics. Mails nothing: every lane is paused first, until `postlane resume`."""
    _, archive = _archive(place, key_file, to)
    made, result = run(_restore(archive, pending, topics, from_prefix, dry_run, yes, as_json))
    if result is None:
        answer(_plan_document(made), as_json, _plan_text(made) + "\n(dry run: nothing was written)")
        return
    if made.done is not None:
        answer({"already": True, **result}, as_json, f"backup {made.backup} was restored here before: nothing to do")
        return
    lanes = ", ".join(archive.newest.lanes)
    text = (
        f"backup {made.backup} is restored; all lanes are paused ({lanes}). Start the routers on empty data "
        "directories, the senders, and the ledger on an empty database; look; then `postlane resume --lane NAME`."
    )
    answer(result, as_json, text)


async def _restore(
    archive: Archive,
    pending: str,
    topics: tuple[str, ...],
    from_prefix: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> tuple[Plan, dict[str, Any] | None]:
    from postlane.ops.backup.pending import Manner
    from postlane.ops.backup.restore import Restorer
    from postlane.ops.backup.target import check_alone, check_backup_fits

    environment, config = settings()
    check_backup_fits(archive, environment.names, config, from_prefix)
    check_alone(topics)
    archive.check_stored(_bytes_told())
    async with log_of(environment) as log:
        with _told() as told:
            restorer = Restorer(log, log.admin, environment.names, config, archive, told)
            made = await restorer.look(topics or list(archive.topics), Manner(pending), datetime.now(UTC))
            if dry_run:
                return made, None
            if made.done is None and not as_json:
                note(_plan_text(made))
            if made.done is None:
                confirm(f"Write {made.total} records to {environment.bootstrap_servers}?", yes)
            return made, await restorer.run(made)


# -------------------------------------------------------------------------------------------------------------- details


def _archive(place: str, key_file: Path | None, to: datetime | None) -> tuple[Any, Archive]:
    from postlane.ops.backup.archive import Archive
    from postlane.ops.backup.catalogue import read_catalogue
    from postlane.ops.backup.encrypt import vault_of
    from postlane.ops.backup.store import open_store

    store, vault = open_store(place), vault_of(key_file)
    catalogue = read_catalogue(store, vault)
    return catalogue, Archive(store, vault, catalogue.chain(catalogue.before(to)))


def _plan_document(made: Plan) -> dict[str, Any]:
    return {
        "backup": made.backup,
        "point": made.point,
        "records": made.records,
        "pending": made.pending,
        "unrouted": made.unrouted,
        "missing_topics": made.missing,
        "resumed": made.resumed,
        "done": made.done,
    }


def _plan_text(made: Plan) -> str:
    rows = [("topic", "records in the backup"), *((topic, count) for topic, count in made.records.items() if count)]
    lines = [f"backup {made.backup} of {made.point.isoformat(timespec='seconds')}", columns(rows)]
    for lane, fates in sorted(made.pending.items()):
        lines.append(f"on its way, {lane}: " + ", ".join(f"{count} {fate}" for fate, count in sorted(fates.items())))
    lines.append(f"requests that the router routes when it is started: {made.unrouted}")
    if made.missing:
        lines.append(f"topics that will be made: {len(made.missing)}")
    if made.resumed:
        lines.append("a restore of this backup was begun here: it goes on where it was")
    return "\n".join(lines)


class _told:
    """Progress on stderr, for a person only, a few times a second."""

    def __init__(self) -> None:
        self._next = 0.0
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> Callable[[str, int, int], None]:
        return self._tell

    def __exit__(self, *_: object) -> None:
        if self._shown and self._next:
            note("")

    def _tell(self, topic: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._shown and now >= self._next:
            self._next = now + _TOLD_S
            click.echo(f"\r{done} of about {total} records ({topic})\x1b[K", err=True, nl=False)


def _bytes_told() -> Callable[[int, int], None]:
    meter = _told()
    return lambda done, total: meter._tell(f"{done} of {total} bytes checked", done, total)
