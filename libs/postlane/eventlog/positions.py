"""What a group has committed, asked by one that is no member of it.

By a consumer that never subscribes: the library's admin client asks too, and its process ends by a segmentation fault
when the coordinator answers that it is none any more (librdkafka 2.16 looks for a group that such a client has not).
"""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import Consumer, KafkaException, TopicPartition

from postlane.eventlog.errors import Retriable
from postlane.eventlog.kafka_config import LIBRARY_LOG, ClientConfig
from postlane.eventlog.kafka_errors import translate
from postlane.eventlog.ports import Committed, Partition


class Positions:
    """Blocks; one thread at a time."""

    def __init__(self, config: ClientConfig, group: str, *, stable: bool = False) -> None:
        self._group = group
        self._consumer = Consumer(config.positions(group, stable=stable), logger=LIBRARY_LOG)

    def committed(self, partitions: Sequence[Partition], timeout_s: float) -> dict[Partition, Committed]:
        """Partitions without a position are left out. Raises Retriable (also: unstable), Unreachable, Fatal."""
        doing = f"committed offsets of group {self._group}"
        wanted = [TopicPartition(p.topic, p.number) for p in partitions]
        try:
            found = self._consumer.committed(wanted, timeout=timeout_s)
        except KafkaException as error:
            raise translate(error.args[0], doing) from error
        if len(found) != len(wanted):
            raise Retriable(f"{doing}: the answer is not whole; ask again")
        positions = {}
        for tp in found:
            if tp.error is not None:
                raise translate(tp.error, f"{doing}, {tp.topic}[{tp.partition}]")
            if tp.offset >= 0:
                positions[Partition(tp.topic, tp.partition)] = Committed(tp.offset, tp.metadata or "")
        return positions

    def close(self) -> None:
        """Let go of the connections; nobody was a member."""
        self._consumer.close()
