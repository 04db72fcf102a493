"""A small world for the sender on the log in memory: virtual time, the real couriers and SMTP machine, servers that
are told what to answer and keep their own list of what they took."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client import CollectorRegistry

from postlane.core.books import Book
from postlane.core.events import AnyEvent, DispatchReady, MailContent
from postlane.core.identity import delivery_id, message_id_from_key
from postlane.core.policy import Config, Lane, Provider, Retry, Topics
from postlane.core.rules import Rules
from postlane.core.smtp_wire import Extensions
from postlane.eventlog.codec import decode, decode_event, decode_state, encode, headers
from postlane.eventlog.memory import EPOCH_MS, MemoryCluster, MemoryLog
from postlane.eventlog.memory_faults import Faults, ProcessDied
from postlane.eventlog.ports import Committed, Outgoing, Partition, Received
from postlane.eventlog.tables import ControlTable
from postlane.eventlog.topics import TopicNames, declare
from postlane.telemetry.metrics import SenderMetrics
from postlane.telemetry.tracing import OFF, Tracer
from postlane_sender.connection import Connection
from postlane_sender.courier import Pool
from postlane_sender.lane import Compose, Composed, LaneState, Recorder
from postlane_sender.link import Link
from postlane_sender.loop import LaneLoop
from postlane_sender.recorder import NoRecorder
from postlane_sender.session import ProviderDown, limits_of

NAMES = TopicNames("s.")
LANE = "transactional"
PARTITIONS = 2
TRACE = ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
_DELIVERY = re.compile(rb"X-Postlane-Delivery: (\S+)\r")
Answer = Callable[[str, str], str]  # (phase, recipient) -> a reply, "drop", "hang", or at the dot "take and drop"


def config(**changes: Any) -> Config:
    """Two providers, short waits; `changes` replace whole sections, `lane` and `provider` single settings."""
    lane = {"providers": ("primary", "backup"), "intent_ttl_s": 5, "drain_timeout_s": 8, **changes.pop("lane", {})}
    provider = {"host": "h", "tls": "none", "connections": 4, "breaker_failures": 3, **changes.pop("provider", {})}
    base: dict[str, Any] = {
        "lanes": {LANE: Lane(**lane)},
        "providers": {name: Provider(name=name, **provider) for name in ("primary", "backup")},
        "retry": Retry(first_s=2, factor=2, max_s=8, jitter=0, give_up_after=4, expire_after_s=3600),
        "topics": Topics(partitions=PARTITIONS),
    }
    return Config(**{**base, **changes})


class LoopClock:
    """The loop's time."""

    def now(self) -> datetime:
        return at(self.monotonic())

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(EPOCH_MS / 1000, UTC) + timedelta(seconds=seconds)


def mail(key: str, **changes: Any) -> DispatchReady:
    """A dispatch record; its recipient is `<key>@example.com`."""
    message = message_id_from_key("default", key)
    recipient = changes.pop("recipient", f"{key}@example.com")
    base: dict[str, Any] = {
        "delivery_id": delivery_id(message, recipient),
        "message_id": message,
        "recipient": recipient,
        "lane": LANE,
        "requested_at": at(0),
        "content": MailContent(sender="shop@example.org", subject=key, text="On its way."),
    }
    return DispatchReady(**{**base, **changes})


def compose(ready: DispatchReady) -> Composed:
    """The least that can be told apart at the server."""
    text = f"X-Postlane-Delivery: {ready.delivery_id}\r\n\r\n{ready.content.text}\r\n"
    return Composed("shop@example.org", ready.recipient, text.encode())


# ------------------------------------------------------------------------------------------------------------ servers


class Server:
    """A provider: answers what `answer` says, and knows what it took."""

    def __init__(self, name: str, *, pipelining: bool = True) -> None:
        self.name, self.pipelining = name, pipelining
        self.up = True
        self.answer: Answer = lambda phase, recipient: "250 ok"
        self.latency_s = 0.002
        self.took: Counter[str] = Counter()
        self.wires: list[Wire] = []
        self.opened = 0

    def down(self) -> None:
        self.up = False
        for wire in list(self.wires):
            wire.cut()

    async def open(self, link: Link) -> Connection:
        await asyncio.sleep(self.latency_s)
        if not self.up:
            raise ProviderDown(self.name, "connection refused")
        self.opened += 1
        wire = Wire(self)
        extensions = Extensions(pipelining=self.pipelining, eight_bit_mime=True, size=True)
        connection = Connection(wire, extensions, link, limits_of(link.provider), self.name)
        connection.start()
        return connection


