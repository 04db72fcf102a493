"""A batch whose checksum is wrong: the library reports it and goes on behind it; what it holds would be passed over."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError

from postlane.eventlog.consumer import KafkaMember
from postlane.eventlog.errors import Fatal
from postlane.eventlog.kafka_errors import translate


class Message:
    """What the library hands over: a record, or an error at an offset."""

    def __init__(self, offset: int, error: KafkaError | None = None) -> None:
        self._offset, self._error = offset, error

    def error(self) -> KafkaError | None:
        return self._error

    def offset(self) -> int:
        return self._offset

    def topic(self) -> str:
        return "mail.dispatch.bulk"

    def partition(self) -> int:
        return 0

    def key(self) -> bytes:
        return b"key"

    def value(self) -> bytes:
        return b"value"

    def headers(self) -> list[Any]:
        return []

    def timestamp(self) -> tuple[int, int]:
        return 1, 0


def member() -> KafkaMember:
    it = KafkaMember.__new__(KafkaMember)
    it._failure, it._damaged = None, False
    return it


def test_nothing_behind_a_damaged_batch_is_handed_over() -> None:
    it = member()
    damaged = KafkaError(KafkaError._BAD_MSG, "failed CRC32C check")
    records = it._sorted_out([Message(7), Message(8, damaged), Message(12)])
    assert [record.offset for record in records] == [7]
    assert it._damaged
    assert isinstance(it._failure, Fatal)
    assert "mail.dispatch.bulk[0] at 8" in str(it._failure)


def test_every_reader_ends_at_one() -> None:
    with pytest.raises(Fatal, match="under-replicated"):
        raise translate(KafkaError(KafkaError._BAD_MSG, "failed CRC32C check"), "follow a topic")
