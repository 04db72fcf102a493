"""Secrets are planted, then looked for in everything that was written: logs, metrics, answers of commands, spans,
topics, databases, data folders, command lines, tracebacks of errors that are forced."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from postlane import Mail, Publisher
from tests.acceptance.checker import read_topic
from tests.hostile.world import DATABASE_PASSWORD, PROVIDER_PASSWORD, WRONG_PASSWORD, World

pytestmark = pytest.mark.kafka

CALL_TIMEOUT_S = 20.0
# Where the test itself put secrets: what a service is told it with, and the state file that holds its variables.
PLANTED = ("postlane.yaml", "backup.key", "stack.json")


def forms(secret: str) -> Iterator[bytes]:
    """The secret as it may stand somewhere: as it is, in a URL, as SASL PLAIN and AUTH LOGIN encode it."""
    yield secret.encode()
    yield quote(secret, safe="").encode()
    for pad in range(3):  # base64 of a text that holds it at any place: what does not depend on its neighbours
        yield base64.b64encode(b"x" * pad + secret.encode())[(pad * 4 + 2) // 3 + 1 : -4]


def found(world: World, where: str, data: bytes) -> list[str]:
    return [
        f"{name} in {where}" for name, secret in world.secrets.items() if any(form in data for form in forms(secret))
    ]


@pytest.fixture(scope="module")
def busy(world: World) -> World:
    """Mails that are delivered, deferred, refused; a provider that is down and one that knows nobody; errors."""
    rig = world.rig
    options = world.kafka.options("publisher")
    with Publisher(world.kafka.sasl_servers, topic_prefix=rig.names.prefix, kafka=options) as publisher:
        mails = [Mail(sender="shop@example.org", to=[f"s{n}@example.com"], subject="s", text="t") for n in range(4)]
        for mail in mails[:2]:
            rig.accepted[publisher.publish(mail).message_id] = mail
        rig.until_settled()
        rig.practice.control.add_fault("reply", "mail", code=451, text="4.3.0 not now", count=4)
        rig.practice.control.add_fault("reply", "auth", code=535, text="5.7.8 not you", count=2)
        for mail in mails[2:]:
            rig.accepted[publisher.publish(mail).message_id] = mail
        rig.until_settled()
    rig.practice.control.clear()
    return world


FORCED: dict[str, dict[str, str]] = {
    "a database that is not there": {"POSTLANE_DATABASE_URL": f"postgresql://u:{DATABASE_PASSWORD}@127.0.0.1:9/d"},
    "a database that is none": {"POSTLANE_DATABASE_URL": f"mongodb://u:{DATABASE_PASSWORD}@127.0.0.1:9/d"},
    "a URL that is none": {"POSTLANE_DATABASE_URL": f"postgresql://u:{DATABASE_PASSWORD}/x@127.0.0.1:nine/d"},
    "a wrong SASL password": {"POSTLANE_KAFKA_SASL_PASSWORD": WRONG_PASSWORD},
    "an option that is none": {"POSTLANE_KAFKA_SASL_PASSWORT": WRONG_PASSWORD},
    "an option with a wrong value": {"POSTLANE_KAFKA_SASL_MECHANISM": WRONG_PASSWORD},
    "a key file that is none": {"POSTLANE_KAFKA_SSL_KEY_PASSWORD": WRONG_PASSWORD},
    "no configuration": {"POSTLANE_CONFIG": "/nowhere"},
}


@pytest.mark.parametrize("service", ["ledger", "sender", "router"])
def test_a_service_that_cannot_start_says_why_and_no_secret(busy: World, tmp_path: Path, service: str) -> None:
    """Each at once, all bounded; what ends by itself, ends; what waits is ended."""
    broken = tmp_path / "postlane.yaml"
    broken.write_text(f"providers:\n  local: {{host: h, password: '{PROVIDER_PASSWORD}}}\n")
    cases = {**FORCED, "a broken configuration": {"POSTLANE_CONFIG": str(broken)}}
    children = {}
    for n, (name, changed) in enumerate(cases.items()):
        env = {**os.environ, **busy.environment(service), **changed, "POSTLANE_HTTP_PORT": "0"}
        env |= {"POSTLANE_DATA_DIR": str(tmp_path / str(n)), "POSTLANE_INSTANCE_ID": f"forced-{n}"}
        children[name] = subprocess.Popen(
            [sys.executable, "-m", f"postlane_{service}"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    told = {}
    for name, child in children.items():
        try:
            told[name], _ = child.communicate(timeout=4)
        except subprocess.TimeoutExpired:  # it tries again and again
            child.terminate()
            told[name], _ = child.communicate(timeout=CALL_TIMEOUT_S)
    assert all(told.values()), [name for name, text in told.items() if not text]
    assert [leak for name, text in told.items() for leak in found(busy, name, text)] == []


def test_no_command_shows_a_secret(busy: World, tmp_path: Path) -> None:
    database = {"POSTLANE_DATABASE_URL": f"postgresql://u:{DATABASE_PASSWORD}@127.0.0.1:9/d"}
    for args in (["doctor"], ["doctor", "--json"], ["status"], ["status", "--json"], ["topics", "plan"]):
        busy.run("operator", *args)
    for args in (["doctor"], ["doctor", "--json"], ["status"]):
        busy.run("operator", *args, env=database)
    for changed in FORCED.values():
        busy.run("operator", "topics", "plan", env={**changed, "POSTLANE_KAFKA_SOCKET_TIMEOUT_MS": "1000"})
    told = "".join(busy.said.values())
    assert "********" in told  # it was there to be shown
    assert [leak for name, text in busy.said.items() for leak in found(busy, name, text.encode())] == []


def test_no_endpoint_shows_a_secret(busy: World) -> None:
    leaks = []
    for name in busy.rig.stack.names():
        for path in ("/metrics", "/livez", "/readyz"):
            with urllib.request.urlopen(f"{busy.rig.stack.url(name)}{path}", timeout=CALL_TIMEOUT_S) as answer:
                leaks += found(busy, f"{name}{path}", answer.read())
    assert leaks == []


def test_no_command_line_shows_a_secret(busy: World) -> None:
    pids = [pid for name in busy.rig.stack.names() if (pid := busy.rig.stack.pid(name)) is not None]
    assert len(pids) == 3
    assert [leak for pid in pids for leak in found(busy, f"pid {pid}", Path(f"/proc/{pid}/cmdline").read_bytes())] == []


def test_no_span_carries_a_secret(busy: World) -> None:
    spans = busy.collector.bodies
    assert any(b"postlane" in body for body in spans), "nothing was exported"
    assert [leak for n, body in enumerate(spans) for leak in found(busy, f"export {n}", body)] == []


def test_no_record_carries_a_secret(busy: World) -> None:
    leaks = []
    for topic in busy.topics:
        for m in read_topic(busy.kafka.plain_servers, topic):
            data = b"\0".join([m.key() or b"", m.value() or b"", *((v or b"") for _, v in m.headers() or [])])
            leaks += found(busy, f"{topic}[{m.partition()}]@{m.offset()}", data)
    assert leaks == []


def test_no_file_that_was_written_holds_a_secret(busy: World) -> None:
    """Logs, the ledger's database, the router's store, the sender's flight recorder, whatever else is there."""
    looked_at, leaks = 0, []
    for path in _files(busy.folder):
        looked_at += 1
        leaks += found(busy, str(path.relative_to(busy.folder)), path.read_bytes())
    assert leaks == []
    logs = {path.name for path in _files(busy.folder) if path.suffix == ".log"}
    assert {"router-1.log", "sender-1.log", "ledger-1.log"} <= logs
    assert looked_at > 10
    sender = (busy.folder / "stack" / "logs" / "sender-1.log").read_text()
    assert "535" in sender  # the refused password was tried, and its refusal told


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.name not in PLANTED)


def test_the_search_would_find_one(busy: World) -> None:
    """The control: each planted secret is found in a text that holds it, encoded or not."""
    for name, secret in busy.secrets.items():
        for text in (
            secret.encode(),
            base64.b64encode(b"\0shop\0" + secret.encode()),
            base64.b64encode(secret.encode()),
        ):
            assert f"{name} in x" in found(busy, "x", b"..." + text + b"...")
