"""The naive Kafka consumer as a contestant."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from postlane.local.practice import PracticeProcess
from tests.chaos.compare.programs import Program
from tests.chaos.compare.trial import CONNECTIONS

_PROGRAM = Path(__file__).with_name("naive_consumer.py")
_PARTITIONS = 4


class NaiveConsumer:
    name = "Kafka consumer: poll, aiosmtplib, commit each second"
    killed = "the consumer process"

    def __init__(self, bootstrap: str, folder: Path, python: Path) -> None:
        self._bootstrap = bootstrap
        self._topic = f"naive-{uuid.uuid4().hex[:6]}"
        self._practice = PracticeProcess(folder / "practice")
        smtp = str(self._practice.smtp_port)
        argv = [str(python), str(_PROGRAM), bootstrap, self._topic, smtp, str(CONNECTIONS)]
        self._program = Program(argv, folder / "naive.log")

    def __enter__(self) -> NaiveConsumer:
        self._practice.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._program.stop()
        self._practice.stop()

    @property
    def practice(self) -> PracticeProcess:
        return self._practice

    def accept(self, recipients: Sequence[str]) -> None:
        admin = AdminClient({"bootstrap.servers": self._bootstrap})
        for made in admin.create_topics([NewTopic(self._topic, _PARTITIONS, 1)]).values():
            made.result(30)
        producer = Producer({"bootstrap.servers": self._bootstrap, "acks": "all"})
        for recipient in recipients:
            producer.produce(self._topic, json.dumps({"to": recipient}).encode(), recipient.encode())
        assert producer.flush(30) == 0

    def start(self) -> None:
        self._program.start()

    def kill(self) -> None:
        self._program.kill_group()

    def pending(self) -> int | None:
        partitions = [TopicPartition(self._topic, n) for n in range(_PARTITIONS)]
        asking = Consumer({"bootstrap.servers": self._bootstrap, "group.id": f"{self._topic}-mailer"})  # it never joins
        try:
            ends = [asking.get_watermark_offsets(partition, timeout=10)[1] for partition in partitions]
            committed = [tp.offset for tp in asking.committed(partitions, timeout=10)]
        finally:
            asking.close()
        return sum(end - max(0, offset) for end, offset in zip(ends, committed, strict=True))

    def uncertain(self) -> frozenset[str]:
        return frozenset()

    def note(self) -> str:
        return "a failed send is tried again at once"
