"""One daemon thread that runs blocking calls in order, for a caller on an event loop.

An executor of `concurrent.futures` is joined when the interpreter exits, so a call that hangs in a client library
would keep a process alive that wants to end; this thread is a daemon.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Worker:
    """Runs what it is given, one after the other; the thread starts with the first job."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def call(self, job: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """The future of `job(*args)`. Cancelling it does not stop a job that has begun. RuntimeError when stopped."""
        if self._stopped:
            raise RuntimeError(f"{self._name} has been closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put((loop, future, job, args))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        return future

    def stop(self) -> None:
        """No further jobs; the thread ends after those it has."""
        if not self._stopped:
            self._stopped = True
            self._jobs.put(None)

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            loop, future, job, args = item
            result: Any = None
            error: BaseException | None = None
            try:
                result = job(*args)
            except BaseException as caught:  # it belongs to the caller, whatever it is
                error = caught
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop has been closed: nobody waits any more
                return
            del item, future, job, args, result, error  # hold nothing while waiting


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
