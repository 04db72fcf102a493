"""The library's admin client, and how its answers are waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import KafkaException
from confluent_kafka import admin as _untyped

from postlane.eventlog.errors import Fatal, UnknownTopic, Unreachable
from postlane.eventlog.kafka_config import REQUEST_TIMEOUT_S, ClientConfig
from postlane.eventlog.kafka_errors import translate, translated

_api: Any = _untyped  # its names are not exported to type checkers
_GRACE_S = 5.0  # beyond the time-out that the library was given
RENEW_EVERY_S = 2.0
K = TypeVar("K")
V = TypeVar("V")
Answers = Callable[[Mapping[str, Future[Any]], str], Awaitable[dict[str, Any]]]


class AdminClient:
    """The library's client, made anew when it does not see its way; every question is bounded by `timeout_s`."""

    def __init__(self, config: ClientConfig, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._config = config
        self._timeout_s = timeout_s
        self._made: Any = None
        self._renewed_at = -RENEW_EVERY_S

    @property
    def _client(self) -> Any:
        if self._made is None:
            try:
                self._made = _api.AdminClient(self._config.admin())
            except KafkaException as error:
                raise translate(error.args[0], "set up the admin client") from error
        return self._made

    async def _all(self, futures: Mapping[K, Future[V]], doing: str) -> dict[K, V]:
        """All answers. The library's time-out comes before ours, unless it keeps none (seen on a busy machine)."""
        return await self._answers(futures, doing, self._timeout_s + _GRACE_S)

    async def _all_of_groups(self, futures: Mapping[K, Future[V]], doing: str) -> dict[K, V]:
        """All answers; the library has no time-out (NO_TIMEOUT_S)."""
        return await self._answers(futures, doing, self._timeout_s)

    async def _answers(self, futures: Mapping[K, Future[V]], doing: str, timeout_s: float) -> dict[K, V]:
        if not futures:
            return {}
        asked = [asyncio.wrap_future(future) for future in futures.values()]
        _, unanswered = await asyncio.wait(asked, timeout=timeout_s)
        if unanswered:
            self._renew()
            raise Unreachable(f"{doing} {next(iter(futures))}: no answer in {timeout_s:.0f} s")
        answers = [answer.exception() or answer.result() for answer in asked]
        result: dict[K, V] = {}
        for key, answer in zip(futures, answers, strict=True):
            if isinstance(answer, BaseException):
                raise translated(answer, f"{doing} {key}") from answer
            result[key] = answer
        return result

    def _renew(self) -> None:
        """The library's idea of who leads a partition or coordinates a group may be stale (a broker died), and it does
        not ask by itself: it would wait for the dead one until that is back. A new client asks.

        The old one is let go when nothing waits for an answer of its any more; letting go at once would lose those. Not
        more often than each RENEW_EVERY_S, so that there are never many.
        """
        loop = asyncio.get_running_loop()
        if self._made is None or loop.time() < self._renewed_at + RENEW_EVERY_S:
            return
        self._renewed_at = loop.time()
        old, self._made = self._made, None
        loop.call_later(2 * self._timeout_s, lambda: old)

    async def _rights(self, ask: Answers, futures: Mapping[str, Future[Any]], doing: str) -> dict[str, frozenset[str]]:
        rights: dict[str, frozenset[str]] = {}
        for name, future in futures.items():
            try:
                described = (await ask({name: future}, doing))[name]
            except UnknownTopic:
                continue
            except Fatal:  # not authorised to describe it
                rights[name] = frozenset()
                continue
            operations = described.authorized_operations or ()
            rights[name] = frozenset("".join(part.capitalize() for part in o.name.split("_")) for o in operations)
        return rights
