"""librdkafka's messages as `Received`, and the group token as what it says."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from operator import methodcaller
from typing import Any

from confluent_kafka import TopicPartition

from postlane.eventlog.ports import Headers, Partition, Received

_TOKEN_MAGIC = b"CGMDv2:"
_GENERATION = struct.Struct("=i")  # the library writes it in the machine's own byte order


# Stands for the headers of a record one of whose header names is not UTF-8: the library cannot hand them out.
HEADERS_UNREADABLE = "postlane-headers-unreadable"


def received(message: Any) -> Received:
    """One message without error, bytes untouched."""
    return Received(
        message.topic(),
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        _headers(message),
    )


# Not `message.headers()`: for a name that is not UTF-8 the library hands out a list *and* leaves an exception set. Only
# a call that is checked says so; Python 3.11 leaves the check out once the calling code is warm, and the exception
# would then come up at whatever is done next.
_headers_of = methodcaller("headers")


def _headers(message: Any) -> Headers:
    try:
        return _headers_of(message) or ()
    except (SystemError, UnicodeDecodeError):  # one hostile record must not stop its partition
        return [(HEADERS_UNREADABLE, b"")]


def wire_partitions(partitions: Iterable[Partition], offset: int) -> list[TopicPartition]:
    return [TopicPartition(p.topic, p.number, offset) for p in partitions]


def read_token(token: object) -> tuple[str, int, str]:
    """(group, generation, member id) that a consumer group token of the library carries.

    The library hands out `CGMDv2:`, the generation (int32, native), then group and member id, each ended by NUL
    (rd_kafka_consumer_group_metadata_write in rdkafka_cgrp.c). Raises ValueError when a newer version writes
    something else: better no transaction than one whose fence cannot be checked.
    """
    start = len(_TOKEN_MAGIC)
    if not isinstance(token, bytes) or not token.startswith(_TOKEN_MAGIC) or len(token) < start + _GENERATION.size:
        raise ValueError("the consumer group token of this librdkafka cannot be read")
    (generation,) = _GENERATION.unpack_from(token, start)
    parts = token[start + _GENERATION.size :].split(b"\0", 2)
    if len(parts) != 3:
        raise ValueError("the consumer group token of this librdkafka cannot be read")
    return parts[0].decode(), generation, parts[1].decode()
