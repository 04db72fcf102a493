"""`postlane doctor`."""

from __future__ import annotations

import os
from collections import Counter

import click

from postlane.cli.cluster import run, settings
from postlane.cli.exits import FAILED, UNREACHABLE, Stop
from postlane.cli.local_stack import services_of_stack
from postlane.cli.output import answer, columns, json_option

_SIGNS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL", "skip": "skip"}
_IDENTITIES = ("publisher", "router", "sender", "ledger", "health", "operator", "backup")
_FOUND_MAX = 100  # characters of a finding in the table; the advice below it and --json have all


@click.command()
@click.option("--no-connect", is_flag=True, help="Do not try the providers, and look no domain up.")
@click.option("--domain", "domains", multiple=True, help="Check the DNS of this sender domain, instead of those known.")
@click.option("--dkim-selector", "selectors", multiple=True, help="The selector of the domains' DKIM key.")
@click.option("--service", "services", multiple=True, metavar="URL", help="Ask this service over HTTP; repeatable.")
@click.option("--backup", metavar="DIR|s3://…", envvar="POSTLANE_BACKUP_PLACE", help="Where backups are kept.")
@click.option("--as", "identity", type=click.Choice(_IDENTITIES), default="operator", help="Whose rights are wanted.")
@click.option("--quiet", is_flag=True, help="Only what is wrong, and what to do.")
@json_option
def doctor(
    no_connect: bool,
    domains: tuple[str, ...],
    selectors: tuple[str, ...],
    services: tuple[str, ...],
    backup: str | None,
    identity: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """The effective configuration with secrets masked, and every check with what to do about it.

    Ends with 1 when a check fails, 3 when Kafka or the ledger's database does not answer.
    """
    from typing import cast

    from postlane.ops.acls import Identity
    from postlane.ops.doctor import Report, Wish, examine

    environment, config = settings()
    asked = services or services_of_stack(os.environ)
    wish = Wish(not no_connect, domains, selectors, asked, backup, cast(Identity, identity))
    report: Report = run(examine(environment, config, os.environ, wish))
    document = {"configuration": report.configuration, "checks": report.checks, "ok": not report.failed}
    shown = [c for c in report.checks if not quiet or c.verdict in ("fail", "warn")]
    parts = [] if quiet else [_settings_text(report.configuration)]
    parts.append(columns([_SIGNS[c.verdict], c.title, _short(c.found)] for c in shown))
    parts.append(
        "\n".join(
            f"{c.title}: {c.found}\n  why  {c.why}\n  do   {c.do}" for c in shown if c.verdict in ("fail", "warn")
        )
    )
    counted = Counter(c.verdict for c in report.checks)
    parts.append(f"{counted['ok']} ok, {counted['warn']} warnings, {counted['fail']} failed, {counted['skip']} skipped")
    answer(document, as_json, "\n\n".join(part for part in parts if part))
    if report.failed:
        count = len(report.failed)
        raise Stop(f"{count} check{'s' * (count != 1)} failed", UNREACHABLE if report.unreachable else FAILED)


def _short(found: str) -> str:
    line = found.replace("\n", " ")
    return line if len(line) <= _FOUND_MAX else f"{line[: _FOUND_MAX - 1]}…"


def _settings_text(configuration: dict[str, dict[str, object]]) -> str:
    import yaml

    shown = {k: v for k, v in configuration["environment"].items() if v not in (None, {}, "")}
    body: str = yaml.safe_dump({**shown, **configuration["config"]}, sort_keys=False, allow_unicode=True)
    return body.rstrip()
