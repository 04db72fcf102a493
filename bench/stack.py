"""What the benchmarks share: a Kafka of their own with the declared topics, and mails of a stated size."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

from postlane.core.events import DispatchReady, MailContent
from postlane.core.identity import delivery_id
from postlane.core.policy import Topics
from postlane.eventlog.admin import KafkaAdmin
from postlane.eventlog.codec import encode
from postlane.eventlog.kafka_config import ClientConfig
from postlane.eventlog.ports import Outgoing
from postlane.eventlog.topics import TopicNames, declare


async def make_topics(bootstrap: str, names: TopicNames, lanes: tuple[str, ...], partitions: int = 12) -> None:
    """Every topic of an installation with this prefix."""
    admin = KafkaAdmin(ClientConfig(bootstrap))
    await admin.create_topics(declare(names, lanes, Topics(partitions=partitions)), 1)


def dispatches(names: TopicNames, lane: str, count: int, partitions: int, body_bytes: int) -> Iterator[Outgoing]:
    """`count` dispatch records over `partitions`, each with a text of `body_bytes`."""
    now = datetime.now(UTC)
    text = ("x" * 70 + "\n") * (body_bytes // 71 + 1)
    for i in range(count):
        message = str(uuid.uuid4())
        recipient = f"user{i}@example.com"
        mail = DispatchReady(
            delivery_id=delivery_id(message, recipient),
            message_id=message,
            recipient=recipient,
            lane=lane,
            requested_at=now,
            content=MailContent(
                sender="bench@example.org", to=(recipient,), subject=f"Mail {i}", text=text[:body_bytes]
            ),
        )
        yield Outgoing(names.dispatch(lane), i % partitions, message.encode(), encode(mail))
