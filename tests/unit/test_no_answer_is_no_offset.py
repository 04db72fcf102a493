"""librdkafka answers list_offsets with -1001 and no error where nobody answered while a leader changed.

Found by `make chaos` (a broker killed): the ledger ended, convinced that its topic was truncated. A sender that takes a
partition over then would read the book to nowhere, and send again all that was in doubt.
"""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from postlane.eventlog.admin import KafkaAdmin
from postlane.eventlog.errors import Retriable, Unreachable
from postlane.eventlog.kafka_config import ClientConfig
from postlane.eventlog.ports import Partition

ONE, TWO = Partition("mail.state.bulk", 0), Partition("mail.state.bulk", 1)


class Library:
    """Answers each partition with what it is told to."""

    def __init__(self, *rounds: dict[Partition, int]) -> None:
        self._rounds = list(rounds)

    def list_offsets(self, wanted: dict[Any, Any], **_: Any) -> dict[Any, Future[Any]]:
        answers = self._rounds.pop(0)
        futures: dict[Any, Future[Any]] = {}
        for tp in wanted:
            futures[tp] = Future()
            futures[tp].set_result(SimpleNamespace(offset=answers[Partition(tp.topic, tp.partition)]))
        return futures


def admin(*rounds: dict[Partition, int]) -> KafkaAdmin:
    made = KafkaAdmin(ClientConfig("127.0.0.1:1"))
    made._made = Library(*rounds)
    return made


@pytest.mark.parametrize("ask", ["high_watermarks", "low_watermarks", "last_stable_offsets"])
@pytest.mark.parametrize("said", [-1001, -1])
async def test_it_is_asked_again(ask: str, said: int) -> None:
    with pytest.raises(Retriable, match=r"mail\.state\.bulk\[1\]: no answer"):
        await getattr(admin({ONE: 7, TWO: said}), ask)([ONE, TWO])
    assert await getattr(admin({ONE: 7, TWO: 0}), ask)([ONE, TWO]) == {ONE: 7, TWO: 0}


async def test_no_record_so_late_is_an_answer_and_nobody_is_none() -> None:
    asked = admin({ONE: 5, TWO: -1}, {TWO: 9})
    assert await asked.offsets_at([ONE, TWO], 1_000) == {ONE: 5, TWO: 9}  # from the end on
    with pytest.raises(Retriable, match="no answer"):
        await admin({ONE: 5, TWO: -1001}).offsets_at([ONE, TWO], 1_000)


async def test_a_library_that_never_answers_is_not_waited_for_for_ever() -> None:
    """Found by `make chaos`: routers and the ledger stood in their start for minutes, without a word."""

    class Silent:
        def describe_topics(self, *_: Any, **__: Any) -> dict[str, Future[Any]]:
            return {"mail.requests": Future()}

    made = KafkaAdmin(ClientConfig("127.0.0.1:1"), timeout_s=-4.9)  # 0.1 s with the grace
    made._made = Silent()
    with pytest.raises(Unreachable, match=r"describe topic mail\.requests: no answer in 0 s"):
        await made.partition_count("mail.requests")
    assert made._made is None  # the next call has a client of its own
