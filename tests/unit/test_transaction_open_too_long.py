"""A transaction that is open for longer than transaction.timeout.ms is ended by its coordinator, which bumps the epoch;
librdkafka tells that in the words of a process that was replaced.

Found by `make chaos` on a busy machine: routers and senders ended with "another process is this instance", and none
was there. The process still ends (the two cases cannot be told apart), but it says what it knows.
"""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from postlane.eventlog import producer
from postlane.eventlog.errors import Fenced
from postlane.eventlog.kafka_config import ClientConfig
from postlane.eventlog.ports import Outgoing, Transaction

_TIMEOUT_S = 12.0


class Library:
    """A producer whose commit takes `takes_s` and then says that it was fenced."""

    def __init__(self, clock: list[float], takes_s: float, code: int) -> None:
        self._clock, self._takes_s, self._code = clock, takes_s, code

    def poll(self, timeout_s: float) -> None: ...

    def begin_transaction(self) -> None: ...

    def produce(self, *_: Any, **__: Any) -> None: ...

    def commit_transaction(self, timeout_s: float) -> None:
        self._clock[0] += self._takes_s
        raise KafkaException(KafkaError(self._code, "fenced by a newer instance", fatal=True))


@pytest.mark.parametrize("code", [KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH])
@pytest.mark.parametrize(
    ("takes_s", "said"), [(_TIMEOUT_S - 1, "another process has this"), (_TIMEOUT_S + 1, "open for 13 s, longer than")]
)
def test_the_message_says_how_long_it_was_open(
    monkeypatch: pytest.MonkeyPatch, code: int, takes_s: float, said: str
) -> None:
    clock = [100.0]
    monkeypatch.setattr(producer.time, "monotonic", lambda: clock[0])
    transactor = producer.KafkaTransactor(ClientConfig("127.0.0.1:1").transactor("t"))
    assert transactor._open_max_s == _TIMEOUT_S
    transactor._producer, transactor._usable = Library(clock, takes_s, code), True
    with pytest.raises(Fenced, match=said):
        transactor._commit(Transaction([Outgoing("t", 0, b"k", b"v", [])], {}, None))
    assert not transactor._usable
    transactor._worker.stop()
