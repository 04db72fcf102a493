"""`postlane gateway new-key`: a key for a caller of the HTTP API."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from postlane.cli.exits import USED_WRONGLY, Stop
from postlane.cli.output import answer, json_option, note

if TYPE_CHECKING:
    from postlane.core.api_keys import ApiKey


@click.group()
def gateway() -> None:
    """The HTTP API for services that do not speak Kafka (docs/gateway.md)."""


@gateway.command(name="new-key")
@click.argument("name")
@click.option("--tenant", help="Its mails are this tenant's, whatever they say.")
@click.option("--lane", "lanes", multiple=True, help="A lane that it may use; several times for several. Default: all.")
@click.option("--sender", "senders", multiple=True, help="An address, or @domain, that it may send as. Default: any.")
@click.option(
    "--may", multiple=True, type=click.Choice(["publish", "bounces"]), default=("publish",), show_default=True
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Mails a second, of each gateway process.")
@click.option(
    "--file", type=click.Path(dir_okay=False, path_type=Path), help="Add it to this key file, which may not exist yet."
)
@json_option
def new_key(
    name: str,
    tenant: str | None,
    lanes: tuple[str, ...],
    senders: tuple[str, ...],
    may: tuple[str, ...],
    rate: float | None,
    file: Path | None,
    as_json: bool,
) -> None:
    """Make a key for the caller NAME, and show it once: the key file keeps only its SHA-256.

    A gateway takes up a changed key file within a second. To take a key back, remove its entry.
    """
    from postlane.core.api_keys import KEY_BYTES, digest, new_key
    from postlane.ops.api_keys import add_key, entry_text, fields

    key = new_key(os.urandom(KEY_BYTES))
    given: dict[str, Any] = {"name": name, "sha256": digest(key), "may": list(may), "tenant": tenant}
    given |= {"lanes": list(lanes), "senders": list(senders), "rate_per_s": rate}
    entry = _checked({name: value for name, value in given.items() if value})
    if file is not None:
        add_key(file, entry)
        note(f"added to {file}; the key is shown this once:")
        answer({"key": key, "file": str(file)}, as_json, key)
        return
    note("the key is shown this once; put the entry into the key file:")
    answer({"key": key, "entry": fields(entry)}, as_json, f"{key}\n\n{entry_text(entry)}")


def _checked(given: dict[str, Any]) -> ApiKey:
    from postlane.core.api_keys import read_api_keys
    from postlane.core.errors import ConfigurationError

    try:
        return read_api_keys({"keys": [given]}).keys[0]
    except ConfigurationError as error:
        raise Stop(str(error).removeprefix("keys.0."), USED_WRONGLY) from None
