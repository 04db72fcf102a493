"""A simulated SMTP provider and the wire to it. It keeps its own ledger and shares no code with the sender."""

from __future__ import annotations

import asyncio
import re
from collections import Counter, deque
from collections.abc import Callable
from contextvars import Context, copy_context
from hashlib import blake2b
from random import Random
from typing import Any

from postlane.core.smtp_wire import Extensions
from postlane_sender.connection import Connection, Listener, SessionLimits
from postlane_sender.session import ProviderDown
from tests.simulation.history import History
from tests.simulation.lives import Life, current

_DELIVERY = re.compile(rb"^X-Postlane-Delivery: (\S+)\r$", re.MULTILINE)
BodyWritten = Callable[[str, str], None]  # (delivery id, instance)


class Provider:
    """One server: accepts what it is asked to, unless `weights` (fault -> probability per mail) say otherwise."""

    def __init__(self, name: str, dice: Random, history: History, on_body: BodyWritten) -> None:
        self.name, self.dice, self.history, self.on_body = name, dice, history, on_body
        self.up = True
        self.weights: dict[str, float] = {}
        self.accepted: Counter[str] = Counter()  # by delivery id
        self.bytes: dict[str, set[str]] = {}  # digests of what was accepted, by delivery id
        self.wires: list[Wire] = []

    def fault(self) -> str:
        """What goes wrong with the next mail."""
        roll = self.dice.random()
        for name, weight in self.weights.items():
            roll -= weight
            if roll < 0:
                return name
        return ""

    def accept(self, body: bytes) -> None:
        """Responsibility is taken."""
        found = _DELIVERY.search(body)
        ident = found[1].decode() if found else "?"
        self.accepted[ident] += 1
        self.bytes.setdefault(ident, set()).add(blake2b(body, digest_size=8).hexdigest())
        self.history.say(self.name, f"accepted {ident}")

    def down(self) -> None:
        """An outage: every session ends, none can be opened."""
        self.up = False
        for wire in list(self.wires):
            wire.cut()


class Wire(asyncio.Transport):
    """The client's end of a connection, with the server's session behind it; both ways take random time."""

    def __init__(self, provider: Provider, life: Life, dice: Random) -> None:
        super().__init__()
        self._provider, self._life, self._dice = provider, life, dice
        self._loop = asyncio.get_running_loop()
        self._context: Context = copy_context()
        self._protocol: Any = None
        self._open = True
        self._up_at = self._down_at = 0.0
        self._up: deque[bytes] = deque()  # under way, in order: timers of one moment come in any
        self._down: deque[bytes] = deque()
        self._session = _Session(provider)
        provider.wires.append(self)

    # -- asyncio.Transport, as far as a Connection uses it

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_write_buffer_size(self) -> int:
        return 0

    @property
    def busy(self) -> bool:
        """Whether something is on its way to the server."""
        return bool(self._up)

    def is_closing(self) -> bool:
        return not self._open

    def write(self, data: Any) -> None:
        if not self._open or self._life.dead:
            return
        found = _DELIVERY.search(data)
        if found:
            self._provider.on_body(found[1].decode(), self._life.name)
        self._up_at = max(self._up_at, self._loop.time() + self._latency())
        self._up.append(bytes(data))
        self._loop.call_at(self._up_at, self._arrived, context=Context())

    def close(self) -> None:
        self._open = False
        if self in self._provider.wires:
            self._provider.wires.remove(self)

    abort = close

    # -- the way

    def _latency(self) -> float:
        return 0.001 + self._dice.random() * 0.02

    def _arrived(self) -> None:
        """At the server, whatever has become of the client since."""
        for answer in self._session.receive(self._up.popleft()):
            if answer is None:
                self.cut()
                return
            self._answer(answer)

    def _answer(self, answer: bytes) -> None:
        if self._session.slow_s:
            self._down_at = max(self._down_at, self._loop.time() + self._session.slow_s)
            self._session.slow_s = 0.0
        self._down_at = max(self._down_at, self._loop.time() + self._latency())
        self._down.append(answer)
        self._loop.call_at(self._down_at, self._deliver, context=self._context)

    def _deliver(self) -> None:
        data = self._down.popleft()
        if self._open:
            self._protocol.data_received(data)

    def cut(self) -> None:
        """The connection is gone; the client learns of it."""
        self._session.ended = True
        if self in self._provider.wires:
            self._provider.wires.remove(self)
        self._down_at = max(self._down_at, self._loop.time()) + self._latency()
        self._loop.call_at(self._down_at, self._lost, context=self._context)

    def _lost(self) -> None:
        if self._open:
            self._open = False
            self._protocol.connection_lost(None)


