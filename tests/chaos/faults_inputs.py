"""Records that are no records, and clocks that are no clocks."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from confluent_kafka import Producer

from tests.chaos import isolation
from tests.chaos.registry import fault
from tests.chaos.town import LANES, PARTITIONS, Town

POISON = (
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"delivery_id":1e999}',
    b'{"a":1,"a":2}',
    b"null",
    b"\0" * 64,
    b'{"delivery_id":"x","kind":"intent","hop":-1}',
)
_HOUR_S = 3600


@fault(4.0, touches=("sender", "router", "ledger"))
def poison_in_every_topic(town: Town, dice: random.Random) -> Iterator[str]:
    """records that cannot be read in every topic, and then a restart of every service, which reads them again"""
    producer = Producer({"bootstrap.servers": town.bootstrap})
    names = town.names
    topics = {
        **dict.fromkeys((names.requests, names.seen, names.events, names.dead_letters, names.observations), PARTITIONS),
        **dict.fromkeys((names.suppressions, names.health, *names.delays), PARTITIONS),
        **dict.fromkeys((names.templates, names.control), 1),
        **{topic: PARTITIONS for lane in LANES for topic in (names.dispatch(lane), names.state(lane))},
    }
    for topic, partitions in topics.items():
        for n, value in enumerate(POISON):
            producer.produce(topic, value, f"poison-{n}", partition=n % partitions, headers=[("ce_type", b"x")])
    if producer.flush(120):
        raise TimeoutError("the poison was not taken")
    yield f"{len(topics)} topics"
    for name in town.services:
        town.kill(name)
    town.until_up(*town.services)


def _stepped(town: Town, name: str, seconds: int) -> Iterator[str]:
    """Starts the service on a clock that can be stepped, steps it under load, steps it back, and gives it its own."""
    clock = town.folder / "env" / f"{name}.clock"
    library = isolation.faketime()
    assert library is not None
    clock.write_text("+0\n")
    town.variables(
        name,
        LD_PRELOAD=library,
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_CACHE_DURATION="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )
    town.restart(name)
    time.sleep(5.0)
    clock.write_text(f"{seconds:+d}\n")
    try:
        yield f"{name} {seconds:+d} s"
    finally:
        clock.write_text("+0\n")
    time.sleep(3.0)
    town.variables(name)
    town.restart(name)


@fault(12.0, touches=("sender",), needs=("faketime",))
def clock_of_a_sender_forward(town: Town, dice: random.Random) -> Iterator[str]:
    """one sender's clock steps an hour forward, and back"""
    yield from _stepped(town, dice.choice(town.of("sender")), _HOUR_S)


@fault(12.0, touches=("sender",), needs=("faketime",))
def clock_of_a_sender_back(town: Town, dice: random.Random) -> Iterator[str]:
    """one sender's clock steps an hour back, and forward"""
    yield from _stepped(town, dice.choice(town.of("sender")), -_HOUR_S)


@fault(12.0, touches=("router",), needs=("faketime",))
def clock_of_a_router_forward(town: Town, dice: random.Random) -> Iterator[str]:
    """one router's clock steps an hour forward, and back"""
    yield from _stepped(town, dice.choice(town.of("router")), _HOUR_S)


@fault(12.0, touches=("router",), needs=("faketime",))
def clock_of_a_router_back(town: Town, dice: random.Random) -> Iterator[str]:
    """one router's clock steps an hour back, and forward"""
    yield from _stepped(town, dice.choice(town.of("router")), -_HOUR_S)
