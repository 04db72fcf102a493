"""How a command ends: 0 done, 1 failed, 2 used wrongly, 3 a needed server is not reachable, 4 refused by a guard.

The one place where errors become exit codes. Errors are known by where they are found, so that nothing has to be
imported in order to report that something else failed: a module that was not loaded has raised nothing.
"""

from __future__ import annotations

import sys
from typing import Any

import click

FAILED = 1
USED_WRONGLY = 2
UNREACHABLE = 3
REFUSED = 4

# The first that an error is an instance of counts: the special before the general.
_CODES = {
    "postlane.config.ConfigurationError": USED_WRONGLY,
    "postlane.eventlog.errors.OptionRefused": USED_WRONGLY,
    "postlane.errors.InvalidMail": USED_WRONGLY,
    "postlane.errors.MailTooLarge": USED_WRONGLY,
    "postlane.mime.eml.InvalidEml": USED_WRONGLY,
    "postlane.mime.templates.TemplateError": USED_WRONGLY,
    "postlane.errors.BrokerUnavailable": UNREACHABLE,
    "postlane.errors.PublishTimeout": UNREACHABLE,
    "postlane.errors.PublishError": FAILED,
    "postlane.eventlog.publish.AppendUnknown": UNREACHABLE,
    "postlane.eventlog.errors.EndNotReached": FAILED,
    "postlane.eventlog.errors.Unreachable": UNREACHABLE,
    "postlane.eventlog.errors.LogError": FAILED,
    "postlane.ops.books_database.DatabaseUnavailable": UNREACHABLE,
    "postlane.ops.books_database.DatabaseRefused": FAILED,
    "postlane.local.errors.LocalError": FAILED,
}


class Stop(click.ClickException):
    """End the command with a sentence for stderr and an exit code."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def show(self, file: Any = None) -> None:
        click.echo(f"postlane: {self.message}", err=True)


def exit_code(error: BaseException) -> int | None:
    """The exit code of an error that is known, None for a surprise."""
    own = getattr(error, "exit_code", None)
    if isinstance(own, int):
        return own
    for path, code in _CODES.items():
        module, _, name = path.rpartition(".")
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return code
    if isinstance(error, OSError):
        return FAILED
    return None


def translated(error: Exception) -> Exception:
    """What to raise instead of `error`: click's own and surprises as they are, known ones as a sentence."""
    if isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort):
        return error
    code = exit_code(error)
    if code is None:
        return error
    return Stop(_sentence(error), code)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def confirm(question: str, yes: bool) -> None:
    """Go on only when `--yes` was given or a person at a terminal agrees; else exit code 4."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Stop(f"{question} Refused outside a terminal without --yes.", REFUSED)
    if not click.confirm(question, err=True):
        raise Stop("Nothing was done.", REFUSED)
