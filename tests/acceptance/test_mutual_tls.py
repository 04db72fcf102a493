"""Every service and command over mutual TLS, with the variables of the production manifests and the rights of each
identity's certificate: publish over HTTP, delivered, folded, and the fleet's word of the provider."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from postlane.core.api_keys import digest, new_key
from postlane.local import ports
from postlane.ops.acls import acls
from tests.acceptance.checker import read_topic
from tests.acceptance.rig import Rig
from tests.acceptance.tls_kafka import TlsKafka

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
IDENTITIES = {"router": "router", "sender": "sender", "ledger": "ledger", "health": "health", "producer": "gateway"}
OTHERS = ("operator", "nobody")
TIMEOUT_S = 90.0


class World:
    """The rig, the broker and the gateway's address."""

    def __init__(self, kafka: TlsKafka, rig: Rig, api: int, key: str) -> None:
        self.kafka, self.rig, self.api, self.key = kafka, rig, api, key

    def postlane(self, identity: str, *arguments: str) -> tuple[int, list[Any], str]:
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("POSTLANE_")},
            **self.kafka.environment(identity),
            "POSTLANE_TOPIC_PREFIX": self.rig.names.prefix,
            "POSTLANE_CONFIG": str(self.rig.folder / "postlane.yaml"),
            "POSTLANE_DATABASE_URL": self.rig.database_url,
        }
        command = [sys.executable, "-c", "from postlane.cli.main import main; main()", *arguments, "--json"]
        done = subprocess.run(command, env=env, capture_output=True, timeout=TIMEOUT_S, check=False)
        return done.returncode, [orjson.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("tls")
    api, key = ports.free_port(), new_key(bytes(range(32)))
    (folder / "keys.yaml").write_text(f"keys: [{{name: shop, sha256: {digest(key)}}}]\n")
    with TlsKafka(folder / "broker", (*IDENTITIES.values(), *OTHERS)) as kafka:
        env = {service: kafka.environment(identity) for service, identity in IDENTITIES.items()}
        env["producer"] |= {
            "POSTLANE_GATEWAY_LISTEN": f"127.0.0.1:{api}",
            "POSTLANE_GATEWAY_KEYS_FILE": str(folder / "keys.yaml"),
        }
        rig = Rig(kafka.plain_servers, folder / "rig", ledger=True, env=env)
        rig._wanted |= {"health": 1, "producer": 1}
        lanes = tuple(rig.config.lanes)
        kafka.allow(acls(rig.names, lanes, {*IDENTITIES.values(), "operator"}))
        with rig:
            yield World(kafka, rig, api, key)


def until(holds: Any, what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline, f"not {what}"
        time.sleep(0.2)


def test_from_the_gateway_to_delivered_and_folded(world: World) -> None:
    ids = []
    for n in range(20):
        mail = {"sender": "shop@example.org", "to": f"u{n}@example.com", "subject": "s", "text": "t", "key": f"tls-{n}"}
        about = {"Authorization": f"Bearer {world.key}", "Content-Type": "application/json"}
        url = f"http://127.0.0.1:{world.api}/v1/mails"
        with urllib.request.urlopen(urllib.request.Request(url, orjson.dumps(mail), about), timeout=30) as answer:
            assert answer.status == 202
            ids.append(orjson.loads(answer.read())["message_id"])

    def delivered() -> bool:
        told = [world.postlane("operator", "status", ident) for ident in ids[:1] + ids[-1:]]
        return all(code == 0 and body[0]["deliveries"][0]["state"] == "delivered" for code, body, _ in told)

    until(delivered, "delivered")
    seen = [entry.rcpts[0] for entry in world.rig.practice.control.ledger()]
    assert sorted(seen) == sorted(f"u{n}@example.com" for n in range(20))
    until(lambda: read_topic(world.kafka.plain_servers, world.rig.names.health), "told how the provider does")


def test_a_certificate_without_rights_may_nothing(world: World) -> None:
    code, _, said = world.postlane("nobody", "send", "--from", "a@b.example", "--to", "c@d.example", "--text", "t")
    assert code != 0, said
    assert "Traceback" not in said
    code, _, said = world.postlane("operator", "suppress", "list")
    assert code == 0, said


def test_without_a_certificate_nobody_comes_in(world: World) -> None:
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("POSTLANE_")},
        **{k: v for k, v in world.kafka.environment("operator").items() if "CERTIFICATE" not in k and "KEY" not in k},
        "POSTLANE_TOPIC_PREFIX": world.rig.names.prefix,
    }
    command = [sys.executable, "-c", "from postlane.cli.main import main; main()", "suppress", "list", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, timeout=TIMEOUT_S, check=False, text=True)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
