"""What a group has committed, asked by one that is no member of it.

By a consumer that never subscribes: the library's admin client asks too, and its process ends by a segmentation fault
when the coordinator answers that it is none any more (librdkafka 2.16 looks for a group that such a client has not).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from postlane.eventlog.errors import LogError, Retriable
from postlane.eventlog.kafka_config import LIBRARY_LOG, ClientConfig
from postlane.eventlog.kafka_errors import translate
from postlane.eventlog.ports import Committed, Partition


class Unstable(Retriable):
    """A transaction that would move a position is still open: ask again when it is over."""


class Positions:
    """Blocks; one thread at a time."""

    def __init__(self, config: ClientConfig, group: str, *, stable: bool = False) -> None:
        self._group = group
        self._consumer = Consumer(config.positions(group, stable=stable), logger=LIBRARY_LOG)

    def committed(self, partitions: Collection[Partition], timeout_s: float) -> dict[Partition, Committed]:
        """As `committed_of`."""
        return committed_of(self._consumer, self._group, partitions, timeout_s)

    def close(self) -> None:
        """Let go of the connections; nobody was a member."""
        self._consumer.close()


def committed_of(
    consumer: Any, group: str, partitions: Collection[Partition], timeout_s: float
) -> dict[Partition, Committed]:
    """What the consumer's group has committed; partitions without a position are left out. Blocks.

    Never takes an error for "none was committed". Raises Unstable, Retriable, Unreachable, Fatal.
    """
    doing = f"committed offsets of group {group}"
    try:
        found = consumer.committed([TopicPartition(p.topic, p.number) for p in partitions], timeout=timeout_s)
    except KafkaException as error:
        raise _failed(error.args[0], doing) from error
    for tp in found:
        if tp.error is not None:
            raise _failed(tp.error, f"{doing}, {tp.topic}[{tp.partition}]")
    told = {Partition(tp.topic, tp.partition): tp for tp in found}
    if told.keys() != set(partitions):
        raise Retriable(f"{doing}: the answer is not whole; ask again")
    return {p: Committed(tp.offset, tp.metadata or "") for p, tp in told.items() if tp.offset >= 0}


def _failed(error: KafkaError, doing: str) -> LogError:
    if error.code() == KafkaError.UNSTABLE_OFFSET_COMMIT:
        return Unstable(f"{doing}: a transaction is pending; ask again")
    return translate(error, doing)
