"""How far a restore has come: `mail.restores` of the target, written in the transactions of what it speaks of.

A restore that was killed reads here, exactly, what is in the target already. What stays afterwards says from which
backup the cluster was restored, and when.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict

from postlane.eventlog.errors import Aborted, CommitUnknown, LogError, Retriable
from postlane.eventlog.ports import Log, Outgoing, Transaction, Transactor
from postlane.eventlog.topics import TopicNames, TopicSpec
from postlane.ops.tables import table

TOPIC = "mail.restores"
TRIES_MAX = 20
RETRY_S = 0.25
_BEGUN = b"begun"
_FINISHED = b"finished"


class RestoreFailed(LogError):
    """The target did not take it; what was written is on record, and starting the restore again goes on from there."""


class Begun(BaseModel):
    """What a restore was asked for; it goes on with the same, or not at all. `at` is the time it counts as its own."""

    model_config = ConfigDict(frozen=True)

    backup: str
    seal: str
    manner: str
    topics: tuple[str, ...]
    at: AwareDatetime


class Done(BaseModel):
    """How much of one job is written; `split` is a position between what was below the job's split offset and what was
    not (None: not come to yet)."""

    model_config = ConfigDict(frozen=True)

    passed: int = 0
    written: int = 0
    split: int | None = None
    over: bool = False


def restores_topic(names: TopicNames) -> TopicSpec:
    """Its declaration: made by a restore, in the cluster that is restored."""
    return TopicSpec(f"{names.prefix}{TOPIC}", 1, {"cleanup.policy": "compact"}, ("restore",), ("restore",))


class Progress:
    """Reads and writes `mail.restores`. `load` first."""

    def __init__(self, log: Log, names: TopicNames, transactor: Transactor) -> None:
        self._log = log
        self._topic = restores_topic(names).name
        self._transactor = transactor
        self.begun: Begun | None = None
        self.finished: dict[str, Any] | None = None
        self._done: dict[bytes, Done] = {}

    async def load(self) -> None:
        """Raises UnknownTopic, Retriable."""
        self.begun, self.finished, self._done = None, None, {}
        for key, value in (await table(self._log, self._topic)).items():
            if key == _BEGUN:
                self.begun = Begun.model_validate_json(value)
            elif key == _FINISHED:
                self.finished = orjson.loads(value)
            else:
                self._done[key] = Done.model_validate_json(value)

    def of(self, job: str) -> Done:
        return self._done.get(job.encode(), Done())

    async def begin(self, begun: Begun) -> None:
        """On record before anything else is written."""
        old = [self._record(key, None) for key in (_FINISHED, *self._done)]
        await self.write([*old, self._record(_BEGUN, begun.model_dump_json().encode())])
        await self.load()

    async def finish(self, summary: dict[str, Any], at: datetime) -> None:
        body = orjson.dumps({**summary, "at": at}, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS)
        await self.write([self._record(_FINISHED, body)])

    async def advance(self, job: str, records: Sequence[Outgoing], done: Done) -> Done:
        """Write records of a job and how far it is with them, in one transaction; what is on record then.

        Raises RestoreFailed, Fenced, Fatal.
        """
        before = self.of(job)
        for _ in range(TRIES_MAX):
            try:
                record = self._record(job.encode(), done.model_dump_json().encode())
                await self._transactor.commit(Transaction([*records, record], {}, None))
            except Aborted:
                await asyncio.sleep(RETRY_S)
                continue
            except (CommitUnknown, Retriable):
                if await self._settled(job, before):
                    return self.of(job)
                continue
            self._done[job.encode()] = done
            return done
        raise RestoreFailed(f"{job}: could not be written in {TRIES_MAX} tries; start the restore again to go on")

    async def write(self, records: Sequence[Outgoing]) -> None:
        """Records that may be written twice. Raises RestoreFailed."""
        for _ in range(TRIES_MAX):
            try:
                await self._transactor.commit(Transaction(records, {}, None))
                return
            except Aborted:
                await asyncio.sleep(RETRY_S)
            except (CommitUnknown, Retriable):
                await self._rebuilt()
        raise RestoreFailed(f"could not be written in {TRIES_MAX} tries; start the restore again to go on")

    async def _settled(self, job: str, before: Done) -> bool:
        """Settle what was left open, then look whether it is on record."""
        await self._rebuilt()
        await self.load()
        return self.of(job) != before

    async def _rebuilt(self) -> None:
        for _ in range(TRIES_MAX):
            try:
                await self._transactor.rebuild()
                return
            except Retriable:
                await asyncio.sleep(RETRY_S)
        raise RestoreFailed("the cluster does not answer; start the restore again to go on")

    def _record(self, key: bytes, value: bytes | None) -> Outgoing:
        return Outgoing(self._topic, 0, key, value)
