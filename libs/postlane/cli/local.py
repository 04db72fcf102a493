"""`postlane kafka up|down`: the broker on this machine."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn, TypeVar

import click

from postlane.local.errors import LocalError
from postlane.local.kafka import KafkaCluster

_DATA_DIR = "./.postlane"
_Result = TypeVar("_Result")

_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
_data_dir = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: Path(os.environ.get("POSTLANE_DATA_DIR") or _DATA_DIR),
    show_default=_DATA_DIR,
    help="Where everything is kept.",
)


@click.group(name="kafka")
def kafka_group() -> None:
    """A real Apache Kafka on this machine."""


@kafka_group.command(name="up")
@_data_dir
@click.option("--brokers", type=click.Choice(["1", "3"]), default="1", show_default=True, help="How many brokers.")
@click.option("--port", type=click.IntRange(0, 65535), default=9092, show_default=True, help="0: any free ones.")
@_json
def kafka_up(data_dir: Path, brokers: str, port: int, as_json: bool) -> None:
    """Start Kafka, wait until it takes requests, and print its bootstrap servers."""
    _log_to_stderr()
    cluster = KafkaCluster(data_dir / "kafka", int(brokers), port)
    began = time.monotonic()
    was_running = cluster.is_running()
    _guarded(cluster.start)
    logs = [str(cluster.log_path(i)) for i in range(cluster.brokers)]
    document = {
        "bootstrap_servers": cluster.bootstrap_servers,
        "data_dir": str(cluster.data_dir),
        "brokers": cluster.brokers,
        "pids": [cluster.pid(i) for i in range(cluster.brokers)],
        "logs": logs,
        "seconds": round(time.monotonic() - began, 2),
        "was_running": was_running,
    }
    _print(document, as_json, cluster.bootstrap_servers)
    if not as_json:
        state = "runs already" if was_running else f"is ready after {document['seconds']} s"
        click.echo(f"Kafka {state}; logs: {' '.join(logs)}", err=True)


@kafka_group.command(name="down")
@_data_dir
@_json
def kafka_down(data_dir: Path, as_json: bool) -> None:
    """Stop Kafka; its data stays."""
    _log_to_stderr()
    cluster = _guarded(lambda: KafkaCluster.of_folder(data_dir / "kafka"))
    if cluster is None:
        _print({"stopped": [], "killed": []}, as_json, f"No Kafka has been started in {data_dir}.")
        return
    stale = cluster.stale_pids()
    running = [pid for i in range(cluster.brokers) if (pid := cluster.pid(i)) is not None]
    killed = _guarded(cluster.stop)
    text = f"Kafka stopped ({len(running)} process{'es' if len(running) != 1 else ''})." if running else "Nothing ran."
    _print({"stopped": running, "killed": killed, "stale": stale}, as_json, text)
    if stale:
        pids = ", ".join(map(str, stale))
        _fail(f"The pid file of {data_dir} named process {pids}, which had ended by itself; its log says why.")


def _guarded(act: Callable[[], _Result]) -> _Result:
    try:
        return act()
    except LocalError as error:
        _fail(error.message)


def _fail(sentence: str) -> NoReturn:
    click.echo(f"postlane: {sentence}", err=True)
    raise SystemExit(1)


def _print(document: Mapping[str, object], as_json: bool, text: str) -> None:
    click.echo(json.dumps(document) if as_json else text)


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
