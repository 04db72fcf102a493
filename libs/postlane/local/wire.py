"""One question in Kafka's own protocol: who are you, and which brokers do you know?

Enough to tell "the port is open" from "the broker does its work", without a client library.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

_METADATA_KEY = 3
_METADATA_VERSION = 4
_ANSWER_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What a broker says of its cluster: its id, and the node ids of the brokers that take requests."""

    cluster_id: str
    brokers: frozenset[int]


def ask(host: str, port: int, timeout_s: float) -> ClusterView | None:
    """The broker's view; None when nobody answers, or something that is not Kafka.

    Source: Kafka protocol guide, Metadata request version 4 (with an empty list of topics).
    """
    client = b"postlane-local"
    body = struct.pack(">hhih", _METADATA_KEY, _METADATA_VERSION, 1, len(client)) + client
    body += struct.pack(">i?", 0, False)
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            (size,) = struct.unpack(">i", _exactly(connection, 4))
            if not 0 < size <= _ANSWER_MAX_BYTES:
                return None
            return parse(_exactly(connection, size))
    except (OSError, struct.error, ValueError):
        return None


def parse(answer: bytes) -> ClusterView:
    """Read a Metadata response of version 4; ValueError or struct.error when it is something else."""
    correlation, _throttle_ms, count = struct.unpack_from(">iii", answer, 0)
    if correlation != 1 or not 0 <= count <= 10_000:
        raise ValueError("not an answer to the question")
    at = 12
    brokers = set()
    for _ in range(count):
        (node,) = struct.unpack_from(">i", answer, at)
        _host, at = _string(answer, at + 4)
        _rack, at = _string(answer, at + 4)
        brokers.add(node)
    cluster_id, _at = _string(answer, at)
    return ClusterView(cluster_id or "", frozenset(brokers))


def _string(data: bytes, at: int) -> tuple[str | None, int]:
    (size,) = struct.unpack_from(">h", data, at)
    if size < 0:
        return None, at + 2
    end = at + 2 + int(size)
    if end > len(data):
        raise ValueError("a string runs past the end")
    return data[at + 2 : end].decode(), end


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise ValueError("the answer was cut short")
        parts += part
    return bytes(parts)
