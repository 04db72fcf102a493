"""The plumbing of one connection: bytes into a buffer, replies out, waiting, slow reading, an end that is heard.

What the bytes mean is the subclass's business: `_take` works off one complete piece of the buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from postlane.local.practice.listener import Listener

BUFFER_MAX_BYTES = 1 << 20
LINGER_S = 2.0
_DRIP_S = 0.05


class Connection(asyncio.Protocol):
    """The server's end of a TCP connection; pieces are taken in order, and none while a wait lasts."""

    def __init__(self, listener: Listener) -> None:
        self.server = listener
        self.peer = ""
        self.active_at = 0.0
        self.hanging = False
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._replies: list[bytes] = []
        self._held = False
        self._write_blocked = False
        self._closing = False
        self._fault_version = -1
        self._bytes_per_s: int | None = None
        self._unread = bytearray()  # came, but a slow reader has not read it yet
        self._timer: asyncio.TimerHandle | None = None

    def _take(self) -> bool:
        """Work off one piece of `_buffer`; False when no piece is complete."""
        raise NotImplementedError

    def _opened(self) -> None:
        """The client is there."""
        raise NotImplementedError

    @property
    def user(self) -> str | None:
        """Who has logged in."""
        return None

    # -- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came."""
        self.transport = cast(asyncio.Transport, transport)
        address = transport.get_extra_info("peername") or ("?", 0)
        self.peer = f"{address[0]}:{address[1]}"
        self.active_at = self.server.loop.time()
        if self.server.admit(self):
            self._opened()
        else:
            self._reply(b"421 4.7.0 Too many connections")
            self._closing = True
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Bytes came; work off what is complete."""
        self.active_at = self.server.loop.time()
        if self._closing or self.hanging:
            return
        if self._fault_version != self.server.faults.version:
            self._fault_version = self.server.faults.version
            self._bytes_per_s = self.server.bytes_per_s()
        if self._bytes_per_s is None and not self._unread:
            self._buffer += data
            self._work()
            return
        self._unread += data
        self._pause()
        if self._timer is None:
            self._timer = self.server.loop.call_later(_DRIP_S, self._drip)

    def eof_received(self) -> bool:
        """The client will say no more; the connection closes."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone, from either side."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self.server.leave(self)

    def pause_writing(self) -> None:
        """The client does not read its replies: stop taking commands."""
        self._write_blocked = True

    def resume_writing(self) -> None:
        """It reads again."""
        self._write_blocked = False
        self._resume()
        self._work()

    # -- what the listener calls

    def abort(self) -> None:
        """Reset the connection."""
        self._closing = True
        if self.transport is not None:
            self.transport.abort()

    def close(self, reply: bytes) -> None:
        """Say a last word and close."""
        if not self._closing:
            self._reply(reply)
            self._closing = True
            self._flush()

    # -- for the subclass

    def _work(self) -> None:
        while not (self._held or self._closing or self._write_blocked or self.hanging):
            if not self._take():
                break
        self._flush()
        if len(self._buffer) > BUFFER_MAX_BYTES and (self._held or self._write_blocked):
            self._pause()

    def _wait(self, delay_s: float, then: Callable[[], object]) -> None:
        self._held = True

        def go_on() -> None:
            self._held = False
            if not self._closing:
                then()
                self._resume()
                self._work()

        self.server.loop.call_later(delay_s, go_on)

    def _reply(self, line: bytes) -> None:
        self._replies.append(line)

    def _flush(self) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self._replies:
            self._replies.append(b"")
            transport.write(b"\r\n".join(self._replies))
            self._replies = []
        if not self._closing or self._timer is not None:
            return
        if not transport.can_write_eof():
            transport.close()
            return
        # Closing now would reset the connection if the client still sends, and take the last reply with it.
        transport.write_eof()
        self._resume()
        self._timer = self.server.loop.call_later(LINGER_S, transport.close)

    def _cut(self) -> None:
        self._flush()
        self.abort()

    # -- reading

    def _drip(self) -> None:
        self._timer = None
        if self._closing:
            self._flush()
            return
        rate = self.server.bytes_per_s()
        share = len(self._unread) if rate is None else max(1, int(rate * _DRIP_S))
        self._buffer += self._unread[:share]
        del self._unread[:share]
        self._work()
        if self._unread and self._timer is None:
            self._timer = self.server.loop.call_later(_DRIP_S, self._drip)
        else:
            self._resume()

    def _pause(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def _resume(self) -> None:
        if self.transport is not None and not self.transport.is_closing() and not self._unread:
            self.transport.resume_reading()
