"""Secrets are planted, then looked for in everything that was written: logs, metrics, answers of commands, spans,
topics, databases, data folders, command lines, tracebacks of errors that are forced."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from postlane import Mail, Publisher
from tests.acceptance.checker import read_topic
from tests.hostile.effort import LONG
from tests.hostile.world import DATABASE_PASSWORD, PROVIDER_PASSWORD, SERVICES, WRONG_PASSWORD, World

pytestmark = pytest.mark.kafka

CALL_TIMEOUT_S = 20.0
START_TIMEOUT_S = 60.0
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
        rig.practice.control.add_fault("reply", "mail", code=451, text="4.3.0 not now", count=2)
        rig.practice.control.outage("primary")  # so that the backup is tried, which refuses the password
        for n in range(4):
            mail = Mail(sender="shop@example.org", to=[f"s{n}@example.com"], subject="s", text="t", lane="bulk")
            rig.accepted[publisher.publish(mail).message_id] = mail
        deadline = time.monotonic() + START_TIMEOUT_S
        while "535" not in _sender_log(world).read_text():
            assert time.monotonic() < deadline, "the refusal was not told"
            time.sleep(0.1)
        rig.practice.control.recover("primary")
        rig.until_settled()
    rig.practice.control.clear()
    return world


def _sender_log(world: World) -> Path:
    return world.folder / "stack" / "logs" / "sender-1.log"


FORCED: dict[str, dict[str, str]] = {
    "a database that is not there": {"POSTLANE_DATABASE_URL": f"postgresql://u:{DATABASE_PASSWORD}@127.0.0.1:9/d"},
    "a database that is none": {"POSTLANE_DATABASE_URL": f"mongodb://u:{DATABASE_PASSWORD}@127.0.0.1:9/d"},
    "a URL that is none": {"POSTLANE_DATABASE_URL": f"postgresql://u:{DATABASE_PASSWORD}/x@127.0.0.1:nine/d"},
    "a wrong SASL password": {"POSTLANE_KAFKA_SASL_PASSWORD": WRONG_PASSWORD},
    "an option that is none": {"POSTLANE_KAFKA_SASL_PASSWORT": WRONG_PASSWORD},
    "a key that is none": {"POSTLANE_KAFKA_SECURITY_PROTOCOL": "SSL", "POSTLANE_KAFKA_SSL_KEY_PEM": WRONG_PASSWORD},
    "a wrong token": {
        "POSTLANE_KAFKA_SASL_MECHANISM": "OAUTHBEARER",
        "POSTLANE_KAFKA_SASL_OAUTHBEARER_CONFIG": f"secret={WRONG_PASSWORD}",
    },
}
# (service, what is wrong); the others are the same code in another service.
SHORT = [("ledger", "a database that is not there"), ("sender", "a wrong SASL password"), ("router", "a broken file")]
CASES = [
    (service, name)
    for service in SERVICES
    for name in [*FORCED, "a broken file"]
    if service == "ledger" or "POSTLANE_DATABASE_URL" not in FORCED.get(name, {})  # the only one that has a database
]
ENDS = (b"cannot start yet", b"the service failed")  # it goes on trying, or is about to end


@pytest.mark.timeout(900)
def test_a_service_that_cannot_start_says_why_and_no_secret(busy: World, tmp_path: Path) -> None:
    broken = tmp_path / "postlane.yaml"
    broken.write_text(f"providers:\n  local: {{host: h, password: '{PROVIDER_PASSWORD}}}\n")
    changes = {**FORCED, "a broken file": {"POSTLANE_CONFIG": str(broken)}}
    cases = CASES if LONG else SHORT
    for at in range(0, len(cases), 3):
        children: dict[tuple[str, str], tuple[subprocess.Popen[bytes], Path]] = {}
        try:
            for case in cases[at : at + 3]:
                children[case] = _start(busy, case[0], changes[case[1]], tmp_path / "-".join(case))
            told = {case: _until_said(child, log) for case, (child, log) in children.items()}
        finally:
            for child, _ in children.values():
                child.kill()
        assert [leak for case, text in told.items() for leak in found(busy, str(case), text)] == []


def _start(world: World, service: str, changed: dict[str, str], folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
    folder.mkdir(exist_ok=True)
    log = folder / "log"
    env = {**os.environ, **world.environment(service), **changed}
    env |= {"POSTLANE_HTTP_PORT": "0", "POSTLANE_DATA_DIR": str(folder), "POSTLANE_INSTANCE_ID": "forced"}
    with log.open("wb") as out:
        return subprocess.Popen([sys.executable, "-m", f"postlane_{service}"], env=env, stdout=out, stderr=out), log


def _until_said(child: subprocess.Popen[bytes], log: Path) -> bytes:
    """All that it says until it ends, or until it goes on trying and is told to end."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while child.poll() is None and not any(word in log.read_bytes() for word in ENDS):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    child.terminate()
    child.wait(START_TIMEOUT_S)
    assert log.read_bytes()
    return log.read_bytes()


def test_no_command_shows_a_secret(busy: World, tmp_path: Path) -> None:
    database = {"POSTLANE_DATABASE_URL": f"postgresql://u:{DATABASE_PASSWORD}@127.0.0.1:9/d"}
    for args in (
        (["doctor"], ["doctor", "--json"], ["status"], ["status", "--json"]) if LONG else (["doctor"], ["status"])
    ):
        busy.run("operator", *args)
    for args in (["doctor"], ["status"]) if LONG else (["status"],):
        busy.run("operator", *args, env=database)
    for changed in FORCED.values() if LONG else (FORCED["an option that is none"], FORCED["a key that is none"]):
        busy.run("operator", "topics", "plan", env={**changed, "POSTLANE_KAFKA_SOCKET_TIMEOUT_MS": "1000"})
    busy.run("backup", "backup", str(tmp_path / "kept"))
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
    assert len(pids) == len(SERVICES)
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
    assert "535" in _sender_log(busy).read_text()  # the refused password was tried, and its refusal told


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
