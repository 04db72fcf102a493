"""Processes killed, frozen, restarted; a broker lost for good."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.chaos.registry import fault
from tests.chaos.town import BROKERS, Town

_FROZEN_S = 18.0  # longer than the session time-out (10 s) and the intents' time to live (7 s) together
_IN_SYNC_TIMEOUT_S = 240.0


def _kill(town: Town, dice: random.Random, service: str) -> Iterator[str]:
    name = dice.choice(town.of(service))
    town.kill(name)
    yield name
    town.until_up(name)


def _freeze(town: Town, dice: random.Random, service: str) -> Iterator[str]:
    name = dice.choice(town.of(service))
    town.kill(name, signal.SIGSTOP)
    try:
        yield name
    finally:
        town.kill(name, signal.SIGCONT)


@fault(0.0, touches=("sender",))
def kill_sender(town: Town, dice: random.Random) -> Iterator[str]:
    """SIGKILL to a sender"""
    yield from _kill(town, dice, "sender")


@fault(0.0, touches=("sender",))
def kill_all_senders(town: Town, dice: random.Random) -> Iterator[str]:
    """SIGKILL to every sender at once"""
    names = town.of("sender")
    for name in names:
        town.kill(name)
    yield ", ".join(names)
    town.until_up(*names)


@fault(0.0, touches=("router",))
def kill_router(town: Town, dice: random.Random) -> Iterator[str]:
    """SIGKILL to a router"""
    yield from _kill(town, dice, "router")


@fault(0.0, touches=("ledger",))
def kill_ledger(town: Town, dice: random.Random) -> Iterator[str]:
    """SIGKILL to the ledger"""
    yield from _kill(town, dice, "ledger")


@fault(_FROZEN_S, touches=("sender",))
def freeze_sender(town: Town, dice: random.Random) -> Iterator[str]:
    """SIGSTOP to a sender for longer than its session, SIGCONT"""
    yield from _freeze(town, dice, "sender")


@fault(_FROZEN_S, touches=("router",))
def freeze_router(town: Town, dice: random.Random) -> Iterator[str]:
    """SIGSTOP to a router for longer than its session, SIGCONT"""
    yield from _freeze(town, dice, "router")


@fault(_FROZEN_S, touches=("ledger",))
def freeze_ledger(town: Town, dice: random.Random) -> Iterator[str]:
    """SIGSTOP to the ledger for longer than its session, SIGCONT"""
    yield from _freeze(town, dice, "ledger")


@fault(6.0, touches=("broker",))
def kill_broker(town: Town, dice: random.Random) -> Iterator[str]:
    """SIGKILL to a broker, started again after 6 s"""
    i = dice.randrange(BROKERS)
    with town.held_down(i):
        town.kafka.kill(i)
        yield f"broker {i}"
    town.until_up(i)
    until_in_sync(town)


@fault(10.0, touches=("broker",))
def freeze_broker(town: Town, dice: random.Random) -> Iterator[str]:
    """SIGSTOP to a broker for longer than its session, SIGCONT"""
    i = dice.randrange(BROKERS)
    town.signal_broker(i, signal.SIGSTOP)
    try:
        yield f"broker {i}"
    finally:
        town.signal_broker(i, signal.SIGCONT)
    until_in_sync(town)


@fault(0.0, touches=("broker",))
def rolling_restart(town: Town, dice: random.Random) -> Iterator[str]:
    """SIGTERM to each broker in turn, the next once all replicas are in sync"""
    for i in range(BROKERS):
        with town.held_down(i):
            town.kafka.stop_broker(i)
        town.until_up(i)
        until_in_sync(town)
    yield f"brokers 0 to {BROKERS - 1}"


@fault(6.0, touches=("broker",))
def lose_broker(town: Town, dice: random.Random) -> Iterator[str]:
    """a broker lost for good, its data deleted; an empty one in its place after 6 s"""
    i = dice.randrange(BROKERS)
    with town.held_down(i):
        town.kafka.kill(i)
        for path in town.broker_data(i).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield f"broker {i}"
    town.until_up(i)
    until_in_sync(town)


@fault(0.0, touches=("sender", "router", "ledger"))
def rolling_deploy(town: Town, dice: random.Random) -> Iterator[str]:
    """SIGTERM to each service in turn, as a deployment does"""
    for name in town.services:
        town.restart(name)
    yield f"{len(town.services)} services"


def until_in_sync(town: Town) -> None:
    """Returns when every replica of every partition is in sync. TimeoutError when that takes too long."""
    admin = AdminClient({"bootstrap.servers": town.bootstrap, "log_level": 0})
    deadline = time.monotonic() + _IN_SYNC_TIMEOUT_S
    behind: list[str] = ["unknown"]
    while behind:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not in sync after {_IN_SYNC_TIMEOUT_S:.0f} s: {behind[:3]}")
        time.sleep(0.25)
        try:
            topics = admin.list_topics(timeout=10).topics.values()
        except KafkaException as error:
            behind = [str(error)]
            continue
        behind = [
            f"{topic.topic}[{n}]"
            for topic in topics
            for n, partition in topic.partitions.items()
            if len(partition.isrs) < len(partition.replicas)
        ]
