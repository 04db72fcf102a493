"""The Alertmanager's file in a running Alertmanager: a page comes by both ways, and is taken back by both."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiosmtpd.controller import Controller
from observability.__main__ import HERE

from postlane.local import http_probe
from postlane.local.ports import HOST, free_port
from tests.observability.names import rules

# Debian has the name of its package before that of the program.
ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
WAIT_S = 30.0
GROUP_WAIT_S = 1

pytestmark = pytest.mark.skipif(
    ALERTMANAGER is None, reason="Alertmanager is not installed (Debian: apt install prometheus-alertmanager)"
)


class Pager(http.server.BaseHTTPRequestHandler):
    """What a pager's webhook is told."""

    told: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


class Mailbox:
    """What comes to the smarthost."""

    def __init__(self) -> None:
        self.mails: list[tuple[list[str], EmailMessage]] = []

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append((envelope.rcpt_tos, mail))
        return "250 OK"


@pytest.fixture
def mailbox() -> Iterator[tuple[Mailbox, int]]:
    box = Mailbox()
    controller = Controller(box, hostname=HOST, port=free_port())
    controller.start()
    yield box, controller.port
    controller.stop()


@pytest.fixture
def pager() -> Iterator[tuple[list[dict[str, Any]], int]]:
    handler = type("Told", (Pager,), {"told": []})
    server = http.server.ThreadingHTTPServer((HOST, 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler.told, server.server_port
    server.shutdown()
    server.server_close()


def edited(smarthost: int, pager: int) -> dict[str, Any]:
    """The file with the lines marked EDIT as an operator of this machine has them, and waits of a second."""
    text = (HERE / "alertmanager" / "alertmanager.yml").read_text("utf-8")
    body: dict[str, Any] = yaml.safe_load(text.replace("http://pager.example.net/", f"http://{HOST}:{pager}/"))
    settings = body["global"]
    settings["smtp_smarthost"] = f"{HOST}:{smarthost}"
    settings["smtp_require_tls"] = False
    for name in [name for name in settings if name.startswith("smtp_auth")]:
        del settings[name]
    for route in (body["route"], *body["route"]["routes"]):
        route |= {"group_wait": f"{GROUP_WAIT_S}s", "group_interval": f"{GROUP_WAIT_S}s"}
    return body


@pytest.fixture
def url(tmp_path: Path, mailbox: tuple[Mailbox, int], pager: tuple[list[dict[str, Any]], int]) -> Iterator[str]:
    port = free_port()
    file = tmp_path / "alertmanager.yml"
    file.write_text(yaml.safe_dump(edited(mailbox[1], pager[1])))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(ALERTMANAGER),
                f"--config.file={file}",
                f"--storage.path={tmp_path / 'data'}",
                f"--web.listen-address={HOST}:{port}",
                "--cluster.listen-address=",
            ],
            stdout=log,
            stderr=log,
        )
    url = f"http://{HOST}:{port}"
    try:
        until(lambda: process.poll() is not None or http_probe.get(f"{url}/-/ready").status == 200, "it is ready")
        assert process.poll() is None, (tmp_path / "log").read_text()
        yield url
    finally:
        process.kill()  # its data are thrown away
        process.wait(10)


def until(met: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not met():
        assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s: {what}"
        time.sleep(0.05)


def fire(url: str, name: str, *, ended: bool = False, **labels: str) -> None:
    """An alert as Prometheus sends it from our rules."""
    (rule, *_) = [rule for rule in rules() if rule.get("alert") == name]
    alert = {
        "labels": {"alertname": name, **rule["labels"], **labels},
        "annotations": rule["annotations"],
        "startsAt": "2026-01-01T00:00:00Z",
    }
    if ended:
        alert["endsAt"] = "2026-01-01T01:00:00Z"
    posted = urllib.request.Request(
        f"{url}/api/v2/alerts", json.dumps([alert]).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(posted, timeout=5) as answer:
        assert answer.status == 200


def test_a_page_comes_to_the_pager_and_by_mail_and_is_taken_back(
    url: str, mailbox: tuple[Mailbox, int], pager: tuple[list[dict[str, Any]], int]
) -> None:
    told, mails = pager[0], mailbox[0].mails
    fire(url, "ProviderDown", provider="primary")
    until(lambda: told and mails, "both ways")
    (alert,) = told[0]["alerts"]
    assert (told[0]["receiver"], told[0]["status"]) == ("page", "firing")
    assert alert["labels"]["provider"] == "primary"
    recipients, mail = mails[0]
    assert recipients == ["on-call@example.net"]
    assert mail["Subject"] == "[firing] ProviderDown primary"
    text = mail.get_body(("plain",))
    assert text is not None
    assert "runbook: docs/runbooks/provider-down.md" in text.get_content()
    fire(url, "ProviderDown", provider="primary", ended=True)
    until(lambda: told[-1]["status"] == "resolved" and len(mails) > 1, "both ways, when it is over")
    assert mails[-1][1]["Subject"] == "[resolved] ProviderDown primary"


def test_what_follows_from_it_and_a_ticket_wake_nobody(
    url: str, mailbox: tuple[Mailbox, int], pager: tuple[list[dict[str, Any]], int]
) -> None:
    told, mails = pager[0], mailbox[0].mails
    fire(url, "LaneStopped", lane="bulk")
    fire(url, "OldestMailTooOld", lane="bulk")
    fire(url, "OldestMailTooOld", lane="transactional")  # another lane's own trouble
    fire(url, "LedgerBehind")
    fire(url, "Watchdog")
    until(lambda: {"page", "heartbeat"} <= {one["receiver"] for one in told}, "the pager")
    until(lambda: any("LedgerBehind" in mail["Subject"] for _, mail in mails), "the ticket's mail")
    until(lambda: any("OldestMailTooOld transactional" in mail["Subject"] for _, mail in mails), "the other lane's")
    time.sleep(3 * GROUP_WAIT_S)  # nothing more comes
    paged = {(a["labels"]["alertname"], a["labels"].get("lane")) for one in told for a in one["alerts"]}
    assert paged == {("LaneStopped", "bulk"), ("OldestMailTooOld", "transactional"), ("Watchdog", None)}
    assert {one["receiver"] for one in told if one["groupLabels"]["alertname"] == "Watchdog"} == {"heartbeat"}
    assert sorted({mail["Subject"].strip() for _, mail in mails}) == [
        "[firing] LaneStopped bulk",
        "[firing] LedgerBehind",
        "[firing] OldestMailTooOld transactional",
    ]
