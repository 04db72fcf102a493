"""Networks that are cut, lose packets or are slow, and names that do not resolve."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.chaos import network
from tests.chaos.faults_processes import until_in_sync
from tests.chaos.registry import fault
from tests.chaos.town import BROKER_GID, BROKERS, Town

_NAMESPACES = ("namespaces",)


@fault(18.0, touches=("sender",), needs=_NAMESPACES)
def partition_sender_from_kafka(town: Town, dice: random.Random) -> Iterator[str]:
    """a sender cut off from every broker, for longer than its session"""
    name = dice.choice(town.of("sender"))
    with network.cut(town.gid(name), town.broker_ports()):
        yield name


@fault(18.0, touches=("router",), needs=_NAMESPACES)
def partition_router_from_kafka(town: Town, dice: random.Random) -> Iterator[str]:
    """a router cut off from every broker, for longer than its session"""
    name = dice.choice(town.of("router"))
    with network.cut(town.gid(name), town.broker_ports()):
        yield name


@fault(10.0, touches=("sender",), needs=_NAMESPACES)
def partition_sender_from_one_broker(town: Town, dice: random.Random) -> Iterator[str]:
    """a sender cut off from one broker of three"""
    name, i = dice.choice(town.of("sender")), dice.randrange(BROKERS)
    with network.cut(town.gid(name), town.broker_ports(i)):
        yield f"{name} from broker {i}"


@fault(10.0, touches=("broker",), needs=_NAMESPACES)
def partition_brokers(town: Town, dice: random.Random) -> Iterator[str]:
    """a broker cut off from the other two, and still reached by its clients"""
    i = dice.randrange(BROKERS)
    others = [n for n in range(BROKERS) if n != i]
    theirs = [port for n in others for port in (*town.broker_ports(n), town.controller_port(n))]
    ours = [*town.broker_ports(i), town.controller_port(i)]
    first, second = others
    with (
        network.cut(BROKER_GID + i, theirs),
        network.cut(BROKER_GID + first, ours),
        network.cut(BROKER_GID + second, ours),
    ):
        yield f"broker {i}"
    until_in_sync(town)


@fault(10.0, touches=("sender", "provider"), needs=_NAMESPACES)
def partition_sender_from_provider(town: Town, dice: random.Random) -> Iterator[str]:
    """a sender cut off from both providers: no reset, only silence"""
    name = dice.choice(town.of("sender"))
    with network.cut(town.gid(name), list(town.practice.smtp_ports.values())):
        yield name


@fault(12.0, touches=("link",), needs=_NAMESPACES)
def lossy_links(town: Town, dice: random.Random) -> Iterator[str]:
    """5 % of all packets to and from brokers and providers lost"""
    with network.lossy([*town.broker_ports(), *town.practice.smtp_ports.values()], 0.05):
        yield "every link"


@fault(12.0, touches=("link",), needs=_NAMESPACES)
def slow_links(town: Town, dice: random.Random) -> Iterator[str]:
    """all traffic of brokers, services and providers through 8 Mbit/s"""
    with network.slow(8):
        yield "every link"


@fault(10.0, touches=("provider",), needs=_NAMESPACES)
def dns_failure(town: Town, dice: random.Random) -> Iterator[str]:
    """the providers' names do not resolve, and their connections were reset"""
    town.names_resolve(False)
    town.practice.control.outage()
    town.practice.control.recover()
    try:
        yield "both names"
    finally:
        town.names_resolve(True)
