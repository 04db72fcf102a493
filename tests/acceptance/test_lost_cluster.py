"""A cluster is lost and restored from a backup into another: compared per id with a witness that outlived both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from postlane.local.kafka import KafkaCluster
from tests.acceptance.checker import Books, read_topic
from tests.acceptance.rig import Rig

pytestmark = pytest.mark.kafka

CLI_TIMEOUT_S = 150.0
WAIT_S = 150.0


class Restored(Rig):
    """A rig on the topics of another prefix, with the witness of the lost one; its services are started by hand."""

    def __init__(self, lost: Rig, folder: Path) -> None:
        super().__init__(lost.bootstrap, folder, senders=0, routers=0)
        self.practice = lost.practice
        (folder / "postlane.yaml").write_text((lost.folder / "postlane.yaml").read_text())

    def __enter__(self) -> Restored:
        return self  # topics are made by the restore

    def start_services(self) -> None:
        self._wanted = {"router": 1, "sender": 1, "ledger": 0}
        self.stack.up(lambda _: self._children())

    def __exit__(self, *_: object) -> None:
        if self._publisher is not None:
            self._publisher.close()
        self.stack.down(grace_s=15.0)


def postlane(rig: Rig, *args: str, code: int = 0) -> dict[str, Any]:
    """Run a command with --json to its end; its document."""
    done = subprocess.run(
        [sys.executable, "-c", "from postlane.cli.main import main; main()", *args, "--json"],
        env={
            **os.environ,
            "POSTLANE_BOOTSTRAP_SERVERS": rig.bootstrap,
            "POSTLANE_TOPIC_PREFIX": rig.names.prefix,
            "POSTLANE_CONFIG": str(rig.folder / "postlane.yaml"),
            "POSTLANE_DATA_DIR": str(rig.folder / "operator"),
            "POSTLANE_DATABASE_URL": rig.database_url,
        },
        capture_output=True,
        text=True,
        timeout=CLI_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return dict(json.loads(done.stdout)) if done.stdout else {"said": done.stderr}


def copies(rig: Rig) -> dict[str, int]:
    """How often the witness took each delivery."""
    found: dict[str, int] = {}
    for copy in rig.practice.control.ledger():
        if copy.accepted and copy.delivery is not None:
            found[copy.delivery] = found.get(copy.delivery, 0) + 1
    return found


def ended(books: Books, messages: list[str]) -> list[str]:
    """Their deliveries; a name of nothing stands for a message that is not in the books yet."""
    return of(books, messages) if all(books.by_message[message] for message in messages) else [""]


def of(books: Books, messages: list[str]) -> list[str]:
    return [delivery for message in messages for delivery in books.by_message[message]]


def types(books: Books, delivery: str) -> list[str]:
    return [event["type"] for event in books.deliveries[delivery].events]


def lose(rig: Rig) -> None:
    """The old services end at once; nothing of their topics is used again."""
    for name in rig.stack.names():
        pid = rig.stack.pid(name)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            rig.until_gone(name)


def test_restored_cluster_sends_what_was_pending_and_nothing_else(kafka: KafkaCluster, tmp_path: Path) -> None:
    place = str(tmp_path / "backups")
    with Rig(kafka.bootstrap_servers, tmp_path / "old") as old:
        # What has been delivered must never be sent again.
        delivered = old.publish(30)
        old.until(lambda books: books.settled(dict.fromkeys(delivered)), "the first mails are delivered", WAIT_S)
        first = postlane(old, "backup", place)
        assert first["full"] is True

        # On its way at the point: called for later, in doubt, routed on a paused lane, on a lane that parks its doubts.
        later = old.publish(3, send_at=datetime.now(UTC) + timedelta(hours=2))
        old.practice.control.add_fault("hang", "dot", recipient="*@hang.example")
        doubted = old.publish(1, domain="hang.example")
        old.until(lambda b: all("Attempted" in types(b, d) for d in ended(b, doubted)), "one is in doubt", WAIT_S)
        postlane(old, "pause", "--lane", "transactional")
        postlane(old, "pause", "--lane", "bulk")
        held = old.publish(6)
        bulk = old.publish(5, lane="bulk")
        mine = [*held, *bulk, *later]
        old.until(
            lambda b: all({"Routed", "Scheduled"} & set(types(b, d)) for d in ended(b, mine)),
            "all are on their way",
            WAIT_S,
        )
        unwanted = old.accepted[held[0]].to[0]
        postlane(old, "suppress", "add", unwanted)

        point = postlane(old, "backup", place, "--textfile", str(tmp_path / "backup.prom"))
        assert point["full"] is False
        assert "postlane_backup_last_success_timestamp_seconds" in (tmp_path / "backup.prom").read_text()
        assert postlane(old, "verify", place)["backup"] == point["backup"]

        # After the point: the lane is resumed and its mails arrive; then the cluster is lost.
        postlane(old, "resume", "--lane", "bulk")
        old.until(
            lambda books: all("Delivered" in types(books, d) for d in of(books, bulk)), "bulk is delivered", WAIT_S
        )
        names = old.books()
        ids = {
            name: of(names, group)
            for name, group in (
                ("delivered", delivered),
                ("held", held),
                ("bulk", bulk),
                ("later", later),
                ("doubted", doubted),
            )
        }
        lose(old)
        before = copies(old)
        old.practice.control.set_faults([])

        with Restored(old, tmp_path / "new") as new:
            again = ["restore", place, "--from-prefix", old.names.prefix]
            dry = postlane(new, *again, "--dry-run")
            assert dry["pending"]["bulk"] == {"uncertain": 5}
            assert dry["pending"]["transactional"] == {"uncertain": 6, "scheduled": 3, "in doubt": 1}
            postlane(new, *again, code=4)  # outside a terminal, without --yes
            result = postlane(new, *again, "--yes")
            assert postlane(new, *again, "--yes")["already"] is True
            assert result["written"]["mail.requests"] == 45

            # Paused, with everything running: a mail published now is routed, and nothing is sent.
            new.start_services()
            canary = new.publish(1)
            new.until(
                lambda books: any("Routed" in types(books, d) for d in of(books, canary)),
                "the canary is routed",
                WAIT_S,
            )
            assert copies(new) == before
            postlane(new, "backup", str(tmp_path / "backups"), code=1)  # another installation's place

            postlane(new, "resume", "--lane", "transactional")
            postlane(new, "resume", "--lane", "bulk")
            mails = [*held, *bulk, *doubted, *canary]
            books = new.until(
                lambda b: (
                    all(b.deliveries[d].terminal for m in mails for d in b.by_message[m])
                    and all(b.by_message[m] for m in mails)
                ),
                "what was pending has ended",
                WAIT_S,
            )
            now = copies(new)

    for delivery in ids["delivered"]:
        assert now[delivery] == 1, "a mail that had been delivered was sent again"
    for delivery in ids["bulk"]:  # at most once: nobody knows, so a person decides
        assert now[delivery] == 1
        assert books.deliveries[delivery].terminal == ["uncertain"]
    for delivery in ids["later"]:
        assert delivery not in now
        assert not books.deliveries[delivery].terminal
    for delivery in ids["doubted"]:
        assert books.deliveries[delivery].doubts >= 1
        assert books.deliveries[delivery].terminal == ["delivered"]
    for delivery in ids["held"]:
        wanted = books.deliveries[delivery].events[0]["recipient"] != unwanted
        assert now.get(delivery, 0) == (1 if wanted else 0), "a suppression of the backup came too late"
        assert books.deliveries[delivery].terminal == (["delivered"] if wanted else ["suppressed"])
        assert books.deliveries[delivery].doubts == 1, "the books say that it may have been sent before"
    originals = {
        m.key(): (m.value(), m.headers(), m.timestamp()) for m in read_topic(old.bootstrap, old.names.requests)
    }
    for message in read_topic(new.bootstrap, new.names.requests):
        if message.key() in originals:
            assert (message.value(), message.headers(), message.timestamp()) == originals[message.key()]
