"""`postlane up|down` and `postlane kafka up|down`: everything, or only the broker, on this machine."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn, TypeVar

import click

from postlane.local.errors import LocalError
from postlane.local.kafka import KafkaCluster
from postlane.local.practice import PracticeControl
from postlane.local.services import PRACTICE, StackPlan, children, database_url, gateway_of, inherited, user_config
from postlane.local.stack import Stack

_DATA_DIR = "./.postlane"
_TOPICS_TIMEOUT_S = 120
_WATCH_S = 0.5
_Result = TypeVar("_Result")

_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
_data_dir = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: Path(os.environ.get("POSTLANE_DATA_DIR") or _DATA_DIR),
    show_default=_DATA_DIR,
    help="Where everything is kept.",
)
_brokers = click.option(
    "--brokers", type=click.Choice(["1", "3"]), default="1", show_default=True, help="3 keep everything three times."
)


@click.group(name="kafka")
def kafka_group() -> None:
    """A real Apache Kafka on this machine."""


@kafka_group.command(name="up")
@_data_dir
@_brokers
@click.option("--port", type=click.IntRange(0, 65535), default=9092, show_default=True, help="0: any free ones.")
@_json
def kafka_up(data_dir: Path, brokers: str, port: int, as_json: bool) -> None:
    """Start Kafka, wait until it takes requests, and print its bootstrap servers."""
    _log_to_stderr()
    cluster = _guarded(lambda: KafkaCluster(data_dir / "kafka", int(brokers), port))
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


@click.command()
@_data_dir
@_brokers
@click.option("--kafka-port", type=click.IntRange(0, 65535), default=9092, show_default=True, help="0: any free ones.")
@click.option("--senders", type=click.IntRange(1, 64), default=1, show_default=True, help="How many senders.")
@click.option("--routers", type=click.IntRange(1, 64), default=1, show_default=True, help="How many routers.")
@click.option("--no-practice-smtp", is_flag=True, help="Send to the providers of your postlane.yaml only.")
@click.option("--detach", is_flag=True, help="Return once everything is ready instead of staying until Ctrl-C.")
@_json
def up(
    data_dir: Path,
    brokers: str,
    kafka_port: int,
    senders: int,
    routers: int,
    no_practice_smtp: bool,
    detach: bool,
    as_json: bool,
) -> None:
    """Kafka, topics, all services and the practice SMTP server, on this machine."""
    _log_to_stderr()
    ready = threading.Event()
    stopping = _catch_signals(ready)
    began = time.monotonic()
    env = inherited(os.environ)
    plan = StackPlan(data_dir, routers, senders, practice_smtp=not no_practice_smtp)
    stack = Stack(data_dir, env=env)
    kafka = _guarded(lambda: KafkaCluster(data_dir / "kafka", int(brokers), kafka_port, env=env))
    try:
        _guarded(
            lambda: stack.up(
                lambda bootstrap: children(plan, bootstrap, env),
                kafka,
                lambda bootstrap: _apply_topics(bootstrap, data_dir, env),
            )
        )
    except KeyboardInterrupt:
        _fail("Interrupted; what had been started is stopped again.")
    ready.set()
    document = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "data_dir": str(stack.data_dir),
        "config": str(_config(data_dir, env)),
        "kafka": {"pids": [kafka.pid(i) for i in range(kafka.brokers)], "logs": [str(kafka.log_path(0).parent)]},
        "children": [
            {"name": n, "pid": stack.pid(n), "url": stack.url(n), "log": str(stack.log_path(n))} for n in stack.names()
        ],
        "practice": _practice(stack),
        "gateway": _gateway(stack),
        "database_url": None if env.get("POSTLANE_DATABASE_URL") else database_url(data_dir),
        "seconds": round(time.monotonic() - began, 2),
    }
    rows = [f"{'kafka':12} {kafka.bootstrap_servers}"]
    rows += [f"{name:12} {stack.url(name) or ''}" for name in stack.names()]
    if (api := _gateway(stack)) is not None:
        rows.append(f"{'HTTP API':12} {api['url']}/v1/mails (Authorization: Bearer, key in {api['key_file']})")
    _print(document, as_json, "\n".join(rows))
    click.echo(f"Ready after {document['seconds']} s; logs are in {stack.data_dir / 'logs'}", err=True)
    if not detach:
        _stay(stack, stopping)


@click.command()
@_data_dir
@_json
def down(data_dir: Path, as_json: bool) -> None:
    """Stop everything that `postlane up` started; the data stays."""
    _log_to_stderr()
    stack = Stack(data_dir)
    names = _guarded(stack.names)
    dead = [name for name in names if stack.pid(name) is None]
    killed = _guarded(stack.down)
    _print({"stopped": names, "killed": killed, "dead_before": dead}, as_json, "Stopped." if names else "Nothing ran.")
    for name in killed:
        click.echo(f"{name} did not end in time and was killed.", err=True)


def _practice(stack: Stack) -> dict[str, object] | None:
    url = stack.url(PRACTICE) if PRACTICE in stack.names() else None
    if url is None:
        return None
    smtp = PracticeControl(url).health()["smtp"]
    return {"control": url, "smtp": {name: f"{of['host']}:{of['port']}" for name, of in smtp.items()}}


def _gateway(stack: Stack) -> dict[str, str] | None:
    found = (gateway_of(stack.spec(name)) for name in stack.names())
    return next(({"url": url, "key_file": str(key)} for url, key in filter(None, found)), None)


def _stay(stack: Stack, stopping: threading.Event) -> None:
    reported: set[str] = set()
    while not stopping.wait(_WATCH_S):
        names = stack.names()
        if not names:
            click.echo("The stack was stopped by another command.", err=True)
            return
        for name in names:
            if stack.pid(name) is not None:
                reported.discard(name)
            elif name not in reported:
                reported.add(name)
                click.echo(f"{name} has ended (log: {stack.log_path(name)})", err=True)
    click.echo("Stopping …", err=True)
    _guarded(stack.down)


def _catch_signals(ready: threading.Event) -> threading.Event:
    """SIGTERM and Ctrl-C interrupt the start, so that it cleans up; once ready, they only set the event returned."""
    stopping = threading.Event()

    def interrupt(signum: int, frame: object) -> None:
        if stopping.is_set():
            return  # the second one must not cut the clean-up short
        stopping.set()
        if not ready.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    return stopping


def _apply_topics(bootstrap: str, data_dir: Path, env: Mapping[str, str]) -> None:
    """`postlane topics apply` as a process of its own: local does not know how topics are declared."""
    own = {"POSTLANE_BOOTSTRAP_SERVERS": bootstrap, "POSTLANE_CONFIG": str(_config(data_dir, env))}
    command = [sys.executable, "-c", "from postlane.cli.main import main; main()", "topics", "apply", "--json"]
    try:
        done = subprocess.run(
            command, env={**env, **own}, capture_output=True, text=True, timeout=_TOPICS_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise LocalError(f"The topics were not made within {_TOPICS_TIMEOUT_S} s.") from None
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise LocalError(f"The topics could not be made (exit code {done.returncode}): {said}")


def _config(data_dir: Path, env: Mapping[str, str]) -> Path:
    return (user_config(env) or data_dir / "postlane.yaml").absolute()


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