class _Session:
    """The server's side: command by command, answers in order; None is "the connection is dropped here"."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._data = b""
        self._in_body = False
        self._fault = ""
        self._accepted_rcpt = False
        self.ended = False
        self.slow_s = 0.0

    def receive(self, data: bytes) -> list[bytes | None]:
        self._data += data
        answers: list[bytes | None] = []
        while not self.ended:
            if self._in_body:
                body, dot, rest = self._data.partition(b"\r\n.\r\n")
                if self._data.startswith(b".\r\n"):
                    body, dot, rest = b"", b".", self._data[3:]
                if not dot:
                    break
                self._data, self._in_body = rest, False
                answers += self._dot(body + b"\r\n")
            else:
                line, end, rest = self._data.partition(b"\r\n")
                if not end:
                    break
                self._data = rest
                answers += self._command(line.upper())
        return answers

    def _command(self, line: bytes) -> list[bytes | None]:
        if line.startswith(b"MAIL"):
            self._fault = self._provider.fault()
            self._accepted_rcpt = False
            if self._fault == "closing":
                self.ended = True
                return [b"421 4.3.2 closing\r\n", None]
            if self._fault == "throttle":
                return [b"454 4.7.0 slow down\r\n"]
            if self._fault == "slow_mail":
                self.slow_s = self._provider.dice.random() * 6
            if self._fault == "defer_mail":
                return [b"451 4.3.0 later\r\n"]
            return [b"250 2.1.0 ok\r\n"]
        if line.startswith(b"RCPT"):
            if self._fault in ("throttle", "defer_mail"):
                return [b"503 5.5.1 no MAIL\r\n"]
            if self._fault == "defer":
                return [b"450 4.2.1 busy\r\n"]
            if self._fault == "block":
                return [b"550 5.7.1 blocked\r\n"]
            if self._fault == "refuse":
                return [b"550 5.1.1 unknown\r\n"]
            self._accepted_rcpt = True
            return [b"250 2.1.5 ok\r\n"]
        if line.startswith(b"DATA"):
            if not self._accepted_rcpt:
                return [b"503 5.5.1 no RCPT\r\n"]
            if self._fault == "drop_data":
                self.ended = True
                return [None]
            self._in_body = True
            return [b"354 go on\r\n"]
        if line.startswith(b"QUIT"):
            self.ended = True
            return [b"221 2.0.0 bye\r\n"]
        return [b"250 2.0.0 ok\r\n"]

    def _dot(self, body: bytes) -> list[bytes | None]:
        provider, fault = self._provider, self._fault
        if fault == "drop_before":
            self.ended = True
            return [None]
        if fault == "hang":
            self.ended = True
            return []
        if fault == "defer_dot":
            return [b"451 4.3.0 not now\r\n"]
        if fault == "refuse_dot":
            return [b"554 5.6.0 content\r\n"]
        provider.accept(body)
        if fault == "drop_after":
            self.ended = True
            return [None]
        if fault == "hang_after":
            self.ended = True
            return []
        if fault == "slow":
            self.slow_s = provider.dice.random() * 14
        return [b"250 2.0.0 accepted\r\n"]


class NumberedConnection(Connection):
    """The sender's connection, with a hash that does not depend on where it lies in memory."""

    __slots__ = ("_number",)

    def __init__(self, number: int, *args: Any) -> None:
        self._number = number
        super().__init__(*args)

    def __hash__(self) -> int:
        return self._number


async def open_session(
    provider: Provider, number: int, listener: Listener, limits: SessionLimits, dice: Random
) -> Connection:
    """What postlane_sender.session does, without a socket. Raises ProviderDown."""
    await asyncio.sleep(0.002 + dice.random() * 0.05)
    if not provider.up:
        raise ProviderDown(provider.name, "connection refused")
    life = current()
    assert life is not None
    wire = Wire(provider, life, dice)
    extensions = Extensions(pipelining=dice.random() < 0.7, eight_bit_mime=True, size=True)
    connection = NumberedConnection(number, wire, extensions, listener, limits, provider.name)
    connection.start()
    return connection
