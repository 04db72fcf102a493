"""Who listens where."""

from __future__ import annotations

import socket

import pytest

from postlane.local import ports
from postlane.local.errors import LocalError


def test_the_plan_counts_up_from_the_port_that_was_named() -> None:
    assert ports.plan(9092, 1) == [(9092, 9192)]
    assert ports.plan(9092, 3) == [(9092, 9192), (9093, 9193), (9094, 9194)]


def test_with_port_0_every_port_is_another_free_one() -> None:
    planned = [port for pair in ports.plan(0, 3) for port in pair]
    assert len(set(planned)) == 6
    assert all(ports.is_free(port) for port in planned)


@pytest.mark.parametrize("first", [-1, 65535, 65434])
def test_a_plan_beyond_the_range_is_one_sentence(first: int) -> None:
    with pytest.raises(LocalError, match=f"^Port {first} cannot be used"):
        ports.plan(first, 3)


def test_a_port_that_is_listened_on_is_not_free() -> None:
    with socket.socket() as taken:
        taken.bind((ports.HOST, 0))
        taken.listen()
        assert not ports.is_free(taken.getsockname()[1])
        port = taken.getsockname()[1]
    assert ports.is_free(port)


def test_free_ports_are_not_where_outgoing_connections_come_from() -> None:
    with socket.socket() as outgoing:
        outgoing.bind((ports.HOST, 0))
        ephemeral = outgoing.getsockname()[1]
    assert all(port < ephemeral or port < ports._ephemeral_start() for port in ports.free_ports(20))
