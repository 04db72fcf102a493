"""A plain client for auditors: topics followed record by record, and what groups have committed.

It shares no code with the readers of the services but for the question what a group has committed (positions.py), so
that what it finds is a second opinion.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka import admin as _untyped

from postlane.eventlog.admin_client import RENEW_EVERY_S
from postlane.eventlog.errors import EndNotReached, Retriable
from postlane.eventlog.kafka_config import LIBRARY_LOG, ClientConfig
from postlane.eventlog.kafka_errors import translate, translated
from postlane.eventlog.ports import Partition, Received
from postlane.eventlog.positions import Positions
from postlane.eventlog.records import received

REQUEST_TIMEOUT_S = 10.0
LET_GO_MAX = 16  # clients that are kept a while, at RENEW_EVERY_S each
_BATCH_RECORDS_MAX = 2_000
_SLICE_S = 0.1
_api: Any = _untyped  # its names are not exported to type checkers


class TopicAuditor:
    """Follows whole topics; each committed record is handed out once.

    `options` are librdkafka's (security and the like). With `from_now` records older than the first `catch_up` are
    left out. Everything blocks, threads must not share one, and methods raise LogError (Unreachable, Retriable, …).
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topics: Sequence[str],
        options: Mapping[str, str] | None = None,
        *,
        from_now: bool = False,
    ) -> None:
        base = {**(options or {}), "bootstrap.servers": bootstrap_servers, "log_level": 0}
        self._admin_conf = base
        self._admin = _api.AdminClient(base)
        self._config = ClientConfig(bootstrap_servers, options or {}, "postlane-auditor")
        self._groups: dict[str, Positions] = {}
        self._let_go: deque[Any] = deque(maxlen=LET_GO_MAX)
        self._renewed_at = 0.0
        self._consumer = Consumer(
            {
                **base,
                "client.id": "postlane-auditor",
                "group.id": "postlane-auditor",  # demanded by the library, never used
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "check.crcs": True,
                "fetch.wait.max.ms": 20,
            },
            logger=LIBRARY_LOG,
        )
        self._topics = tuple(topics)
        self._from_now = from_now
        self._at: dict[Partition, int] = {}  # the next offset of each partition

    def catch_up(self, timeout_s: float = REQUEST_TIMEOUT_S) -> Iterator[Received]:
        """Every record that is new, up to the real ends that the brokers report at the beginning of the call.

        Raises EndNotReached when the ends are not reached in `timeout_s` seconds (a dead writer's transaction may
        still be open); what was handed out by then is not handed out again.
        """
        deadline = time.monotonic() + timeout_s
        try:
            if not self._at:
                self._place(timeout_s)
            ends = self._offsets(_api.OffsetSpec.latest(), min(timeout_s, REQUEST_TIMEOUT_S))
            while behind := [p for p, end in ends.items() if self._at[p] < end]:
                if time.monotonic() > deadline:
                    raise EndNotReached(f"{behind[0].topic}[{behind[0].number}] and {len(behind) - 1} more")
                yield from self._next()
        except KafkaException as error:
            raise translated(error, "follow the topics") from error

    def committed(self, groups: Sequence[str], timeout_s: float = REQUEST_TIMEOUT_S) -> dict[Partition, int]:
        """What these groups have committed for the partitions of the topics that are followed."""
        found: dict[Partition, int] = {}
        try:
            if not self._at:
                self._place(timeout_s)
        except KafkaException as error:
            raise translated(error, "read the positions of groups") from error
        for group in groups:
            if group not in self._groups:
                self._groups[group] = Positions(self._config, group)
            try:
                positions = self._groups[group].committed(sorted(self._at), timeout_s)
            except Retriable:
                self._groups.pop(group).close()  # the next question looks for the coordinator anew
                raise
            found |= {partition: committed.offset for partition, committed in positions.items()}
        return found

    def close(self) -> None:
        """Let go of the connections."""
        self._consumer.close()
        for positions in self._groups.values():
            positions.close()

    def _place(self, timeout_s: float) -> None:
        found = self._consumer.list_topics(timeout=timeout_s).topics
        there = {Partition(topic, n): 0 for topic in self._topics if topic in found for n in found[topic].partitions}
        spec = _api.OffsetSpec.latest() if self._from_now else _api.OffsetSpec.earliest()
        starts = self._offsets(spec, timeout_s, there)
        self._consumer.assign([TopicPartition(p.topic, p.number, start) for p, start in starts.items()])
        self._at = starts

    def _offsets(self, spec: Any, timeout_s: float, partitions: Mapping[Partition, int] | None = None) -> Any:
        wanted = {TopicPartition(p.topic, p.number): spec for p in (self._at if partitions is None else partitions)}
        level = IsolationLevel.READ_UNCOMMITTED  # the high watermark, not the last stable offset
        try:
            asked = self._admin.list_offsets(wanted, isolation_level=level, request_timeout=timeout_s) if wanted else {}
            found = {Partition(tp.topic, tp.partition): f.result(timeout_s + 1).offset for tp, f in asked.items()}
        except KafkaException:
            self._renew()
            raise
        # No error, and no answer: see KafkaAdmin.offsets.
        if nobody := [p for p, offset in found.items() if offset < 0]:
            self._renew()
            raise EndNotReached(f"nobody says where {nobody[0].topic}[{nobody[0].number}] ends")
        return found

    def _renew(self) -> None:
        """As KafkaAdmin does: the library may ask a leader that is dead until it is back; a new client does not."""
        now = time.monotonic()
        if now >= self._renewed_at + RENEW_EVERY_S:
            self._renewed_at = now
            self._let_go.append(self._admin)  # something may still wait for an answer of its
            self._admin = _api.AdminClient(self._admin_conf)

    def _next(self) -> Iterator[Received]:
        messages: list[Any] = self._consumer.consume(_BATCH_RECORDS_MAX, _SLICE_S)
        for message in messages:
            error = message.error()
            if error is None:
                self._move(message, message.offset() + 1)
                yield received(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                self._move(message, message.offset())  # past control records too
            elif not error.retriable() and error.code() not in _PASSING:
                raise translate(error, "follow the topics")

    def _move(self, message: Any, offset: int) -> None:
        where = Partition(message.topic(), message.partition())
        self._at[where] = max(self._at[where], offset)


_PASSING = frozenset({KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT})
