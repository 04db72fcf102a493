"""A mail that a real server accepts and bounces later: the books say so, the address is left alone, nothing is lost.

publish -> router -> sender -> Postfix, which accepts -> practice server, which refuses the recipient -> Postfix's
notification to the signed return path -> listener -> Kafka -> ledger and router.
"""

from __future__ import annotations

import asyncio
import smtplib
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.acceptance.checker import read_topic
from tests.acceptance.rig import Rig
from tests.integration.bounce_gateway import GatewayProcess
from tests.integration.bouncing_postfix import BouncingPostfix, missing
from tests.unit import dsn_samples as samples

from postlane import Mail
from postlane.bounce_keys import ReturnPaths
from postlane.clock import SystemClock
from postlane.core.identity import delivery_id
from postlane.core.policy import Bounces, Topics
from postlane.eventlog.admin import KafkaAdmin
from postlane.eventlog.kafka_config import ClientConfig
from postlane.eventlog.topics import TopicNames, declare
from postlane.local.kafka import KafkaCluster
from postlane.local.ports import HOST

pytestmark = pytest.mark.kafka
needs_postfix = pytest.mark.skipif(missing() is not None, reason=missing() or "")

ADDRESS = "bounces@bounces.example"
WAIT_S = 90.0


def bounces_of(folder: Path) -> Bounces:
    key_file = folder / "bounce-key"
    key_file.parent.mkdir(parents=True, exist_ok=True)
    key_file.write_text("a-secret-of-this-test\n")
    return Bounces(address=ADDRESS, key_file=key_file)


