"""A member of a consumer group on Kafka (classic protocol, range, read_committed).

Every call of the library runs on one poll thread: since confluent-kafka 2.16 a consumer lets one thread in at a time,
and a call from another one would wait until the callback in progress has returned. Rebalance callbacks run on it too,
inside `consume`, and hand over to the caller's event loop; the thread waits, so that a partition is let go only when
the listener has returned, and meanwhile answers what the listener asks (`committed`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import queue
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException

from postlane.eventlog.errors import Fatal, Fenced, LogError, Retriable
from postlane.eventlog.flow import Flows
from postlane.eventlog.kafka_config import LIBRARY_LOG, Conf
from postlane.eventlog.kafka_errors import describe, translate, translated
from postlane.eventlog.ports import Committed, Listener, Membership, Partition, Received
from postlane.eventlog.positions import Unstable, committed_of
from postlane.eventlog.records import read_token, received, wire_partitions
from postlane.eventlog.worker import Worker

_SLICE_S = 0.02  # how long a waiting fetch may be deaf to start, pause and resume
_RETRY_SLICE_S = 0.002
_COMMITTED_TIMEOUT_S = 5.0
_COMMITTED_TRIES_MAX = 10
_COMMITTED_WAIT_S = 0.1
_log = logging.getLogger(__name__)
Leave = Callable[[str, str, str], Awaitable[None]]  # group, instance id, member id
_Question = tuple[list[Partition], "concurrent.futures.Future[dict[Partition, Committed | None] | None]"]


class KafkaMember:
    """Fills `ports.Member`."""

    def __init__(self, conf: Conf, topics: Sequence[str], listener: Listener, leave: Leave) -> None:
        self._listener = listener
        self._leave = leave
        self._member_id = ""
        self._loop = asyncio.get_running_loop()
        self._group = str(conf["group.id"])
        self._instance_id: str | None = conf.get("group.instance.id")
        self._callback_timeout_s = int(conf["max.poll.interval.ms"]) / 1000 * 0.9
        self._worker = Worker(f"postlane-poll-{self._group}")
        self._asked: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._flows = Flows()
        self._membership: Membership | None = None
        self._fetch: asyncio.Future[tuple[int, list[Received]]] | None = None
        self._polling = False
        self._failure: BaseException | None = None
        self._over: Fatal | None = None
        self._closed = False
        try:
            self._consumer = Consumer({**conf, "error_cb": self._on_error}, logger=LIBRARY_LOG)
            self._consumer.subscribe(
                list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
        except KafkaException as error:
            raise translate(error.args[0], f"join group {self._group}") from error

    @property
    def membership(self) -> Membership | None:
        return self._membership

    # -- records

    async def poll(self, max_records: int, timeout_s: float) -> Sequence[Received]:
        kept = self._flows.take_kept(max_records)
        if kept:
            return kept
        if self._fetch is None:
            self._fetch = self._worker.call(self._consume, max_records, timeout_s)
        fetch = self._fetch
        if self._polling:
            raise RuntimeError("poll is already running")
        self._polling = True
        try:
            # A cancelled caller leaves the fetch to the next one: its records must not be lost.
            await asyncio.wait([fetch])
        finally:
            self._polling = False
        self._fetch = None
        error = fetch.exception()
        if error is not None:
            raise translated(error, f"poll group {self._group}") from error
        moves, records = fetch.result()
        return self._flows.sort(records, moves)

    def _consume(self, limit: int, timeout_s: float) -> tuple[int, list[Received]]:
        """On the poll thread. `consume(n)` of the library waits for all n, so: wait for one, take the rest."""
        deadline = time.monotonic() + timeout_s
        if self._over is not None:
            raise self._over  # whoever asks again must not get what lies behind it
        while True:
            self._answer_all()
            slice_s = _SLICE_S if self._flows.apply(self._consumer) else _RETRY_SLICE_S
            moves = self._flows.moves
            remaining_s = deadline - time.monotonic()
            messages = self._consumer.consume(1, max(0.0, min(slice_s, remaining_s)))
            if messages and limit > 1:
                messages += self._consumer.consume(limit - 1, 0)
            records = self._sorted_out(messages) if messages else []
            if isinstance(self._failure, Fatal):
                self._over = self._failure
            if self._failure is not None and (not records or self._over):
                failure, self._failure = self._failure, None
                raise failure
            if records or remaining_s <= 0:
                return moves, records

    def _sorted_out(self, messages: list[Any]) -> list[Received]:
        records = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(received(message))
            elif error.code() == KafkaError._BAD_MSG:
                where = f"{message.topic()}[{message.partition()}] at {message.offset()}"
                self._failure = translate(error, f"read {where}")
                break  # the library goes on behind it, and what it holds would be passed over
            else:
                self._note(error, message)
        return records

    def _note(self, error: KafkaError, message: Any) -> None:
        """An error among the messages: raised by the poll that has no records to hand over."""
        code = error.code()
        if code in (KafkaError._PARTITION_EOF, KafkaError._MAX_POLL_EXCEEDED):
            return  # after an exceeded poll interval the library says `lost`, and joins again
        if message.topic() is not None and not self._flows.is_started(message.topic(), message.partition()):
            return  # about a position that nobody asked for
        where = f"{message.topic()}[{message.partition()}]" if message.topic() else f"group {self._group}"
        failure = self._fatal(error) if code == KafkaError._FATAL else translate(error, f"read {where}")
        if self._failure is None or isinstance(failure, (Fenced, Fatal)):
            self._failure = failure

    # -- flow

    def start(self, partition: Partition, offset: int) -> None:
        if offset < 0:
            raise ValueError(f"{partition}: start at {offset}; an explicit offset is needed")
        if not self._flows.start(partition, offset):
            _log.debug("%s is no longer ours: not started", partition)

    def pause(self, partitions: Collection[Partition]) -> None:
        self._flows.set_running(partitions, False)

    def resume(self, partitions: Collection[Partition]) -> None:
        self._flows.set_running(partitions, True)

    # -- positions

    async def committed(self, partitions: Collection[Partition]) -> Mapping[Partition, Committed | None]:
        wanted = sorted(partitions)
        for _ in range(_COMMITTED_TRIES_MAX):
            answer = await self._ask(wanted)
            if answer is not None:
                return answer
            await asyncio.sleep(_COMMITTED_WAIT_S)
        raise Retriable(f"group {self._group}: committed offsets stay unstable (a transaction is pending); ask again")

    async def _ask(self, wanted: list[Partition]) -> dict[Partition, Committed | None] | None:
        """Put to the poll thread, whether it is idle, fetching, or waiting for the listener."""
        question: _Question = (wanted, concurrent.futures.Future())
        self._asked.put(question)
        if not self._closed:
            self._worker.call(self._answer_all)
        return await asyncio.wrap_future(question[1])

    def _answer_all(self) -> None:
        while not self._asked.empty():
            self._answer(self._asked.get())

    def _answer(self, question: _Question | None) -> None:
        if question is None or not question[1].set_running_or_notify_cancel():
            return
        try:
            question[1].set_result(self._ask_committed(question[0]))
        except BaseException as error:  # it belongs to the asker, whatever it is
            question[1].set_exception(error)

    def _ask_committed(self, wanted: list[Partition]) -> dict[Partition, Committed | None] | None:
        """None while any of them is unstable."""
        try:
            found = committed_of(self._consumer, self._group, wanted, _COMMITTED_TIMEOUT_S)
        except Unstable:
            return None
        return {partition: found.get(partition) for partition in wanted}

    # -- ownership: called by the library inside consume() and close(), on the poll thread

    def _on_assign(self, consumer: Any, partitions: list[Any]) -> None:
        token = consumer.consumer_group_metadata()
        _, generation, member_id = read_token(token)
        added = frozenset(Partition(tp.topic, tp.partition) for tp in partitions)
        # Paused, and at an absolute offset, which costs no look-up: the answer to one for a logical offset (the end,
        # the beginning) can come late, after the seek of `start`, and silently move the position past records.
        consumer.assign(wire_partitions(sorted(added), 0))
        consumer.pause(wire_partitions(sorted(added), 0))
        self._member_id = member_id
        membership = Membership(self._group, generation, member_id, added, token)
        self._hand_over(lambda: self._assigned(membership, added))

    def _on_revoke(self, consumer: Any, partitions: list[Any]) -> None:
        removed = frozenset(Partition(tp.topic, tp.partition) for tp in partitions)
        self._hand_over(lambda: self._gone(self._listener.revoked(removed), removed, after=True))
        consumer.unassign()

    def _on_lost(self, consumer: Any, partitions: list[Any]) -> None:
        removed = frozenset(Partition(tp.topic, tp.partition) for tp in partitions)
        self._hand_over(lambda: self._gone(self._listener.lost(removed), removed, after=False))
        consumer.unassign()

    async def _assigned(self, membership: Membership, added: frozenset[Partition]) -> None:
        self._flows.add(added)
        self._membership = membership
        await self._listener.assigned(membership, added)

    async def _gone(self, told: Coroutine[Any, Any, None], removed: frozenset[Partition], *, after: bool) -> None:
        """Nothing more is delivered; under `revoked` the membership still holds until the listener has returned."""
        self._flows.remove(removed)
        if not after:
            self._membership = None
        try:
            await told
        finally:
            self._membership = None

    def _hand_over(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run on the caller's loop and wait. What goes wrong there is raised by `poll`, not swallowed."""
        try:
            future = asyncio.run_coroutine_threadsafe(call(), self._loop)
        except RuntimeError as error:  # the loop is closed: the process is ending
            self._failure = error
            return
        future.add_done_callback(lambda _: self._asked.put(None))
        deadline = time.monotonic() + self._callback_timeout_s
        while not future.done():
            try:
                self._answer(self._asked.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                future.cancel()
                self._failure = Fatal(
                    f"group {self._group}: the listener did not return in {self._callback_timeout_s} s"
                )
                return
        try:
            future.result()
        except (Exception, concurrent.futures.CancelledError) as error:
            self._failure = error

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._FATAL or error.fatal():
            self._failure = self._fatal(error)
        else:
            _log.debug("group %s: %s", self._group, describe(error))

    def _fatal(self, error: KafkaError) -> LogError:
        if self._instance_id is not None and "fenced" in error.str().lower():
            return Fenced(f"group {self._group}: another process has the instance id {self._instance_id}")
        return Fatal(f"group {self._group}: {describe(error)}")

    # -- end

    async def close(self, *, leave: bool = False) -> None:
        if self._closed:
            return
        self._closed = True
        if self._fetch is not None:
            await asyncio.wait([self._fetch])
        try:
            await self._worker.call(self._consumer.close)
        finally:
            self._worker.stop()
        if leave and self._instance_id is not None and self._member_id:
            await self._take_out()
        if self._failure is not None and not isinstance(self._failure, Fenced):
            failure, self._failure = self._failure, None
            raise translated(failure, f"leave group {self._group}")

    async def _take_out(self) -> None:
        """Best effort: what cannot be taken out now waits for the session timeout, as without `leave`."""
        try:
            await self._leave(self._group, self._instance_id or "", self._member_id)
        except LogError as error:
            _log.warning("static member %s stays until its session times out: %s", self._instance_id, error)
