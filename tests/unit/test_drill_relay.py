"""The relay: passes everything, then nothing and tells nobody, then everything that was kept."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from postlane.ops.drill.relay import Relay


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that says back what it hears."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=_say_back, args=(client,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def _say_back(client: socket.socket) -> None:
    with client:
        while data := client.recv(1024):
            client.sendall(data)


def test_nothing_passes_while_everything_is_lost_and_it_arrives_afterwards(echo: int) -> None:
    with Relay(echo) as relay, socket.create_connection(("127.0.0.1", relay.port), timeout=10) as client:
        client.sendall(b"before")
        assert client.recv(6) == b"before"
        relay.lose_everything()
        client.sendall(b"during")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(6)
        relay.heal()
        client.settimeout(10)
        assert client.recv(6) == b"during"


def test_a_new_connection_hears_nothing_while_everything_is_lost(echo: int) -> None:
    with Relay(echo) as relay:
        relay.lose_everything()
        with socket.create_connection(("127.0.0.1", relay.port), timeout=10) as client:
            client.sendall(b"x")
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.recv(1)
            relay.heal()
            client.settimeout(10)
            assert client.recv(1) == b"x"


def test_a_target_that_does_not_listen_closes_the_connection() -> None:
    with socket.socket() as taken:  # held, or the relay itself could be given the port, and talk to itself
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with Relay(port) as relay, socket.create_connection(("127.0.0.1", relay.port), timeout=10) as client:
            assert client.recv(1) == b""
