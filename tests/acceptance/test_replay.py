"""Dead letters and replay, through the command line, on real Kafka, compared per id with the witness."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from postlane.core.identity import delivery_id, split_delivery_id
from postlane.local.kafka import KafkaCluster
from tests.acceptance.checker import Books, read_topic
from tests.acceptance.rig import Rig

pytestmark = pytest.mark.kafka

POLICY = {"code": 550, "text": "5.7.1 refused by policy"}
CLI_TIMEOUT_S = 60.0


def command(rig: Rig, *args: str) -> list[str]:
    return [sys.executable, "-c", "from postlane.cli.main import main; main()", *args]


def environment(rig: Rig) -> dict[str, str]:
    return {
        **os.environ,
        "POSTLANE_BOOTSTRAP_SERVERS": rig.bootstrap,
        "POSTLANE_TOPIC_PREFIX": rig.names.prefix,
        "POSTLANE_CONFIG": str(rig.folder / "postlane.yaml"),
        "POSTLANE_DATA_DIR": str(rig.folder / "operator"),
    }


def postlane(rig: Rig, *args: str, code: int = 0) -> list[dict[str, Any]]:
    """Run a command to its end; its documents."""
    done = subprocess.run(
        [*command(rig), *args, "--json"],
        env=environment(rig),
        capture_output=True,
        text=True,
        timeout=CLI_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def give_up(rig: Rig, count: int, **more: Any) -> list[str]:
    """Publish mails that every provider refuses; returns when all are dead letters."""
    rule = rig.practice.control.add_fault("reply", "rcpt", **POLICY)
    messages = rig.publish(count, **more)
    rig.until(lambda books: ends(books, messages) == Counter({"dead_lettered": count}), "all are dead letters")
    rig.practice.control.remove_fault(rule)
    return messages


def ends(books: Books, messages: list[str], generation: int = 0) -> Counter[str]:
    found: Counter[str] = Counter()
    for message in messages:
        for ident in books.by_message.get(message, ()):
            if split_delivery_id(ident)[2] == generation and books.deliveries[ident].terminal:
                found[books.deliveries[ident].terminal[-1]] += 1
    return found


def copies(books: Books, messages: list[str]) -> dict[str, int]:
    """Copies that the witness has, by message, over all generations."""
    return {m: sum(books.deliveries[d].copies for d in books.by_message.get(m, ())) for m in messages}


def requested_again(rig: Rig) -> Counter[str]:
    """Requests of later generations in the log, by new delivery."""
    found: Counter[str] = Counter()
    for message in read_topic(rig.bootstrap, rig.names.requests):
        body = json.loads(message.value())
        if body.get("generation", 0) > 0:
            found[delivery_id(body["message_id"], body["replay_recipient"], body["generation"])] += 1
    return found


def test_given_up_then_replayed_is_delivered_once(kafka: KafkaCluster, tmp_path: Path) -> None:
    with Rig(kafka.bootstrap_servers, tmp_path) as rig:
        fine = rig.publish(5)
        rig.until_settled()
        dead = give_up(rig, 20) + give_up(rig, 5, lane="bulk", domain="example.org")

        listed = postlane(rig, "dead-letters", "list")
        assert {row["message_id"] for row in listed} == set(dead)
        assert {(row["status"], row["reason"], row["provider"]) for row in listed} == {("open", "policy", "primary")}
        assert len(postlane(rig, "dead-letters", "list", "--lane", "bulk", "--where", "domain = 'example.org'")) == 5
        assert postlane(rig, "dead-letters", "list", "--status", "replayed") == []

        [told] = postlane(rig, "dead-letters", "show", listed[0]["id"])
        assert told["mail"]["content"]["text"] == "Hello"
        assert [event["type"] for event in told["events"]][-1] == "DeadLettered"
        assert postlane(rig, "dead-letters", "show", told["delivery_id"])[0]["id"] == told["id"]

        [dry] = postlane(rig, "dead-letters", "replay", "--dry-run")
        assert (dry["planned"], dry["replayed"], dry["by_lane"]) == (25, 0, {"bulk": 5, "transactional": 20})
        assert dry["by_domain"] == {"example.com": 20, "example.org": 5}
        assert postlane(rig, "dead-letters", "replay", code=4) == []
        assert requested_again(rig) == Counter()

        [done] = postlane(rig, "dead-letters", "replay", "--yes")
        same = ("planned", "by_reason", "by_lane", "by_domain", "guarded")
        assert {name: done[name] for name in same} == {name: dry[name] for name in same}
        assert done["replayed"] == 25
        books = rig.until(lambda b: ends(b, dead, 1) == Counter({"delivered": 25}), "all are delivered")
        assert copies(books, dead + fine) == dict.fromkeys(dead + fine, 1)
        assert books.problems(rig.accepted) == []

        [again] = postlane(rig, "dead-letters", "replay", "--yes")
        assert (again["replayed"], again["guarded"]) == (0, {"delivered": 25})
        assert {row["status"] for row in postlane(rig, "dead-letters", "list")} == {"replayed"}
        postlane(rig, "dead-letters", "replay", listed[0]["id"], "--yes", code=4)


@pytest.mark.parametrize("seed", range(2))
def test_killed_in_the_middle_and_run_again_mails_everyone_once(kafka: KafkaCluster, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    with Rig(kafka.bootstrap_servers, tmp_path, lanes=("transactional",)) as rig:
        dead = give_up(rig, 120)
        for _ in range(4):
            with (tmp_path / "replay.log").open("ab") as log:
                run = subprocess.Popen(
                    [*command(rig), "dead-letters", "replay", "--yes", "--rate", "40"],
                    env=environment(rig),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            before = len(requested_again(rig))
            wanted = before + dice.randrange(1, 25)
            deadline = time.monotonic() + CLI_TIMEOUT_S
            while len(requested_again(rig)) < wanted and run.poll() is None:
                assert time.monotonic() < deadline, "the replay does not get on"
            run.send_signal(signal.SIGKILL)
            run.wait(10)
        [done] = postlane(rig, "dead-letters", "replay", "--yes")
        books = rig.until(lambda b: ends(b, dead, 1) == Counter({"delivered": 120}), "all are delivered")
        assert copies(books, dead) == dict.fromkeys(dead, 1)
        assert books.problems(rig.accepted) == []
        asked = requested_again(rig)
        assert len(asked) == 120
        assert set(asked.values()) == {1}
        assert done["planned"] + sum(done["guarded"].values()) == 120


def test_two_operators_at_once_mail_everyone_once(kafka: KafkaCluster, tmp_path: Path) -> None:
    with Rig(kafka.bootstrap_servers, tmp_path, lanes=("transactional",)) as rig:
        dead = give_up(rig, 60)
        order = [*command(rig), "dead-letters", "replay", "--yes", "--rate", "100"]
        runs = [
            subprocess.Popen(order, env=environment(rig), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            for _ in range(2)
        ]
        assert [run.wait(CLI_TIMEOUT_S) for run in runs] == [0, 0]
        books = rig.until(lambda b: ends(b, dead, 1) == Counter({"delivered": 60}), "all are delivered")
        assert copies(books, dead) == dict.fromkeys(dead, 1)
        assert books.problems(rig.accepted) == []


def test_who_has_it_is_not_mailed_again(kafka: KafkaCluster, tmp_path: Path) -> None:
    """A window over everything: delivered, suppressed and uncertain recipients are guarded unless they are named."""
    with Rig(kafka.bootstrap_servers, tmp_path) as rig:
        postlane(rig, "suppress", "add", "never@example.com")
        delivered = rig.publish(6)
        [sent] = postlane(
            rig, "send", "--from", "shop@example.org", "--to", "never@example.com", "--subject", "s", "--text", "t"
        )
        rig.until_settled()
        rule = rig.practice.control.add_fault("accept_drop")
        lost = rig.publish(4, lane="bulk")  # parked: the witness has them, nobody knows
        rig.until(lambda b: ends(b, lost) == Counter({"uncertain": 4}), "all are uncertain")
        rig.practice.control.remove_fault(rule)
        dead = give_up(rig, 3)

        window = ("replay", "--since", "-1h")
        [dry] = postlane(rig, *window, "--dry-run")
        assert dry["planned"] == 3
        assert dry["guarded"] == {"delivered": 6, "suppressed": 1, "uncertain": 4}
        postlane(rig, "replay", "--yes", code=2)  # which window?
        [by_state] = postlane(rig, *window, "--dry-run", "--to-state", "uncertain")
        assert (by_state["planned"], by_state["guarded"]) == (4, {})

        found = postlane(rig, "dead-letters", "list", "--reason", "uncertain")
        assert {row["message_id"] for row in found} == set(lost)
        [resolved] = postlane(rig, "dead-letters", "resolve", found[0]["delivery_id"], "--as", "delivered")
        assert resolved["changed"]
        [resolved] = postlane(rig, "dead-letters", "resolve", found[0]["delivery_id"], "--as", "delivered")
        assert not resolved["changed"]
        postlane(rig, "dead-letters", "resolve", found[0]["delivery_id"], "--as", "bounced", code=4)
        postlane(rig, "dead-letters", "discard", found[1]["id"], code=4)
        [discarded] = postlane(rig, "dead-letters", "discard", found[1]["id"], "--yes", "--note", "seen")
        assert discarded["discarded"] == 1
        [dry] = postlane(rig, "dead-letters", "replay", "--reason", "uncertain", "--dry-run")
        assert (dry["planned"], dry["guarded"]) == (2, {"delivered": 1, "discarded": 1})
        assert [r["status"] for r in postlane(rig, "dead-letters", "list", "--reason", "uncertain")].count("open") == 2

        [done] = postlane(rig, *window, "--yes")
        assert done["replayed"] == 3
        books = rig.until(lambda b: ends(b, dead, 1) == Counter({"delivered": 3}), "the dead ones are delivered")
        assert copies(books, delivered + lost + dead) == dict.fromkeys(delivered + lost + dead, 1)
        assert copies(books, [sent["message_id"]]) == {sent["message_id"]: 0}

        named = ("--include", "suppressed", "--where", "recipient = 'never@example.com'")
        [done] = postlane(rig, *window, "--yes", *named)
        assert done["replayed"] == 1
        rig.until(lambda b: ends(b, [sent["message_id"]], 1) == Counter({"delivered": 1}), "who was named has it")
        [again] = postlane(rig, *window, "--yes", *named, "--include", "delivered")
        assert (again["replayed"], again["guarded"]) == (1, {})
        [again] = postlane(rig, *window, "--yes", *named, "--include", "delivered")
        assert again["replayed"] == 0  # once in a run
