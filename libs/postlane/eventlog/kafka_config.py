"""What each kind of librdkafka client is told, and which options of the operator are refused.

Figures that are not librdkafka's defaults say why (measured with librdkafka 2.16 on Apache Kafka 4.3).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaException, Producer

from postlane.eventlog.errors import OptionRefused
from postlane.eventlog.topics import RECORD_MAX_BYTES

SESSION_TIMEOUT_MS = 10_000
MAX_POLL_INTERVAL_MS = 300_000
TRANSACTION_TIMEOUT_MS = 12_000
DELIVERY_TIMEOUT_MS = 30_000
REQUEST_TIMEOUT_S = 10.0
# For questions to a group's coordinator: the longest that the library takes, so that its own time-out never comes. When
# a coordinator is found after it, an assertion of the library ends the process (librdkafka#4605).
NO_TIMEOUT_S = 3600.0
LIBRARY_LOG = logging.getLogger("postlane.eventlog.librdkafka")

# The protocol of the books depends on these: DESIGN of the sender, docs/ARCHITECTURE.md.
PROTECTED = frozenset(
    {
        "acks",
        "request.required.acks",
        "auto.offset.reset",
        "bootstrap.servers",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.gapless.guarantee",
        "enable.idempotence",
        "enable.partition.eof",
        "group.id",
        "group.instance.id",
        "group.protocol",
        "isolation.level",
        "max.in.flight",
        "max.in.flight.requests.per.connection",
        "metadata.broker.list",
        "partition.assignment.strategy",
        "partitioner",
        "transactional.id",
    }
)
# Options that only one kind of client knows; the other would warn of each at every start.
_OF_CONSUMERS = (
    "auto.commit.",
    "check.crcs",
    "coordinator.query.",
    "fetch.",
    "group.",
    "heartbeat.",
    "max.partition.fetch.",
    "max.poll.",
    "offset.store.",
    "queued.",
    "session.",
)
_OF_PRODUCERS = (
    "batch.",
    "compression.",
    "delivery.",
    "linger.",
    "message.send.",
    "message.timeout.",
    "queue.buffering.",
    "queuing.",
    "request.timeout.",
    "retries",
    "sticky.",
    "transaction.",
)
Conf = dict[str, Any]


def check_options(options: Mapping[str, str]) -> dict[str, str]:
    """The operator's options as they are. Raises OptionRefused, with no value in the message (it may be a secret)."""
    for name in sorted(options):
        if name in PROTECTED:
            raise OptionRefused(f"the Kafka option {name} cannot be changed: the exactness of the books depends on it")
    for name, value in options.items():
        try:
            # A client with one option opens no connection; the library knows each name and range.
            Producer({name: value, "log_level": 0})
        except KafkaException as error:
            reason = error.args[0].str().replace(value, "…") if value else error.args[0].str()
            if not reason.startswith(("No such configuration property", "Invalid value", "Configuration property")):
                continue  # only wrong without its companions (e.g. a key without its certificate)
            raise OptionRefused(f"the Kafka option {name} is refused: {reason}") from None
    return dict(options)


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Where the cluster is and what the operator adds; makes the configuration of each kind of client."""

    bootstrap_servers: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    client_id: str = "postlane"

    def _options(self, foreign: tuple[str, ...]) -> Conf:
        return {name: value for name, value in self.options.items() if not name.startswith(foreign)}

    def _base(self, role: str, client_id: str | None = None) -> Conf:
        return {
            "bootstrap.servers": self.bootstrap_servers,
            "client.id": client_id or f"{self.client_id}-{role}",
            "log.connection.close": False,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 2_000,
            # Headers and framing come on top of the largest record.
            "message.max.bytes": RECORD_MAX_BYTES,
            "socket.nagle.disable": True,
        }

    def _consumer(self, role: str, client_id: str | None = None) -> Conf:
        return {
            **self._base(role, client_id),
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "allow.auto.create.topics": False,
            # A fetch that finds nothing waits this long; one that finds something answers at once.
            "fetch.wait.max.ms": 100,
            # With the default of 1 s a full prefetch queue stalls a fast reader for a second.
            "fetch.queue.backoff.ms": 5,
            "fetch.error.backoff.ms": 100,
            # Small: what a fetch brings is unpacked before the queue is looked at, so a fetch, not the queue, sets
            # the memory. 4 KB records, 12 partitions: 73 MB of RSS in all, where 1 MiB each made it 185, no faster.
            "fetch.message.max.bytes": 65_536,
            "fetch.max.bytes": RECORD_MAX_BYTES,  # never below message.max.bytes; one larger record still comes
            "receive.message.max.bytes": 4 * RECORD_MAX_BYTES,
            "queued.max.messages.kbytes": 2_048,
            "queued.min.messages": 10_000,
            "check.crcs": True,
        }

    def admin(self) -> Conf:
        return {**self._base("admin"), "log_level": 0, **self._options(_OF_CONSUMERS + _OF_PRODUCERS)}

    def member(self, group: str, instance_id: str | None, client_id: str | None) -> Conf:
        """read_committed, nothing committed by itself, range (only eager range co-assigns several topics)."""
        conf = {
            **self._consumer("member", client_id),
            "session.timeout.ms": SESSION_TIMEOUT_MS,
            # A member learns of a rebalance from its next heartbeat: this is most of how long one takes.
            "heartbeat.interval.ms": 500,
            "max.poll.interval.ms": MAX_POLL_INTERVAL_MS,
            **self._options(_OF_PRODUCERS),
            "group.id": group,
            "group.protocol": "classic",
            "partition.assignment.strategy": "range",
            "isolation.level": "read_committed",
        }
        if instance_id is not None:
            conf["group.instance.id"] = instance_id
        return conf

    def reader(self, *, committed: bool, role: str = "reader") -> Conf:
        """Assign-based; `group.id` is demanded by the library and never used."""
        return {
            **self._consumer(role),
            "fetch.wait.max.ms": 20,
            "fetch.message.max.bytes": 1_048_576,  # one partition at a time
            "queued.max.messages.kbytes": 4_096,
            **self._options(_OF_PRODUCERS),
            "group.id": f"{self.client_id}-{role}",
            "enable.partition.eof": True,
            "isolation.level": "read_committed" if committed else "read_uncommitted",
        }

    def positions(self, group: str, *, stable: bool) -> Conf:
        """To ask what `group` has committed, without being a member. `stable`: not while a transaction is open."""
        return {**self.reader(committed=stable, role="positions"), "group.id": group}

    def tail(self) -> Conf:
        """A whole topic as a table, from wherever the log begins."""
        conf = self.reader(committed=True, role="tail")
        return {**conf, "fetch.wait.max.ms": 500, "auto.offset.reset": "earliest"}

    def _producer(self, role: str) -> Conf:
        return {
            **self._base(role),
            "linger.ms": 2,
            "batch.size": 262_144,
            "compression.type": "lz4",
            # murmur2 of the key, null keys at random: what Java clients do.
            "partitioner": "murmur2_random",
            "queue.buffering.max.kbytes": 65_536,
            "queue.buffering.max.messages": 100_000,
        }

    def transactor(self, transactional_id: str) -> Conf:
        return {
            **self._producer("transactor"),
            # The default of 100 ms waits out CONCURRENT_TRANSACTIONS after every commit: 41 ms instead of 5.
            "retry.backoff.ms": 2,
            # An open transaction of a dead process holds back every read_committed reader for so long.
            "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
            **self._options(_OF_CONSUMERS),
            "transactional.id": transactional_id,
            "enable.idempotence": True,
            "acks": "all",
        }

    def appender(self) -> Conf:
        return {
            **self._producer("appender"),
            "retry.backoff.ms": 20,
            "message.timeout.ms": DELIVERY_TIMEOUT_MS,
            **self._options(_OF_CONSUMERS),
            "enable.idempotence": True,
            "acks": "all",
        }
