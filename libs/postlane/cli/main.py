"""The `postlane` command."""

from __future__ import annotations

import click

from postlane.cli.local import down, kafka_group, up


@click.group()
def main() -> None:
    """Postlane: an event-sourced mail dispatcher on Apache Kafka."""


for command in (up, down, kafka_group):
    main.add_command(command)
