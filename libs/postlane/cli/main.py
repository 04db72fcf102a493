"""The `postlane` command: which sub-command lives where; each is imported when used, so that starting is quick."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import click

from postlane.cli.exits import FAILED, Stop, translated


class _Home(NamedTuple):
    module: str
    attribute: str
    help: str


_COMMANDS = {
    "up": _Home("postlane.cli.local", "up", "Run everything on this machine: Kafka, topics, services, practice SMTP."),
    "down": _Home("postlane.cli.local", "down", "Stop everything that `postlane up` started; the data stays."),
    "kafka": _Home("postlane.cli.local", "kafka_group", "A real Apache Kafka on this machine."),
    "topics": _Home("postlane.cli.topics", "topics", "Compare the topics with their declaration; make them so."),
    "send": _Home("postlane.cli.send", "send", "Publish one mail."),
    "import": _Home("postlane.cli.imports", "import_", "Publish a list of mails from a CSV or NDJSON file."),
    "status": _Home("postlane.cli.status", "status", "One mail's story, or the whole fleet."),
    "watch": _Home("postlane.cli.status", "watch", "The live overview in a terminal."),
    "providers": _Home("postlane.cli.providers", "providers", "How the providers do, for the whole fleet."),
    "dead-letters": _Home("postlane.cli.replay", "dead_letters", "Look at what was given up, replay or discard it."),
    "replay": _Home("postlane.cli.replay", "replay", "Replay a window of requests as a new generation."),
    "suppress": _Home("postlane.cli.tables", "suppress", "The addresses that are never mailed."),
    "template": _Home("postlane.cli.tables", "template", "The templates that mails are rendered from."),
    "pause": _Home("postlane.cli.control", "pause", "Hold back a lane, tenant, campaign or provider."),
    "resume": _Home("postlane.cli.control", "resume", "Let a lane, tenant, campaign or provider go on."),
    "cancel": _Home("postlane.cli.control", "cancel", "Call off a mail or a campaign."),
    "gateway": _Home("postlane.cli.gateway", "gateway", "Keys for callers of the HTTP API."),
    "doctor": _Home("postlane.cli.doctor", "doctor", "The effective configuration, and every check."),
    "backup": _Home("postlane.cli.backup", "backup", "Copy what cannot be made again."),
    "restore": _Home("postlane.cli.backup", "restore", "Put a backup back."),
    "verify": _Home("postlane.cli.backup", "verify", "Check a backup."),
    "drill": _Home("postlane.cli.drill", "drill", "Rehearse a failure on a throwaway stack."),
}


class Commands(click.Group):
    """A group that imports a command when it is asked for, and turns errors into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, home in _COMMANDS.items() if find_spec(home.module) is not None]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        home = _COMMANDS.get(cmd_name)
        if home is None or find_spec(home.module) is None:
            return None
        command: Any = getattr(import_module(home.module), home.attribute, None)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name].help) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise Stop(f"{error.name} is not installed: pip install 'postlane[all]'", FAILED) from None
        except Exception as error:
            known = translated(error)
            if known is error:
                raise
            raise known from None


def _version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"postlane {version('postlane')}")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def main() -> None:
    """Postlane: an event-sourced mail dispatcher on Apache Kafka.

    Every command takes --json. Exit codes: 0 done, 1 failed, 2 used wrongly, 3 Kafka (or another needed server) not
    reachable, 4 refused by a guard.
    """
