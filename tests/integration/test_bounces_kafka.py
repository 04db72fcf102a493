"""A mail that a real server accepts and bounces later: the books say so, the address is left alone, nothing is lost.

publish -> router -> sender -> Postfix, which accepts -> practice server, which refuses the recipient -> Postfix's
notification to the signed return path -> listener -> Kafka -> ledger and router.
"""

from __future__ import annotations

import asyncio
import json
import smtplib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.acceptance.checker import read_topic
from tests.integration.bounce_gateway import GatewayProcess
from tests.integration.bounce_town import ADDRESS, Town, bounces_of, needs_postfix, until
from tests.integration.bouncing_postfix import BouncingPostfix
from tests.unit import dsn_samples as samples

from postlane.bounce_keys import ReturnPaths
from postlane.clock import SystemClock
from postlane.core.dsn import MESSAGE_MAX_BYTES
from postlane.core.policy import Topics
from postlane.eventlog.admin import KafkaAdmin
from postlane.eventlog.kafka_config import ClientConfig
from postlane.eventlog.topics import TopicNames, declare
from postlane.local.kafka import KafkaCluster
from postlane.local.ports import HOST

pytestmark = pytest.mark.kafka


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
    wanted = ["Attempted", "Bounced", "Delivered", "Routed"]
    until(lambda: sorted(e["type"] for e in town.rig.books().deliveries[gone].events) == wanted, "one event of each")

    for tenant in ("default", "another"):
        town.until_new_one_is("suppressed", "gone@example.com", tenant)
    again = town.publish("full@example.com")  # a full mailbox may have room the next time
    until(lambda: town.delivery(again)["state"] == "bounced", "it went out and bounced")


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
def test_an_operator_suppresses_for_every_tenant_lists_and_lifts(town: Town, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("lifted@example.com\n")
    assert town.postlane("suppress", "import", str(tmp_path / "list"), "--tenant", "*")[0]["added"] == 1
    town.until_new_one_is("suppressed", "lifted@example.com", "acme")
    assert "lifted@example.com" in [s["address"] for s in town.postlane("suppress", "list", "--tenant", "*")]
    assert town.postlane("suppress", "remove", "lifted@example.com", "--tenant", "*")[0]["removed"] == 1
    town.until_new_one_is("delivered", "lifted@example.com", "acme")


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


@needs_postfix
def test_a_caller_with_the_right_brings_what_came_to_a_mailbox(town: Town) -> None:
    """Providers that put a return path of their own: the returned headers say whose it is, for a caller who may."""
    ident = town.publish("webhook@example.com")
    until(lambda: town.delivery(ident)["state"] == "delivered", "delivered")
    message = samples.postfix("webhook@example.com", samples.mail("webhook@example.com", ident))
    assert _post(town, message, "plk_" + "x" * 43)[0] == 401
    status, told = _post(town, message, town.gateway.key)
    assert (status, told) == (200, {"delivery_id": ident, "outcomes": ["suppressed"]})
    until(lambda: town.delivery(ident)["state"] == "bounced", "bounced")
    assert b"*/webhook@example.com" in town.suppressed()
    assert _post(town, b"Subject: I am on holiday\r\n\r\n...", town.gateway.key)[1]["outcomes"] == ["not_a_report"]
    assert _post(town, b"x" * (MESSAGE_MAX_BYTES + 1), town.gateway.key)[0] == 413


def _post(town: Town, message: bytes, key: str) -> tuple[int, dict[str, Any]]:
    about = {"Authorization": f"Bearer {key}", "Content-Type": "message/rfc822"}
    request = urllib.request.Request(f"{town.gateway.api}/v1/bounces", message, about)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


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
