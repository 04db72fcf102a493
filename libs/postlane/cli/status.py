"""`postlane status` and `postlane watch`: one mail's story, or the whole fleet."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from postlane.cli.cluster import log_of, run, settings
from postlane.cli.exits import FAILED, UNREACHABLE, Stop
from postlane.cli.output import answer, columns, document, json_option

if TYPE_CHECKING:
    from postlane.config import Environment
    from postlane.core.policy import Config
    from postlane.eventlog.kafka import KafkaLog


@click.command()
@click.argument("message_id", required=False)
@click.option("--key", help="The mail that was published under this idempotency key.")
@click.option("--tenant", default="default", show_default=True, help="Whose key.")
@json_option
def status(message_id: str | None, key: str | None, tenant: str, as_json: bool) -> None:
    """One mail's story, or, without MESSAGE_ID, the whole fleet: backlog and age per lane, states, providers."""
    environment, config = settings()
    if message_id is not None and key is not None:
        raise click.UsageError("give a MESSAGE_ID or --key, not both")
    if key is not None:
        from postlane.core.identity import message_id_from_key

        message_id = message_id_from_key(tenant, key)
    if message_id is not None:
        told = _story(environment, message_id.split(".", 1)[0])  # a delivery id names its message
        answer(told, as_json, _story_text(told))
        return
    overview = run(_overview_once(environment, config))
    answer(overview, as_json, fleet_text(overview))


@click.command()
@click.option(
    "--interval", type=click.FloatRange(min=0.2), default=2.0, show_default=True, help="Seconds between looks."
)
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many looks.")
@json_option
def watch(interval: float, count: int | None, as_json: bool) -> None:
    """The live overview: redrawn in a terminal, else one after the other (with --json one document a line)."""
    environment, config = settings()
    try:
        run(_watch(environment, config, interval, count, as_json))
    except KeyboardInterrupt:
        return


async def _overview_once(environment: Environment, config: Config) -> dict[str, Any]:
    async with log_of(environment) as log:
        return await _overview(log, environment, config)


async def _overview(log: KafkaLog, environment: Environment, config: Config) -> dict[str, Any]:
    from postlane.ops.fleet import overview

    return await overview(log, log.admin, environment, config, int(time.time() * 1000))


async def _watch(environment: Environment, config: Config, interval_s: float, count: int | None, as_json: bool) -> None:
    async with log_of(environment) as log:
        if as_json or not sys.stdout.isatty():
            looks = 0
            while True:
                told = await _overview(log, environment, config)
                click.echo(document(told) if as_json else fleet_text(told) + "\n")
                looks += 1
                if looks == count:
                    return
                await asyncio.sleep(interval_s)
        await _watch_live(log, environment, config, interval_s, count)


async def _watch_live(
    log: KafkaLog, environment: Environment, config: Config, interval_s: float, count: int | None
) -> None:
    from rich.live import Live
    from rich.text import Text

    from postlane.eventlog.errors import Retriable

    looks = 0
    with Live(Text("asking …"), screen=count is None, auto_refresh=False) as live:
        while looks != count:
            try:
                text = fleet_text(await _overview(log, environment, config))
            except Retriable as error:  # a broker that is away for a while is something to watch, not an end
                text = f"Kafka does not answer: {error}"
            live.update(Text(f"{text}\n\n{time.strftime('%H:%M:%S')}   Ctrl-C ends this"), refresh=True)
            looks += 1
            if looks != count:
                await asyncio.sleep(interval_s)


def _story(environment: Environment, message_id: str) -> dict[str, Any]:
    from postlane.config import ConfigurationError
    from postlane.ops.books import story
    from postlane.ops.books_database import database_url

    database_url(environment.database_url)  # a wrong URL is the caller's mistake; no ledger behind it is not
    try:
        told = story(environment.database_url, message_id)
    except ConfigurationError as error:
        raise Stop(f"{error}; is postlane_ledger running?", UNREACHABLE) from None
    if told is None:
        raise Stop(f"the ledger knows nothing of {message_id[:80]!a} (see `postlane status` for how far it is)", FAILED)
    return told


def _story_text(told: dict[str, Any]) -> str:
    parts = []
    mail = told["message"]
    if mail is not None:
        about = [("message", mail["message_id"]), ("from", mail["sender"]), ("subject", mail["subject"])]
        about += [("lane", mail["lane"]), ("campaign", mail["campaign"] or "-"), ("requested", mail["requested_at"])]
        parts.append(columns(about))
    fields = ("recipient", "generation", "state", "attempt", "provider", "reason", "next_at")
    rows = [[delivery.get(name) for name in fields] for delivery in told["deliveries"]]
    if rows:
        parts.append(columns([[name.upper() for name in fields], *rows]))
    parts.append(columns([_moment(event) for event in told["timeline"]]))
    if told["timeline_cut"]:
        parts.append("… (the timeline goes on)")
    return "\n\n".join(part for part in parts if part)


def _moment(event: dict[str, Any]) -> tuple[str, str, str]:
    reply = event.get("reply") or {}
    said = " ".join(str(reply[name]) for name in ("code", "enhanced", "text") if reply.get(name))
    details = [event.get("recipient"), event.get("provider"), event.get("reason"), said]
    if event.get("next_at"):
        details.append(f"next at {event['next_at']}")
    return event["at"], event["type"], "  ".join(str(detail) for detail in details if detail)


def fleet_text(told: dict[str, Any]) -> str:
    """The overview for a person."""
    router = told["router"]
    lanes = [("LANE", "WAITING", "OLDEST", "OWNED", "SERVED BY")]
    lanes.append(
        ("(requests)", router["waiting"], _age(router), _owned(router), " ".join(router["routers"]) or "nobody")
    )
    for name, lane in told["lanes"].items():
        lanes.append((name, lane["waiting"], _age(lane), _owned(lane), " ".join(lane["senders"]) or "nobody"))
    parts = [columns(lanes)]
    parts.append("states     " + (_pairs(told["states"]) or "none yet"))
    parts.append("delayed    " + (_pairs({k: v for k, v in told["delayed"].items() if v}) or "none"))
    health = told.get("health", {})
    providers = [("PROVIDER", "HEALTH", "STATES")]
    for name, states in told["providers"].items():
        providers.append((name, health.get(name, {}).get("state", "unknown"), _pairs(states) or "-"))
    parts.append(columns(providers))
    ledger = told["ledger"]
    parts.append(
        f"ledger     {ledger['error']}" if "error" in ledger else f"ledger     {ledger['behind']} events behind"
    )
    for order in told["orders"]:
        parts.append(f"{order['action']:10} {order['scope']} {order['name']} {order['reason']}".rstrip())
    if told["kafka"]["missing_topics"]:
        parts.append(f"missing    {' '.join(told['kafka']['missing_topics'])} (run `postlane topics apply`)")
    return "\n".join(parts)


def _age(lane: dict[str, Any]) -> str:
    return "-" if lane["oldest_age_s"] is None else f"{lane['oldest_age_s']:g} s"


def _owned(lane: dict[str, Any]) -> str:
    return f"{lane['owned']}/{lane['partitions']}"


def _pairs(counts: dict[str, int]) -> str:
    return "  ".join(f"{name} {count}" for name, count in counts.items())
