"""A sender that is asked to stop while a server sits on its reply for longer than a session lasts.

While the library closes a member it sends no heartbeat (librdkafka 2.16), so a drain inside the close would outlive
the session: the group would give the partitions away in the middle of it, and the mail would be in doubt.
"""

from __future__ import annotations

import signal
from pathlib import Path

from postlane.local.kafka import KafkaCluster
from tests.acceptance.rig import Rig

REPLY_S = 9.0  # longer than the rig's session of 6 s, shorter than the drain


def test_a_reply_that_comes_later_than_a_session_lasts_is_waited_for(kafka: KafkaCluster, tmp_path: Path) -> None:
    def longer_drain(body: dict[str, object]) -> None:
        body["lanes"]["transactional"]["drain_timeout_s"] = 20  # type: ignore[index]

    with Rig(kafka.bootstrap_servers, tmp_path, senders=2, lanes=("transactional",), config=longer_drain) as rig:
        rig.publish(8)
        rig.until_settled()
        rig.practice.control.add_fault("delay", phase="dot", recipient="*@slow.example", delay_s=REPLY_S)
        slow = rig.publish(8, domain="slow.example")
        rig.until(lambda books: _tried(books, slow) == len(slow), "every slow mail is on its way")
        rig.stack.kill("sender-1", signal.SIGTERM)
        rig.until_gone("sender-1")
        books = rig.until_settled()
        assert books.problems(rig.accepted) == []
        for message in slow:
            (delivery,) = books.by_message[message]
            assert books.deliveries[delivery].terminal == ["delivered"]
            assert books.deliveries[delivery].doubts == 0, "an orderly stop left it in doubt"
            assert books.deliveries[delivery].copies == 1


def _tried(books: object, messages: list[str]) -> int:
    deliveries, by_message = books.deliveries, books.by_message  # type: ignore[attr-defined]
    return sum(any(deliveries[d].intents for d in by_message.get(message, ())) for message in messages)
