"""The `postlane` command."""

from __future__ import annotations

import click

from postlane.cli.local import kafka_group


@click.group()
def main() -> None:
    """Postlane: an event-sourced mail dispatcher on Apache Kafka."""


main.add_command(kafka_group)
