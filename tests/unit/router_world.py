"""A small world for the router on the in-memory log: virtual time, requests in, books out."""

from __future__ import annotations

import asyncio
import selectors
from collections import defaultdict
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from postlane.core.events import AnyEvent, DispatchReady, Fact, MailRequested
from postlane.core.identity import message_id_from_key
from postlane.core.policy import Config, Topics
from postlane.eventlog.codec import decode, decode_event, encode, headers
from postlane.eventlog.errors import Retriable
from postlane.eventlog.memory import EPOCH_MS, MemoryCluster, MemoryLog
from postlane.eventlog.memory_faults import Faults, ProcessDied
from postlane.eventlog.ports import Outgoing, Partition, Received
from postlane.eventlog.topics import TopicNames, declare
from postlane.telemetry.metrics import RouterMetrics
from postlane_router.config import RouterSettings
from postlane_router.loop import Router
from postlane_router.store import MemoryStore, SeenStore

NAMES = TopicNames("w.")
PARTITIONS = 3
TRACE = ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


class _Selector(selectors.DefaultSelector):
    """Instead of waiting, lets the time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing will ever happen again")
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is virtual."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


def virtually(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.get_loop().set_exception_handler(_not_of_the_dead)
        return runner.run(main)


def _not_of_the_dead(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Nobody retrieves what ended the tasks of a killed process."""
    if not isinstance(context.get("exception"), ProcessDied):
        loop.default_exception_handler(context)


class LoopClock:
    """The loop's time, as the in-memory log stamps records with it."""

    def now(self) -> datetime:
        return at(asyncio.get_running_loop().time())


def at(seconds: float) -> datetime:
    """A moment of the virtual world."""
    return datetime.fromtimestamp(EPOCH_MS / 1000, UTC) + timedelta(seconds=seconds)


class Running:
    """One router process."""

    def __init__(
        self, world: World, name: str, store: SeenStore | None, faults: Faults | None, **settings: Any
    ) -> None:
        self.name = name
        self.store = store or MemoryStore()
        self.log = MemoryLog(world.cluster, name, faults)
        self.router = Router(
            self.log,
            NAMES,
            world.config,
            RouterSettings(instance=name, store_path=Path("unused"), **settings),
            self.store,
            LoopClock(),
            RouterMetrics(CollectorRegistry()),
        )
        self.task = asyncio.get_running_loop().create_task(self._live())

    async def _live(self) -> None:
        """As `postlane.service` lives it."""
        try:
            while True:
                try:
                    await self.router.start()
                    break
                except Retriable:
                    await asyncio.sleep(0.25)
            await self.router.run()
        except ProcessDied:
            pass

    def is_down(self) -> bool:
        """Dead, even where a task of it has not noticed yet, or ended."""
        return self.log.process.is_dead or self.task.done()

    async def stop(self) -> None:
        """SIGTERM."""
        await self.router.stop()
        await self.task

    async def kill(self) -> None:
        """SIGKILL."""
        self.log.crash()
        self.task.cancel()
        await asyncio.wait({self.task})


class World:
    """A cluster, publishers, and what can be read back."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config(topics=Topics(partitions=PARTITIONS))
        self.cluster = MemoryCluster()
        self.cluster.create_topics(declare(NAMES, tuple(self.config.lanes), Topics(partitions=PARTITIONS)))

    def router(
        self, name: str = "r1", store: SeenStore | None = None, faults: Faults | None = None, **settings: Any
    ) -> Running:
        return Running(self, name, store, faults, **settings)

    def publish(self, key: str, **changes: Any) -> str:
        """One request; returns its message id."""
        message = request(key, **changes)
        wire_headers = headers(MailRequested, "test", message.message_id, message.requested_at, [TRACE])
        self.cluster.write(Outgoing(NAMES.requests, None, message.message_id.encode(), encode(message), wire_headers))
        return message.message_id

    def put(self, topic: str, key: str, fact: Fact | None) -> None:
        self.cluster.write(Outgoing(topic, None, key.encode(), None if fact is None else encode(fact)))

    def records(self, topic: str) -> list[Received]:
        """What a read_committed reader sees."""
        found: list[Received] = []
        for log in self.cluster.topics[topic]:
            found += log.fetch(log.start, 1_000_000, committed=True)[0]
        return found

    def dispatched(self, lane: str = "transactional") -> dict[str, list[DispatchReady]]:
        """Dispatch records by message id."""
        found: dict[str, list[DispatchReady]] = defaultdict(list)
        for record in self.records(NAMES.dispatch(lane)):
            ready = decode(DispatchReady, record.value)
            found[ready.message_id].append(ready)
        return found

    def events(self) -> dict[str, list[AnyEvent]]:
        """Events by message id, in order."""
        found: dict[str, list[AnyEvent]] = defaultdict(list)
        for record in self.records(NAMES.events):
            event = decode_event(record.value)
            found[event.message_id or ""].append(event)
        return found

    def kinds(self, message_id: str) -> list[str]:
        return [event.type for event in self.events()[message_id]]

    def committed(self) -> dict[Partition, int]:
        return {p: c.offset for p, c in self.cluster.group(NAMES.router_group).committed.items()}

    async def until(self, condition: Callable[[], bool], seconds: float = 60, every_s: float = 0.005) -> None:
        """Let time pass until the condition holds."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, "it did not happen in time"
            await asyncio.sleep(every_s)

    async def all_read(self, seconds: float = 60) -> None:
        """Let time pass until every request was read, in a committed transaction."""

        def done() -> bool:
            committed = self.committed()
            logs = self.cluster.topics[NAMES.requests]
            return all(committed.get(log.partition, 0) >= log.end for log in logs)

        await self.until(done, seconds, 0.02)


def request(key: str, **changes: Any) -> MailRequested:
    base: dict[str, Any] = {
        "message_id": message_id_from_key("default", key),
        "key": key,
        "sender": "shop@example.org",
        "to": ("ada@example.com",),
        "subject": f"Order {key}",
        "text": "On its way.",
        "requested_at": LoopClock().now(),
    }
    return MailRequested(**{**base, **changes})