def until(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


class Town:
    """A rig whose mails go through Postfix, and the way back."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        bounces = bounces_of(folder)
        self.paths = ReturnPaths(bounces, SystemClock())
        self.mx = BouncingPostfix(folder / "mx")

        def configure(body: dict[str, Any]) -> None:
            body["bounces"] = {"address": ADDRESS, "key_file": str(bounces.key_file)}
            body["providers"]["primary"]["port"] = self.mx.port

        self.rig = Rig(bootstrap, folder / "rig", ledger=True, config=configure)
        self.gateway = GatewayProcess(bootstrap, self.rig.names.prefix, folder / "rig" / "postlane.yaml")
        self._bootstrap = bootstrap

    def __enter__(self) -> Town:
        routes = {"example.com": self.rig.practice.smtp_port, "bounces.example": self.gateway.port}
        self._running = ExitStack()
        for part in (self.gateway, self.mx.to(routes), self.rig):
            self._running.enter_context(part)
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def delivery(self, ident: str) -> dict[str, Any]:
        """The ledger's row."""
        path = self.rig.database_url.removeprefix("sqlite:///")
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            database.row_factory = sqlite3.Row
            found = database.execute("select * from deliveries where delivery_id = ?", (ident,)).fetchone()
        return dict(found) if found else {"state": None}

    def publish(self, to: str, tenant: str = "default") -> str:
        """The delivery id."""
        mail = Mail(sender="shop@example.org", to=[to], subject="Order", text="On its way.", tenant=tenant)
        return delivery_id(self.rig.publisher.publish(mail).message_id, to)

    def suppressed(self) -> set[bytes]:
        return {message.key() for message in read_topic(self._bootstrap, self.rig.names.suppressions)}


@pytest.fixture(scope="module")
def town(kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with Town(kafka.bootstrap_servers, tmp_path_factory.mktemp("bounces")) as made:
        yield made


@needs_postfix
def test_a_bounce_of_a_real_server_reaches_the_books_and_the_list(town: Town) -> None:
    town.rig.practice.control.add_fault("reply", "rcpt", code=550, text="5.1.1 no such user", recipient="gone@*")
    town.rig.practice.control.add_fault("reply", "rcpt", code=552, text="5.2.2 mailbox full", recipient="full@*")
    gone, full, ada = (town.publish(f"{name}@example.com") for name in ("gone", "full", "ada"))
    for ident in (gone, full):
        until(lambda ident=ident: town.delivery(ident)["state"] == "bounced", f"{ident}: {town.mx.log()}")
    row = town.delivery(gone)
    assert (row["recipient"], row["reason"], row["reply_code"]) == ("gone@example.com", "recipient", 550)
    assert (row["reply_enhanced"], row["attempt"], row["provider"]) == ("5.1.1", 1, "primary")
    assert town.delivery(full)["reason"] == "mailbox"
    until(lambda: town.delivery(ada)["state"] == "delivered", "delivered")
    assert town.suppressed() == {b"*/gone@example.com"}
    events = [e["type"] for e in town.rig.books().deliveries[gone].events]
    assert sorted(events) == ["Attempted", "Bounced", "Delivered", "Routed"]

    for tenant in ("default", "another"):
        again = town.publish("gone@example.com", tenant)
        until(lambda again=again: town.delivery(again)["state"] == "suppressed", "suppressed")
    assert town.delivery(town.publish("full@example.com"))["state"] != "suppressed"


@needs_postfix
def test_the_same_notification_again_changes_nothing(town: Town) -> None:
    ident = town.publish("twice@example.com")
    until(lambda: town.delivery(ident)["state"] == "delivered", "delivered")
    message = samples.postfix("twice@example.com", samples.mail("twice@example.com", ident))
    for _ in range(2):
        assert _send(town.gateway.port, town.paths.of(ident), message)[0] == 250
    until(lambda: town.delivery(ident)["state"] == "bounced", "bounced")
    row = town.delivery(ident)
    other = town.publish("later@example.com")
    until(lambda: town.delivery(other)["state"] == "delivered", "the ledger has gone past both")
    assert town.delivery(ident) == row
    assert b"*/twice@example.com" in town.suppressed()


@needs_postfix
def test_a_forged_address_is_refused(town: Town) -> None:
    ident = town.publish("forged@example.com")
    until(lambda: town.delivery(ident)["state"] == "delivered", "delivered")
    path = town.paths.of(ident)
    assert path is not None
    forged = path.replace(path[-30], "a" if path[-30] != "a" else "b")
    message = samples.postfix("forged@example.com", samples.mail("forged@example.com", ident))
    assert _send(town.gateway.port, forged, message)[0] == 550
    other = town.publish("after@example.com")
    until(lambda: town.delivery(other)["state"] == "delivered", "the ledger has gone on")
    assert town.delivery(ident)["state"] == "delivered"
    assert b"*/forged@example.com" not in town.suppressed()


def _send(port: int, to: str | None, message: bytes) -> tuple[int, bytes]:
    """The code and text of the last reply."""
    assert to is not None
    with smtplib.SMTP(HOST, port, timeout=60) as smtp:
        smtp.ehlo("mx.example.com")
        smtp.mail("")
        told = smtp.rcpt(to)
        return told if told[0] != 250 else smtp.data(message)


@needs_postfix
@pytest.mark.slow
def test_while_kafka_is_away_the_server_keeps_the_bounce_and_brings_it_again(tmp_path: Path) -> None:
    """The listener says 451; what Postfix then has in its queue lands once the broker is back."""
    bounces = bounces_of(tmp_path)
    path = ReturnPaths(bounces, SystemClock()).of(samples.DELIVERY)
    assert path is not None
    file = tmp_path / "postlane.yaml"
    file.write_text(yaml.safe_dump({"bounces": {"address": ADDRESS, "key_file": str(bounces.key_file)}}))
    names = TopicNames("away.")
    cluster = KafkaCluster(tmp_path / "kafka", brokers=1, port=0, tied=True)
    cluster.start()
    try:
        specs = declare(names, ("bulk",), Topics(partitions=2))
        asyncio.run(KafkaAdmin(ClientConfig(cluster.bootstrap_servers)).create_topics(specs, 1))
        with (
            GatewayProcess(cluster.bootstrap_servers, names.prefix, file) as gateway,
            BouncingPostfix(tmp_path / "mx").to({"bounces.example": gateway.port}) as mx,
        ):
            cluster.kill(0)
            assert _send(mx.port, path, samples.postfix())[0] == 250  # Postfix has it; it brings it to the listener
            mx.until_logged("said: 451 4.3.0")
            cluster.start_broker(0)
            mx.until_logged("250 2.0.0 taken")
        events = read_topic(cluster.bootstrap_servers, names.events)
        assert {event.key() for event in events} == {samples.MESSAGE.encode()}
        keys = {message.key() for message in read_topic(cluster.bootstrap_servers, names.suppressions)}
        assert keys == {b"*/ada@example.com"}
    finally:
        cluster.stop()
