"""A batch whose checksum is wrong: the library reports it and goes on behind it; what it holds would be passed over."""

from __future__ import annotations

import queue
from typing import Any

import pytest
from confluent_kafka import KafkaError

from postlane.eventlog.consumer import KafkaMember
from postlane.eventlog.errors import Fatal
from postlane.eventlog.flow import Flows
from postlane.eventlog.kafka_errors import translate

DAMAGED = KafkaError(KafkaError._BAD_MSG, "failed CRC32C check")


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


class Damaged:
    """A consumer that reads a batch, a damaged one, and goes on behind it."""

    def __init__(self) -> None:
        self.batches = [[Message(7), Message(8, DAMAGED), Message(12)], [Message(13)]]

    def consume(self, limit: int, timeout_s: float) -> list[Message]:
        return self.batches.pop(0) if self.batches else []


def member() -> KafkaMember:
    it = KafkaMember.__new__(KafkaMember)
    it._consumer, it._flows, it._asked = Damaged(), Flows(), queue.SimpleQueue()
    it._failure = it._over = None
    return it


def test_nothing_behind_a_damaged_batch_is_handed_over_however_often_one_asks() -> None:
    it = member()
    for _ in range(2):
        with pytest.raises(Fatal, match=r"mail\.dispatch\.bulk\[0\] at 8"):
            it._consume(1, 0.0)


def test_what_was_read_before_it_is_sorted_out() -> None:
    assert [record.offset for record in member()._sorted_out([Message(7), Message(8, DAMAGED), Message(12)])] == [7]


def test_every_reader_ends_at_one() -> None:
    with pytest.raises(Fatal, match="under-replicated"):
        raise translate(DAMAGED, "follow a topic")
