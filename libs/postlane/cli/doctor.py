"""`postlane doctor`."""

from __future__ import annotations

import os

import click

from postlane.cli.cluster import run, settings
from postlane.cli.exits import FAILED, UNREACHABLE, Stop
from postlane.cli.output import answer, columns, json_option

_SIGNS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL", "skip": "skip"}


@click.command()
@click.option("--no-connect", is_flag=True, help="Do not try the providers' ports.")
@json_option
def doctor(no_connect: bool, as_json: bool) -> None:
    """The effective configuration with secrets masked, and every check with what to do about it.

    Ends with 1 when a check fails, 3 when Kafka or the ledger's database does not answer.
    """
    from postlane.ops.doctor import examine

    environment, config = settings()
    report = run(examine(environment, config, os.environ, connect=not no_connect))
    document = {"configuration": report.configuration, "checks": report.checks, "ok": not report.failed}
    lines = columns([_SIGNS[c.verdict], c.name, c.found] for c in report.checks)
    advice = "\n".join(f"{c.name}: {c.do}" for c in report.checks if c.do and c.verdict in ("fail", "warn"))
    text = f"{_settings_text(report.configuration)}\n\n{lines}" + (f"\n\nWhat to do:\n{advice}" if advice else "")
    answer(document, as_json, text)
    if report.failed:
        count = len(report.failed)
        raise Stop(f"{count} check{'s' * (count != 1)} failed", UNREACHABLE if report.unreachable else FAILED)


def _settings_text(configuration: dict[str, dict[str, object]]) -> str:
    import yaml

    shown = {k: v for k, v in configuration["environment"].items() if v not in (None, {}, "")}
    body: str = yaml.safe_dump({**shown, **configuration["config"]}, sort_keys=False, allow_unicode=True)
    return body.rstrip()