class Wire(asyncio.Transport):
    """The client's end of a connection, and the server's session behind it."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server
        self._protocol: Any = None
        self._data = b""
        self._ins: deque[bytes] = deque()
        self._outs: deque[bytes] = deque()
        self._recipient = ""
        self._in_body = self._ended = False
        server.wires.append(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._ended

    def write(self, data: Any) -> None:
        self._ins.append(bytes(data))  # timers of one moment come in any order: each takes what is next
        asyncio.get_running_loop().call_later(self._server.latency_s, lambda: self._receive(self._ins.popleft()))

    def close(self) -> None:
        self._ended = True
        if self in self._server.wires:
            self._server.wires.remove(self)

    abort = close

    def cut(self) -> None:
        """The server is gone."""
        if not self._ended:
            self.close()
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def _receive(self, data: bytes) -> None:
        self._data += data
        while self._data and not self._ended:
            end = b"\r\n.\r\n" if self._in_body else b"\r\n"
            piece, found, rest = self._data.partition(end)
            if self._in_body and self._data.startswith(b".\r\n"):
                piece, found, rest = b"", b".", self._data[3:]
            if not found:
                return
            self._data = rest
            reply = self._dot(piece + b"\r\n") if self._in_body else self._command(piece)
            if reply == "drop":
                self.cut()
            elif reply == "hang":
                self._ended = True
            else:
                self._outs.append(reply.encode() + b"\r\n")
                asyncio.get_running_loop().call_later(self._server.latency_s, lambda: self._say(self._outs.popleft()))

    def _say(self, data: bytes) -> None:
        if not self._ended:
            self._protocol.data_received(data)
            if data.startswith(b"221"):
                self.close()

    def _command(self, line: bytes) -> str:
        word = line[:4].upper()
        if word == b"MAIL":
            return self._server.answer("mail", "")
        if word == b"RCPT":
            recipient = re.search(rb"<(.*)>", line)
            reply = self._server.answer("rcpt", recipient[1].decode() if recipient else "")
            self._recipient = recipient[1].decode() if recipient and reply.startswith("2") else ""
            return reply
        if word == b"DATA":
            if not self._recipient:
                return "503 no recipient"
            reply = self._server.answer("data", self._recipient)
            if reply.startswith("2"):
                self._in_body = True
                return "354 go on"
            return reply
        return "221 bye" if word == b"QUIT" else "250 ok"

    def _dot(self, body: bytes) -> str:
        self._in_body = False
        reply = self._server.answer("dot", self._recipient)
        if reply.startswith(("2", "take")):
            found = _DELIVERY.search(body)
            self._server.took[found[1].decode() if found else "?"] += 1
        return "drop" if reply.startswith("take") else reply


# -------------------------------------------------------------------------------------------------------------- world


class Running:
    """One sender process with one lane."""

    def __init__(self, world: World, name: str, faults: Faults | None, **options: Any) -> None:
        self.world, self.name = world, name
        self.log = MemoryLog(world.cluster, name, faults)
        self.lane = world.lane_state(self.log, name, **options)
        self.loop = LaneLoop(self.lane)
        self.pool: Any = self.lane.courier
        self.task = asyncio.get_running_loop().create_task(self._live())

    async def _live(self) -> None:
        try:
            await self.loop.start()
            await self.loop.run()
        except ProcessDied:
            pass

    async def stop(self) -> None:
        """SIGTERM."""
        self.loop.stop()
        await self.task

    async def kill(self) -> None:
        """SIGKILL: the process and its sockets are gone at once."""
        self.log.crash()
        self.lane.gate_open = False
        for link in self.pool.links:
            for conn in list(link.connections):
                conn._transport.close()
        self.task.cancel()
        await asyncio.wait({self.task})


class World:
    """A cluster, servers, and what can be read back."""

    def __init__(self, settings: Config | None = None, **options: Any) -> None:
        self.config = settings or config()
        self.cluster = MemoryCluster(**options)
        self._decoded: dict[tuple[int, int], AnyEvent] = {}
        self.cluster.create_topics(declare(NAMES, tuple(self.config.lanes), self.config.topics))
        self.servers = {name: Server(name) for name in self.config.providers}
        self.primary, self.backup = self.servers["primary"], self.servers["backup"]
        self.control = ControlTable()
        self.lives = 0

    def lane_state(
        self,
        log: MemoryLog,
        instance: str,
        *,
        recorder: Recorder | None = None,
        composer: Compose = compose,
        rules: Rules | None = None,
        tracer: Tracer = OFF,
        boot: str | None = None,
    ) -> LaneState:
        self.lives += 1
        lane = LaneState(
            name=LANE,
            policy=self.config.lanes[LANE],
            config=self.config,
            names=NAMES,
            log=log,
            clock=LoopClock(),
            dice=random.Random(self.lives),
            instance=instance,
            boot=boot or f"life-{self.lives}",
            compose=composer,
            control=self.control,
            recorder=recorder or NoRecorder(),
            metrics=SenderMetrics(CollectorRegistry()),
            rules=rules or Rules(),
            tracer=tracer,
            partitions=self.config.topics.partitions,
        )
        lane.courier = Pool(lane, lambda link: self.servers[link.name].open(link))
        return lane

    def sender(self, name: str = "s1", faults: Faults | None = None, **options: Any) -> Running:
        return Running(self, name, faults, **options)

    def put(self, ready: DispatchReady, partition: int = 0) -> DispatchReady:
        """One dispatch record, as the router writes it."""
        wire_headers = headers(DispatchReady, "test", f"{ready.delivery_id}/{ready.hop}", at(0), [TRACE])
        key = ready.message_id.encode()
        self.cluster.write(Outgoing(NAMES.dispatch(LANE), partition, key, encode(ready), wire_headers))
        return ready

    def put_many(self, count: int, prefix: str = "k", **changes: Any) -> list[DispatchReady]:
        partitions = self.config.topics.partitions
        return [self.put(mail(f"{prefix}{n}", **changes), n % partitions) for n in range(count)]

    async def delays(self) -> None:
        """The delay stage in small: moves what is due back into the lane, forever."""
        read: dict[Partition, int] = defaultdict(int)
        waiting: list[tuple[int, DispatchReady]] = []
        while True:
            for topic in [name for name in self.cluster.topics if ".delay." in name]:
                for log in self.cluster.topics[topic]:
                    for record in log.fetch(read[log.partition], 1_000_000, committed=True)[0]:
                        read[log.partition] = record.offset + 1
                        waiting.append((record.partition, decode(DispatchReady, record.value)))
            now = LoopClock().now()
            due = [(number, ready) for number, ready in waiting if ready.due_at is None or ready.due_at <= now]
            waiting = [item for item in waiting if item not in due] if due else waiting
            for number, ready in due:
                self.put(ready, number)
            await asyncio.sleep(0.05)

    # -- reading back

    def records(self, topic: str) -> list[Received]:
        """What a read_committed reader sees."""
        found: list[Received] = []
        for log in self.cluster.topics[topic]:
            found += log.fetch(log.start, 1_000_000, committed=True)[0]
        return found

    def events(self) -> dict[str, list[AnyEvent]]:
        """Events by delivery id, in order."""
        found: dict[str, list[AnyEvent]] = defaultdict(list)
        for record in self.records(NAMES.events):
            place = (record.partition, record.offset)
            if place not in self._decoded:  # asked again and again while time passes
                self._decoded[place] = decode_event(record.value)
            event = self._decoded[place]
            found[getattr(event, "delivery_id", "")].append(event)
        return found

    def kinds(self, ready: DispatchReady) -> list[str]:
        return [event.type for event in self.events()[ready.delivery_id]]

    def states(self) -> list[Any]:
        return [decode_state(record.value) for record in self.records(NAMES.state(LANE))]

    def committed(self) -> dict[int, Committed]:
        group = self.cluster.group(NAMES.sender_group(LANE))
        return {p.number: c for p, c in group.committed.items()}

    def took(self, ready: DispatchReady) -> int:
        """How often any server took a delivery."""
        return sum(server.took[ready.delivery_id] for server in self.servers.values())

    def end(self, partition: int) -> int:
        return self.cluster.log(Partition(NAMES.dispatch(LANE), partition)).end

    async def until(self, condition: Callable[[], bool], seconds: float = 60, every_s: float = 0.01) -> None:
        """Let time pass until the condition holds."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, "it did not happen in time"
            await asyncio.sleep(every_s)

    async def settled(self, seconds: float = 60) -> None:
        """Let time pass until O stands at the end of every partition of the lane."""

        def done() -> bool:
            found = self.committed()
            return all(found[n].offset >= self.end(n) for n in range(self.config.topics.partitions) if self.end(n))

        def tried() -> bool:
            try:
                return done()
            except KeyError:
                return False

        await self.until(tried, seconds)


def places(pool: Pool) -> dict[str, int]:
    """How many places of each provider are in use."""
    return {link.name: link.places for link in pool.links}


def entries(book: Book) -> list[str]:
    return [f"{entry.offset}:{entry.stage.name}" for entry in book.entries]
