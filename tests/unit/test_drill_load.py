"""The load keeps its keys: what was refused is published again until it is acknowledged, and a budget is kept."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import pytest

from postlane import Mail, Receipt
from postlane.core.identity import message_id_from_key
from postlane.errors import BrokerUnavailable, PublishTimeout
from postlane.ops.drill.load import Load


class Publishes:
    """Refuses each mail a first time in one way, and a second time in another."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        self.enough = threading.Event()

    def publish_soon(self, mail: Mail, key: str) -> Future[Receipt]:
        self.seen[key] = self.seen.get(key, 0) + 1
        future: Future[Receipt] = Future()
        if self.seen[key] == 1:
            raise BrokerUnavailable("not now")
        if self.seen[key] == 2:
            future.set_exception(PublishTimeout("unknown"))
        else:
            future.set_result(Receipt(message_id_from_key("default", key), 0, 0))
            if len(self.seen) >= 10:
                self.enough.set()
        return future


def test_every_mail_is_published_under_its_key_until_it_is_acknowledged() -> None:
    publisher = Publishes()
    load = Load(publisher, 400, name="n", mails_max=10)  # type: ignore[arg-type]
    load.start()
    assert publisher.enough.wait(20)
    load.stop(20)
    accepted = load.accepted()
    assert {a.key for a in accepted.values()} == {f"n-{i}" for i in range(10)}
    assert set(publisher.seen) == {f"n-{i}" for i in range(10)}
    assert load.published == 10
    assert load.unanswered == 0


def test_a_mail_of_a_scenario_goes_through_the_same_hands() -> None:
    publisher = Publishes()
    load = Load(publisher, 0.001, name="n")  # type: ignore[arg-type]
    load.start()
    load.add(Mail(sender="a@example.org", to=["b@example.com"], subject="s", text="t"), "own", "poison")
    load.stop(20)
    assert {a.kind for a in load.accepted().values()} >= {"poison"}
    assert publisher.seen["n-own"] == 3


def test_mails_that_nobody_acknowledges_are_said() -> None:
    class Silent:
        def publish_soon(self, mail: Mail, key: str) -> Future[Receipt]:
            return Future()

    load = Load(Silent(), 100, name="n", mails_max=3)  # type: ignore[arg-type]
    load.start()
    deadline = time.monotonic() + 20
    while load.unanswered < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    with pytest.raises(TimeoutError, match="3 mails"):
        load.stop(0.1)
