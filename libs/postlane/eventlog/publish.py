"""An idempotent producer for programs without an event loop: records in, futures of (partition, offset) out.

It connects when first used and again after a fork. What was certainly not written and what may have been written
are kept apart: `Unreachable` and `TooLarge` mean that nothing was written, `AppendUnknown` that nobody knows.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from postlane.eventlog.errors import Fatal, LogError, Retriable, TooLarge, UnknownTopic, Unreachable
from postlane.eventlog.kafka_config import ClientConfig
from postlane.eventlog.kafka_errors import translate, translated
from postlane.eventlog.ports import Outgoing

CONNECT_TIMEOUT_S = 10.0
DELIVERY_TIMEOUT_S = 30.0
PROBE_TIMEOUT_S = 2.0  # of a cluster that was reached before
FAILED_FOR_S = 0.5  # a probe that failed speaks for those that come so soon after it
POLL_S = 0.1
ANY_PARTITION = -1  # RD_KAFKA_PARTITION_UA: the key decides
LIBRARY_LOG = logging.getLogger("postlane.eventlog.librdkafka")

_NOT_WRITTEN = frozenset({KafkaError._PURGE_QUEUE, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})
_MAYBE_WRITTEN = frozenset(
    {
        KafkaError._MSG_TIMED_OUT,
        KafkaError._PURGE_INFLIGHT,
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    }
)
# A child of fork() must neither use nor destroy its parent's client: the threads behind it are gone.
_left_by_parents: list[Producer] = []


class AppendUnknown(LogError):
    """No acknowledgement in time: the record may have been written or not."""


class SyncAppender:
    """Appends to one topic; may be shared by threads.

    `connect_timeout_s` bounds the first connection (and a probe after every broker was lost), `delivery_timeout_s`
    the wait for an acknowledgement by all in-sync replicas. The buffer is bounded by librdkafka's
    `queue.buffering.max.*` (here 100,000 records and 64 MiB); a full one makes `append_soon` wait.
    """

    def __init__(
        self,
        config: ClientConfig,
        topic: str,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        delivery_timeout_s: float = DELIVERY_TIMEOUT_S,
    ) -> None:
        self._config = config
        self.topic = topic
        self.connect_timeout_s = connect_timeout_s
        self.delivery_timeout_s = delivery_timeout_s
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        self._pid = 0
        self._unreachable = False  # every broker was lost, and none has answered since
        self._last_error = ""
        self._closed = False
        self._failure: tuple[float, LogError] | None = None  # when the last probe failed, monotonic

    def append(self, record: Outgoing, timeout_s: float | None = None) -> tuple[int, int]:
        """(partition, offset) once acknowledged; see `append_soon` for what it raises, also AppendUnknown."""
        future = self.append_soon(record)
        wait_s = self.delivery_timeout_s + 1.0 if timeout_s is None else timeout_s
        try:
            return future.result(wait_s)
        except TimeoutError:
            raise AppendUnknown(f"no acknowledgement within {wait_s:g} s{self._because()}") from None

    def append_soon(self, record: Outgoing) -> Future[tuple[int, int]]:
        """A future of (partition, offset). Waits only to connect, and while the buffer is full.

        Raises Unreachable, UnknownTopic, TooLarge, Retriable (buffer full all along) or Fatal, and then nothing was
        written. The future raises AppendUnknown, or one of these when that is certain.
        """
        producer = self._connected()
        deadline = time.monotonic() + self.delivery_timeout_s
        while True:
            future = self._hand_over(producer, record)
            if future is not None:
                return future
            if time.monotonic() > deadline:
                raise Retriable(
                    f"the buffer was full for {self.delivery_timeout_s:g} s, so this record was not taken"
                    + self._because()
                )
            producer.poll(0.01)

    def try_append(self, record: Outgoing) -> Future[tuple[int, int]] | None:
        """Like `append_soon`, but never waits: None when it would have to."""
        producer = self._producer
        if producer is None or self._unreachable or self._closed or self._pid != os.getpid():
            return None
        return self._hand_over(producer, record)

    @property
    def waiting(self) -> int:
        """Records that were handed over and not answered yet."""
        return 0 if self._producer is None else len(self._producer)

    def connect(self) -> None:
        """Reach the cluster now. Raises Unreachable, UnknownTopic or Fatal."""
        self._connected()

    def flush(self, timeout_s: float) -> int:
        """Wait until all that was handed over is answered; how many are not after `timeout_s`."""
        producer = self._producer
        if producer is None or self._pid != os.getpid():
            return 0
        return int(producer.flush(timeout_s))

    def close(self, timeout_s: float | None = None) -> int:
        """Flush, then end; what is still unanswered fails: (certainly not written: Unreachable; else
        AppendUnknown). Returns how many those are."""
        with self._lock:
            self._closed = True
            producer, self._producer = self._producer, None
        if producer is None or self._pid != os.getpid():
            return 0
        left = int(producer.flush(self.delivery_timeout_s if timeout_s is None else timeout_s))
        if left:
            producer.purge(in_queue=True, in_flight=True)
            producer.flush(1.0)
        return left

    # ------------------------------------------------------------------------------------------------- connection

    def _connected(self) -> Producer:
        producer = self._producer
        if producer is not None and not self._unreachable and self._pid == os.getpid() and not self._closed:
            return producer
        arrived = time.monotonic()
        with self._lock:
            if self._closed:
                raise Fatal("the appender has been closed")
            if self._failure is not None and self._failure[0] > arrived - FAILED_FOR_S:
                raise self._failure[1]  # another thread waited for it already, while we waited for that thread
            if self._producer is not None and self._pid != os.getpid():
                _left_by_parents.append(self._producer)
                self._producer = None
            if self._producer is None:
                return self._start()
            if self._unreachable:
                self._probe(self._producer, min(PROBE_TIMEOUT_S, self.connect_timeout_s))
                self._unreachable = False
            return self._producer

    def _start(self) -> Producer:
        conf: dict[str, Any] = {
            **self._config.appender(),
            "delivery.timeout.ms": max(1, int(self.delivery_timeout_s * 1000)),
            "error_cb": self._on_error,
        }
        conf.pop("message.timeout.ms", None)  # the older name of the same option
        try:
            producer = Producer(conf, logger=LIBRARY_LOG)
        except KafkaException as error:
            raise translated(error, "cannot make a Kafka client") from None
        self._probe(producer, self.connect_timeout_s)
        self._pid, self._unreachable, self._producer = os.getpid(), False, producer
        thread = threading.Thread(target=self._poll, args=(producer,), name="postlane-publish", daemon=True)
        thread.start()
        return producer

    def _probe(self, producer: Producer, timeout_s: float) -> None:
        """Ask for the cluster's topics: a question for one topic would create it on a lenient broker."""
        try:
            found = producer.list_topics(timeout=timeout_s).topics
        except KafkaException as error:
            reason = self._last_error or str(error.args[0].str())
            servers = self._config.bootstrap_servers
            raise self._failed(
                Unreachable(f"no Kafka broker answered at {servers} within {timeout_s:g} s: {reason}")
            ) from None
        if self.topic not in found:
            raise self._failed(UnknownTopic(f"there is no topic {self.topic}; run `postlane topics apply`"))

    def _failed(self, error: LogError) -> LogError:
        self._failure = time.monotonic(), error
        return error

    def _poll(self, producer: Producer) -> None:
        while self._producer is producer or len(producer):
            producer.poll(POLL_S)

    def _on_error(self, error: KafkaError) -> None:
        self._last_error = f"{error.name()}: {error.str()}"
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._unreachable = True
        if error.fatal():
            self._producer = None  # of no use any more; the next record gets a new one

    # ----------------------------------------------------------------------------------------------------- records

    def _hand_over(self, producer: Producer, record: Outgoing) -> Future[tuple[int, int]] | None:
        future: Future[tuple[int, int]] = Future()
        future.set_running_or_notify_cancel()  # a record that is on its way cannot be cancelled

        def answered(error: KafkaError | None, message: Any) -> None:
            if error is None:
                self._unreachable = False
                future.set_result((message.partition(), message.offset()))
            else:
                future.set_exception(self._meaning(error))

        partition = ANY_PARTITION if record.partition is None else record.partition
        try:
            producer.produce(
                record.topic, record.value, record.key, partition, on_delivery=answered, headers=list(record.headers)
            )
        except BufferError:
            return None
        except KafkaException as error:
            raise translated(error, f"append to {record.topic}") from None
        return future

    def _meaning(self, error: KafkaError) -> LogError:
        if error.code() in _MAYBE_WRITTEN:
            return AppendUnknown(
                f"no acknowledgement within {self.delivery_timeout_s:g} s ({error.name()})" + self._because()
            )
        if error.code() == KafkaError._PURGE_QUEUE:
            return Unreachable("closed before the record could be handed to a broker" + self._because())
        meaning = translate(error, f"append to {self.topic}")
        if error.code() in _NOT_WRITTEN or isinstance(meaning, TooLarge | Fatal | UnknownTopic):
            return meaning
        return AppendUnknown(str(meaning))

    def _because(self) -> str:
        return f"; last heard: {self._last_error}" if self._unreachable and self._last_error else ""
