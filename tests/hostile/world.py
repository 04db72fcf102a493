"""A whole system in which everybody is who they are, secrets are planted, and everything that is said is kept."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import patch

from click.testing import CliRunner

from postlane.cli.main import main
from postlane.eventlog.topics import declare
from postlane.local import ports, stack
from postlane.ops.acls import Acl, Identity, acls
from tests.acceptance.rig import Rig
from tests.hostile.secured import SecuredKafka

SERVICES: tuple[Identity, ...] = ("router", "sender", "ledger", "health")
READY_TIMEOUT_S = 180.0  # on a busy machine
# Each is looked for in everything that was written. No word of them stands anywhere else.
PROVIDER_PASSWORD = "pw-of-the-provider-Vq7Xz"
WRONG_PASSWORD = "pw-that-is-refused-Jk2Wm"
DATABASE_PASSWORD = "pw-of-the-database-Hn5Tr"
BACKUP_KEY = "b5c0ffee" * 8
BOUNCE_KEY = "key-of-the-return-paths-Gw3Lc"
OTLP_TOKEN = "token-of-the-collector-Pd8Ys"


class World:
    """The system, and what may be known of it."""

    def __init__(self, kafka: SecuredKafka, rig: Rig, rules: tuple[Acl, ...], collector: Collector) -> None:
        self.kafka = kafka
        self.rig = rig
        self.rules = rules
        self.collector = collector
        self.topics = [s.name for s in declare(rig.names, tuple(rig.config.lanes), rig.config.topics)]
        self.said: dict[str, str] = {}  # by command: what it printed and raised
        self.folder = rig.folder
        self.backup_key = rig.folder / "backup.key"
        self.backup_key.write_text(BACKUP_KEY)

    @property
    def secrets(self) -> dict[str, str]:
        planted = {
            "provider": PROVIDER_PASSWORD,
            "refused provider": WRONG_PASSWORD,
            "database": DATABASE_PASSWORD,
            "backup key": BACKUP_KEY,
            "bounce key": BOUNCE_KEY,
            "collector": OTLP_TOKEN,
        }
        return {**planted, **{f"SASL of {identity}": word for identity, word in self.kafka.passwords.items()}}

    def may(self, identity: str, resource: str, name: str, operation: str) -> bool:
        return any(
            acl.identity == identity
            and acl.resource == resource
            and operation in acl.operations
            and (name == acl.name or (acl.pattern == "prefixed" and name.startswith(acl.name)))
            for acl in self.rules
        )

    def client(self, identity: str, **more: object) -> dict[str, Any]:
        base = {"bootstrap.servers": self.kafka.sasl_servers, "log_level": 0}
        return {**base, **self.kafka.options(identity), **more}

    def environment(self, identity: str) -> dict[str, str]:
        return {
            "POSTLANE_TOPIC_PREFIX": self.rig.names.prefix,
            "POSTLANE_CONFIG": str(self.rig.folder / "postlane.yaml"),
            "POSTLANE_DATA_DIR": str(self.rig.folder / identity),
            "POSTLANE_DATABASE_URL": self.rig.database_url,
            "POSTLANE_BACKUP_KEY_FILE": str(self.backup_key),
            **self.kafka.environment(identity),
        }

    def run(self, identity: str, *args: str, env: dict[str, str] | None = None) -> tuple[int, str]:
        """Run a command as this identity: (exit code, stdout). All that it says is kept."""
        done = CliRunner().invoke(main, list(args), env={**self.environment(identity), **(env or {})})
        trace = "" if done.exc_info is None else "".join(traceback.format_exception(*done.exc_info))
        self.said[f"{len(self.said)} {identity} {' '.join(args)}"] = f"{done.stdout}\n{done.stderr}\n{trace}"
        return done.exit_code, done.stdout

    def postlane(self, identity: str, *args: str, code: int | None = 0) -> list[dict[str, Any]]:
        """Run a command as this identity; its documents. `code` None: however it ends."""
        ended, stdout = self.run(identity, *args, "--json")
        assert code in (None, ended), f"{args}: {ended}\n{list(self.said.values())[-1]}"
        return [json.loads(line) for line in stdout.splitlines()]


class Collector:
    """Takes OTLP over HTTP, and keeps the bodies as they came."""

    def __init__(self) -> None:
        kept = self.bodies = list[bytes]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                kept.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((ports.HOST, 0), Handler)
        self.url = f"http://{ports.HOST}:{self._server.server_address[1]}"

    def __enter__(self) -> Collector:
        Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _plant(folder: Path) -> dict[str, Any]:
    """Files with secrets, and what goes into the providers of the configuration."""
    folder.mkdir(parents=True)
    (folder / "password").write_text(PROVIDER_PASSWORD)
    (folder / "auth").write_text(f"shop:{PROVIDER_PASSWORD}\n")
    (folder / "bounce-key").write_text(f"{BOUNCE_KEY}\n")
    return {"username": "shop", "password_file": str(folder / "password")}


@contextmanager
def made(folder: Path) -> Iterator[World]:
    """The system, running."""
    login = _plant(folder / "planted")

    def configure(body: dict[str, Any]) -> None:
        body["providers"]["primary"].update(login)
        body["providers"]["backup"].update({"username": "shop", "password": WRONG_PASSWORD})
        body["lanes"]["transactional"]["providers"] = ["primary"]
        body["bounces"] = {"address": "bounces@bounces.example", "key_file": str(folder / "planted" / "bounce-key")}

    with SecuredKafka(folder / "kafka") as kafka, Collector() as collector:
        traced = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{OTLP_TOKEN}",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        env = {identity: {**kafka.environment(identity), **traced} for identity in SERVICES}
        listeners = ("primary", "backup")
        rig = Rig(kafka.plain_servers, folder / "rig", ledger=True, env=env, config=configure, listeners=listeners)
        rig._wanted["health"] = 1
        rig.practice._extra = ("--auth-file", str(folder / "planted" / "auth"))
        rules = acls(rig.names, tuple(rig.config.lanes))
        kafka.allow(rules)
        with patch.object(stack, "READY_TIMEOUT_S", READY_TIMEOUT_S), rig:
            yield World(kafka, rig, rules, collector)
