"""A blocking question with a bound: whoever does not answer in time is left behind and holds nothing up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


async def in_time(ask: Callable[[], T], timeout_s: float) -> T:
    """What `ask` returns or raises. Raises TimeoutError after `timeout_s` seconds.

    It runs in a daemon thread of its own: asyncio waits at its end for the threads of its executor, for as long as a
    database or a disk takes.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(act: Callable[[], None]) -> None:
        if not answer.done():
            act()

    def work() -> None:
        try:
            result = ask()
        except BaseException as error:  # handed to whoever waits
            failure = error
            _tell(loop, lambda: settle(lambda: answer.set_exception(failure)))
        else:
            _tell(loop, lambda: settle(lambda: answer.set_result(result)))

    Thread(target=work, name="doctor", daemon=True).start()
    async with asyncio.timeout(timeout_s):
        return await answer


def _tell(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(act)
    except RuntimeError:  # the loop is closed: nobody waits any more
        return
