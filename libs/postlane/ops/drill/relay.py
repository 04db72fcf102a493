"""A TCP relay in this process that can turn into a black hole: what a network that loses every packet looks like.

Bytes that were sent before or during the loss are kept by the sockets' buffers and arrive when it is healed, as TCP's
retransmissions would. One difference to a lost network remains: a connection attempt is taken by the kernel at once,
and the silence begins after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from types import TracebackType

_CHUNK_BYTES = 65_536
_START_TIMEOUT_S = 10.0


class Relay:
    """`with Relay(target_port) as relay:` listens on `relay.port` of 127.0.0.1 and passes everything on."""

    def __init__(self, target_port: int, port: int = 0, host: str = "127.0.0.1") -> None:
        self.host, self.port = host, port
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: Future[int] = Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="drill-relay", daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        self.port = self._ready.result(_START_TIMEOUT_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_START_TIMEOUT_S)

    def lose_everything(self) -> None:
        """From now on nothing passes, and nobody is told."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def heal(self) -> None:
        """Everything passes again."""
        self._loop.call_soon_threadsafe(self._open.set)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._open.set()
        server = await asyncio.start_server(self._connected, self.host, self.port)
        self._ready.set_result(int(server.sockets[0].getsockname()[1]))
        async with server:
            await self._stop.wait()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        try:
            away, out = await asyncio.open_connection(self.host, self._target_port)
        except OSError:
            writer.close()
            return
        for source, target in ((reader, out), (away, writer)):
            task = self._loop.create_task(self._pump(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(_CHUNK_BYTES):
                await self._open.wait()
                target.write(chunk)
                await target.drain()
        await self._open.wait()
        target.close()
