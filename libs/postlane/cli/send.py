"""`postlane send`: one mail."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from postlane.cli.cluster import quiet, settings
from postlane.cli.inputs import JsonObject, Moment, TextOrFile, read_bounded
from postlane.cli.output import answer, json_option
from postlane.mail import Attachment, Mail

_CONTENT = ("text", "html", "eml", "template")


@click.command()
@click.option("--from", "sender", metavar="ADDRESS", help="Who sends it.")
@click.option("--to", multiple=True, metavar="ADDRESS", help="Who gets it; repeat it, or list more addresses after.")
@click.option("--cc", multiple=True, metavar="ADDRESS", help="Copy to; repeatable.")
@click.option("--bcc", multiple=True, metavar="ADDRESS", help="Blind copy to; repeatable.")
@click.option("--reply-to", metavar="ADDRESS", help="Where answers go.")
@click.option("--subject", help="The subject (a template has its own).")
@click.option("--text", type=TextOrFile(), help="The plain text.")
@click.option("--html", type=TextOrFile(), help="The HTML; the text part is derived when --text is absent.")
@click.option("--eml", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A mail as an RFC 5322 file.")
@click.option("--template", metavar="ID", help="A template renders it; ID@3 pins version 3.")
@click.option("--data", type=JsonObject(), help="The template's data.")
@click.option("--attach", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A file.")
@click.option("--header", multiple=True, metavar="'NAME: VALUE'", help="A further header field; repeatable.")
@click.option("--key", help="Idempotency key: the same key again sends nothing new.")
@click.option("--lane", default=None, help="Which lane it takes.  [default: transactional]")
@click.option("--at", "send_at", type=Moment(), help="Not before this time (ISO 8601, or +10m).")
@click.option("--expires", "expires_at", type=Moment(), help="Not after this time.")
@click.option("--campaign", help="What it belongs to, for status, pause and cancel.")
@click.option("--tenant", help="Whose it is.  [default: default]")
@click.option("--in-doubt", type=click.Choice(["resend", "park"]), help="When nobody knows whether it arrived.")
@click.option("--timeout", type=click.FloatRange(0.1, 600), default=30, show_default=True, help="Seconds to wait.")
@click.argument("more_to", nargs=-1, metavar="[ADDRESS]...")
@json_option
def send(key: str | None, timeout: float, as_json: bool, **given: Any) -> None:
    """Publish one mail and print its message id; it returns once Kafka has it on all in-sync replicas."""
    from postlane.publisher import Publisher

    _check_content_options(given)
    environment, config = settings()
    mail = _mail(given)
    if environment.config_file is not None and mail.lane not in config.lanes:
        known = ", ".join(config.lanes)
        raise click.UsageError(f"--lane: {environment.config_file} has no lane {mail.lane!r}; known: {known}")
    quiet()
    with Publisher.from_environment(
        environment, timeout_s=timeout, connect_timeout_s=min(timeout, 10.0), source="postlane/cli"
    ) as publisher:
        receipt = publisher.publish(mail, key=key)
    text = f"{receipt.message_id}  partition {receipt.partition}, offset {receipt.offset}"
    answer(asdict(receipt), as_json, text)


def _check_content_options(given: dict[str, Any]) -> None:
    named = [f"--{name}" for name in _CONTENT if given[name] is not None]
    if not named:
        raise click.UsageError("nothing to send: give --text, --html, --eml or --template")
    if len(named) > 1 and named != ["--text", "--html"]:
        raise click.UsageError(f"{' and '.join(named)} exclude each other (only --text and --html go together)")
    if given["data"] is not None and given["template"] is None:
        raise click.UsageError("--data belongs to --template")
    if given["eml"] is None and not given["sender"]:
        raise click.UsageError("--from is missing")
    if given["eml"] is None and given["template"] is None and given["subject"] is None:
        raise click.UsageError("--subject is missing (an empty one is written --subject '')")


def _mail(given: dict[str, Any]) -> Mail:
    """The mail of the options; raises InvalidMail."""
    fields: dict[str, Any] = _eml_fields(given["eml"]) if given["eml"] is not None else {}
    recipients = (*given["to"], *given["more_to"])
    if recipients or given["cc"] or given["bcc"]:
        # Whoever names recipients means them and no others, whatever the file's header fields say.
        fields.update(to=recipients, cc=given["cc"], bcc=given["bcc"])
    wanted = ("reply_to", "subject", "text", "html", "lane", "campaign", "tenant", "in_doubt")
    fields.update({name: given[name] for name in wanted if given[name] is not None})
    if given["sender"]:
        fields["sender"] = given["sender"]
    fields.update(_times(given["send_at"], given["expires_at"]))
    if given["template"] is not None:
        fields["template"] = template_reference(given["template"], given["data"] or {})
    files = [Attachment.from_file(path) for path in given["attach"]]
    fields["attachments"] = (*fields.get("attachments", ()), *files)
    fields["headers"] = {**fields.get("headers", {}), **dict(_header(text) for text in given["header"])}
    return Mail(**fields)


def _eml_fields(path: Path) -> dict[str, Any]:
    from postlane.mime.eml import EML_MAX_BYTES, parse_eml

    return parse_eml(read_bounded(path, EML_MAX_BYTES))


def template_reference(text: str, data: dict[str, Any]) -> dict[str, Any]:
    """`welcome` or `welcome@3` as the fields of a template reference."""
    ident, at, version = text.rpartition("@")
    if at and version.isascii() and version.isdigit() and len(version) < 10:
        return {"id": ident, "version": int(version), "data": data}
    return {"id": text, "data": data}


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.UsageError(f"--header: {text[:60]!a} is not 'Name: value'")
    return name.strip(), value.strip()


def _times(send_at: datetime | None, expires_at: datetime | None) -> dict[str, datetime]:
    times = {"send_at": send_at, "expires_at": expires_at}
    return {name: time for name, time in times.items() if time is not None}
