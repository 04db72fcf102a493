"""A transactional producer on Kafka: one transaction at a time, and an exact word on what came of it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from postlane.eventlog.coordinator import OPTIONS, CoordinatorWatch
from postlane.eventlog.errors import Aborted, CommitUnknown, Fatal, Fenced, LogError, Retriable, TooLarge, Unfenced
from postlane.eventlog.fence import check_fence
from postlane.eventlog.kafka_config import Conf
from postlane.eventlog.kafka_errors import FENCED, UNREACHABLE, describe, translate
from postlane.eventlog.ports import Outgoing, Partition, Transaction
from postlane.eventlog.records import read_token
from postlane.eventlog.worker import Worker

INIT_TIMEOUT_S = 15.0
OFFSETS_TIMEOUT_S = 10.0
COMMIT_TIMEOUT_S = 15.0
ABORT_TIMEOUT_S = 10.0
CALL_TIMEOUT_S = 90.0  # more than the time-outs of one call together
_BUFFER_TIMEOUT_S = 10.0
T = TypeVar("T")
_ANY_PARTITION = -1  # RD_KAFKA_PARTITION_UA: the key decides
_log = logging.getLogger(__name__)


class KafkaTransactor:
    """Fills `ports.Transactor`. The library's blocking calls run in one thread."""

    def __init__(self, conf: Conf) -> None:
        self._conf: Conf = {**conf, **OPTIONS}
        self._id = str(conf["transactional.id"])
        self._worker = Worker(f"postlane-commit-{self._id}")
        self._producer: Any = None
        self._usable = False
        self._closed = False
        self.before_commit: Callable[[], None] | None = None  # tests: what is done when all but the commit is
        self._coordinator = CoordinatorWatch()
        self._ends: dict[Partition, int] = {}
        self._lost: KafkaError | None = None
        self._began = 0.0  # monotonic: when the transaction was begun
        self._open_max_s = int(conf["transaction.timeout.ms"]) / 1000

    async def begin(self) -> None:
        """InitProducerId: fences an older process of this id. Raises Retriable, Fenced, Fatal."""
        await self._bounded(self._worker.call(self._build))

    async def commit(self, transaction: Transaction) -> Mapping[Partition, int]:
        outcome = self._worker.call(self._commit, transaction)
        try:
            return await self._bounded(outcome)
        except asyncio.CancelledError:
            # It goes on without its caller, who will not learn what came of it: as an unknown commit.
            self._worker.call(self._give_up)
            outcome.add_done_callback(_look_at)
            raise

    async def rebuild(self) -> None:
        await self._bounded(self._worker.call(self._build))

    async def _bounded(self, outcome: asyncio.Future[T]) -> T:
        """Every call of the library has a time-out of its own; should one not keep it, the process is to end."""
        done, _ = await asyncio.wait({outcome}, timeout=CALL_TIMEOUT_S)
        if not done:
            outcome.add_done_callback(_look_at)
            raise Fatal(f"{self._id}: the library has not answered for {CALL_TIMEOUT_S:.0f} s")
        return outcome.result()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await self._worker.call(self._drop)
        finally:
            self._worker.stop()

    # -- everything below runs on the worker's thread

    def _give_up(self) -> None:
        self._usable = False

    def _build(self) -> None:
        self._drop()
        self._coordinator = CoordinatorWatch()  # the old producer's last words are not this one's
        try:
            producer = Producer({**self._conf, "error_cb": self._on_error}, logger=self._coordinator.logger)
            producer.init_transactions(INIT_TIMEOUT_S)
        except KafkaException as error:
            raise _setting_up(error.args[0], self._id) from error
        self._producer, self._usable = producer, True

    def _drop(self) -> None:
        """Let the old producer go without waiting for what it still holds: the next InitProducerId settles that."""
        producer, self._producer, self._usable = self._producer, None, False
        if producer is not None:
            try:
                producer.purge()
                producer.poll(0)
            except KafkaException as error:  # a fatal error is raised by every call: it ends with this producer
                _log.debug("%s: let go with %s", self._id, describe(error.args[0]))
            # Letting it go can wait for a broker that is gone; nobody has to wait for that.
            threading.Thread(target=[producer].clear, name=f"postlane-let-go-{self._id}", daemon=True).start()
            del producer

    def _commit(self, transaction: Transaction) -> dict[Partition, int]:
        """1 refuse what is unfenced, 2 begin, 3 produce, 4 offsets, 5 commit."""
        check_fence(transaction)
        _check_token(transaction)
        if not transaction.records and not transaction.offsets:
            return {}
        if not self._usable:
            raise CommitUnknown(f"{self._id}: the producer was given up; rebuild it first")
        self._producer.poll(0)
        if self._coordinator.lost:
            # librdkafka resends EndTxn by itself, and a late one would end the next transaction (librdkafka#5423).
            self._rebuild_quietly()
        self._ends, self._lost = {}, None
        try:
            self._began = time.monotonic()
            self._producer.begin_transaction()
            self._produce(transaction.records)
            self._send_offsets(transaction)
            if self.before_commit is not None:
                self.before_commit()
            self._producer.commit_transaction(COMMIT_TIMEOUT_S)
        except KafkaException as error:
            raise self._failed(error.args[0]) from error
        except BufferError:
            raise self._abort(f"no room for the records in {_BUFFER_TIMEOUT_S} s") from None
        self._producer.poll(0)
        return self._ends

    def _rebuild_quietly(self) -> None:
        try:
            self._build()
        except Retriable as error:
            self._usable = False
            raise Aborted(f"{self._id}: not begun: {error}") from error

    def _produce(self, records: Sequence[Outgoing]) -> None:
        """Only the last record of each partition reports back: it tells the end, and a failure of any fails commit."""
        produce, delivered = self._producer.produce, self._delivered
        closing = set(map(id, {(r.topic, r.partition): r for r in records}.values()))
        for record in records:
            partition, headers = record.partition, record.headers
            if type(headers) is not list:
                headers = list(headers)
            report = delivered if partition is None or id(record) in closing else None
            number = _ANY_PARTITION if partition is None else partition
            at = record.timestamp_ms  # 0 is the library's word for now
            try:
                produce(
                    record.topic, record.value, record.key, number, on_delivery=report, timestamp=at, headers=headers
                )
            except BufferError:
                self._wait_for_room(record, number, report)

    def _wait_for_room(self, record: Outgoing, number: int, report: Any) -> None:
        deadline = time.monotonic() + _BUFFER_TIMEOUT_S
        headers = list(record.headers)
        while True:
            self._producer.poll(0.01)
            try:
                self._producer.produce(
                    record.topic,
                    record.value,
                    record.key,
                    number,
                    on_delivery=report,
                    timestamp=record.timestamp_ms,
                    headers=headers,
                )
                return
            except BufferError:
                if time.monotonic() > deadline:
                    raise

    def _delivered(self, error: KafkaError | None, message: Any) -> None:
        if error is not None:
            self._lost = error
            return
        partition = Partition(message.topic(), message.partition())
        self._ends[partition] = max(self._ends.get(partition, 0), message.offset() + 1)

    def _send_offsets(self, transaction: Transaction) -> None:
        if transaction.offsets and transaction.membership is not None:
            positions = [
                TopicPartition(p.topic, p.number, committed.offset, committed.metadata)
                for p, committed in transaction.offsets.items()
            ]
            self._producer.send_offsets_to_transaction(positions, transaction.membership.token, OFFSETS_TIMEOUT_S)

    def _on_error(self, error: KafkaError) -> None:
        _log.debug("%s: %s", self._id, describe(error))

    # -- what came of it

    def _failed(self, error: KafkaError) -> LogError:
        """The word for the caller; afterwards the producer is either clean or given up."""
        code = error.code()
        text = f"{self._id}: {describe(error)}"
        if code == KafkaError.FENCED_INSTANCE_ID:
            self._abort(text)
            return Fenced(f"{text}; another process has this instance id")
        if error.fatal() and code in FENCED:
            self._usable = False
            return self._fenced(text)
        if error.txn_requires_abort():
            return self._abort(text, error)
        if code == KafkaError.MSG_SIZE_TOO_LARGE and not error.fatal():
            return self._abort(text, error)  # refused by `produce` itself
        self._usable = False
        if code in (KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED):
            return Fatal(text)
        return CommitUnknown(f"{text}; rebuild, and read again what was written")

    def _fenced(self, text: str) -> Fenced:
        """By another process, or by the coordinator, which bumps the epoch when a transaction is open for too long; the
        library tells both in the same words, so either ends the process."""
        open_s = time.monotonic() - self._began
        if open_s < self._open_max_s:
            return Fenced(f"{text}; another process has this transactional id")
        return Fenced(
            f"{text}; the transaction was open for {open_s:.0f} s, longer than transaction.timeout.ms: the coordinator "
            "ended it, unless another process has this transactional id"
        )

    def _abort(self, text: str, cause: KafkaError | None = None) -> LogError:
        try:
            if self._lost is None and not self._ends:
                # An abort before AddPartitionsToTxn is processed can be fatal (librdkafka#4849): await one report.
                self._await_report()
            self._producer.abort_transaction(ABORT_TIMEOUT_S)
        except KafkaException as error:
            self._usable = False
            if error.args[0].fatal() and error.args[0].code() in FENCED:
                return self._fenced(f"{text}; then {describe(error.args[0])}")
            return CommitUnknown(f"{text}; the abort failed ({describe(error.args[0])}): rebuild, and read again")
        codes = {e.code() for e in (cause, self._lost) if e is not None}
        if KafkaError.MSG_SIZE_TOO_LARGE in codes or KafkaError.RECORD_LIST_TOO_LARGE in codes:
            return TooLarge(f"{text}; nothing of the transaction was written")
        return Aborted(f"{text}; nothing of it happened")

    def _await_report(self) -> None:
        self._producer.flush(2.0)


def _check_token(transaction: Transaction) -> None:
    """Raises Unfenced when the token says something else than the membership around it."""
    membership = transaction.membership
    if membership is None or not transaction.offsets:
        return
    try:
        said = read_token(membership.token)
    except ValueError as error:
        raise Unfenced(str(error)) from None
    if said != (membership.group, membership.generation, membership.member_id):
        raise Unfenced(f"group {membership.group}: the token is of generation {said[1]}, member {said[2]!r}")


def _setting_up(error: KafkaError, transactional_id: str) -> LogError:
    doing = f"set up the producer {transactional_id}"
    if error.retriable() or error.code() in UNREACHABLE:
        return Retriable(f"{doing}: {describe(error)}")
    return translate(error, doing)


def _look_at(outcome: asyncio.Future[Any]) -> None:
    """Nobody waits for it any more; without this the loop would complain of an exception never retrieved."""
    if not outcome.cancelled():
        outcome.exception()
