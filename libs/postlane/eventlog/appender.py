"""An idempotent producer on Kafka without transactions: advisory records, and what publishers write."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from postlane.eventlog.errors import LogError, Retriable
from postlane.eventlog.kafka_config import LIBRARY_LOG, Conf
from postlane.eventlog.kafka_errors import describe, translate
from postlane.eventlog.ports import CLOSE_TIMEOUT_S, Outgoing
from postlane.eventlog.worker import Worker

_POLL_S = 0.1
_Outcome = tuple["asyncio.Future[tuple[int, int]]", KafkaError | None, int, int]
_log = logging.getLogger(__name__)


class KafkaAppender:
    """Fills `ports.Appender`. One thread serves delivery reports; a fatal error rebuilds the producer."""

    def __init__(self, conf: Conf, close_timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        self._conf = conf
        self._close_timeout_s = close_timeout_s
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._done: deque[_Outcome] = deque()
        self._waking = False
        self._closing = threading.Event()
        self._aside = Worker("postlane-flush")
        self.failed = 0  # records of append_soon that the broker did not acknowledge
        self._producer: Any = self._new()
        self._thread = threading.Thread(target=self._serve, name="postlane-append", daemon=True)
        self._thread.start()

    async def append(self, record: Outgoing) -> tuple[int, int]:
        future: asyncio.Future[tuple[int, int]] = self._loop.create_future()

        def delivered(error: KafkaError | None, message: Any) -> None:
            self._settled(future, error, message)

        self._produce(record, delivered)
        return await future

    def append_soon(self, record: Outgoing) -> None:
        self._produce(record, self._noted)

    async def flush(self, timeout_s: float) -> None:
        left = await self._aside.call(self._producer.flush, timeout_s)
        if left:
            raise Retriable(f"{left} records are not acknowledged after {timeout_s} s")

    async def close(self) -> None:
        if self._closing.is_set():
            return
        await self._aside.call(self._producer.flush, self._close_timeout_s)
        self._closing.set()
        await self._aside.call(self._thread.join)
        self._aside.stop()

    def _new(self) -> Any:
        try:
            return Producer({**self._conf, "error_cb": self._on_error}, logger=LIBRARY_LOG)
        except KafkaException as error:
            raise translate(error.args[0], "set up a producer") from error

    def _produce(self, record: Outgoing, delivered: Any) -> None:
        if self._closing.is_set():
            raise RuntimeError("the appender has been closed")
        named: dict[str, Any] = {} if record.partition is None else {"partition": record.partition}
        if record.timestamp_ms:
            named["timestamp"] = record.timestamp_ms
        try:
            self._producer.produce(
                record.topic, record.value, record.key, headers=list(record.headers), on_delivery=delivered, **named
            )
        except BufferError:
            raise Retriable("the producer's buffer is full; wait for acknowledgements") from None
        except KafkaException as error:
            raise self._failed(error.args[0], record.topic) from error

    def _failed(self, error: KafkaError, topic: str) -> LogError:
        if error.fatal() or error.code() == KafkaError._FATAL:
            # Idempotence is over for this instance only (e.g. its producer id expired): the next call has a new one.
            self._producer = self._new()
            return Retriable(f"append to {topic}: {describe(error)}; it may have been written")
        return translate(error, f"append to {topic}")

    # -- on the serving thread

    def _serve(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(_POLL_S)

    def _settled(self, future: asyncio.Future[tuple[int, int]], error: KafkaError | None, message: Any) -> None:
        where = (message.partition(), message.offset()) if error is None else (-1, -1)
        with self._lock:
            self._done.append((future, error, *where))
            wake, self._waking = not self._waking, True
        if wake:  # one wake-up of the loop for many reports
            try:
                self._loop.call_soon_threadsafe(self._resolve, message.topic())
            except RuntimeError:  # the loop is closed
                self._closing.set()

    def _resolve(self, topic: str) -> None:
        with self._lock:
            done, self._done = self._done, deque()
            self._waking = False
        for future, error, partition, offset in done:
            if future.done():
                continue
            if error is None:
                future.set_result((partition, offset))
            else:
                future.set_exception(self._failed(error, topic))

    def _noted(self, error: KafkaError | None, message: Any) -> None:
        if error is not None:
            self.failed += 1
            _log.warning("append to %s: %s", message.topic(), describe(error))

    def _on_error(self, error: KafkaError) -> None:
        _log.debug("appender: %s", describe(error))
