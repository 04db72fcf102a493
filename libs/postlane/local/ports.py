"""TCP ports on 127.0.0.1: which are free, and who gets which."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from postlane.local.errors import LocalError

HOST = "127.0.0.1"
PORT_MAX = 65535
CONTROLLER_OFFSET = 100
_LOWEST = 10_240
_EPHEMERAL_FROM = 32_768
_TRIES_MAX = 500


def is_free(port: int, host: str = HOST) -> bool:
    """Whether a server could listen on the port now (connections in TIME_WAIT do not count, as for Kafka)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_ports(count: int, host: str = HOST) -> list[int]:
    """Distinct free ports, below the kernel's ephemeral range.

    Below, because a server that is restarted must find its port again: an outgoing connection of any process may
    take an ephemeral one meanwhile, and a client that keeps redialling a dead port of that range can even connect
    to itself and hold it.

    Raises LocalError when the machine has no free port left there.
    """
    found: list[int] = []
    below = _ephemeral_start()
    dice = random.SystemRandom()
    for _ in range(_TRIES_MAX):
        port = dice.randrange(_LOWEST, below)
        if port not in found and is_free(port, host):
            found.append(port)
            if len(found) == count:
                return found
    raise LocalError(f"No free TCP ports were found on {host} between {_LOWEST} and {below}.")


def free_port(host: str = HOST) -> int:
    """One free port; see `free_ports`."""
    return free_ports(1, host)[0]


def plan(first: int, brokers: int) -> list[tuple[int, int]]:
    """(broker port, controller port) of each node: broker i listens on first + i, its controller on first + 100 + i.

    With `first` 0 every port is a free one. Raises LocalError when the plan leaves the range of TCP ports.
    """
    if first == 0:
        ports = free_ports(2 * brokers)
        return list(zip(ports[:brokers], ports[brokers:], strict=True))
    if not 1 <= first <= PORT_MAX - CONTROLLER_OFFSET - brokers:
        highest = PORT_MAX - CONTROLLER_OFFSET - brokers
        raise LocalError(f"Port {first} cannot be used: choose one between 1 and {highest}, or 0 for any free one.")
    return [(first + i, first + CONTROLLER_OFFSET + i) for i in range(brokers)]


def _ephemeral_start() -> int:
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        low = _EPHEMERAL_FROM
    return low if low > _LOWEST + 1000 else _EPHEMERAL_FROM
