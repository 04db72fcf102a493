"""A whole system whose mails go through a real Postfix, and the way back of what it bounces."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.acceptance.checker import read_topic
from tests.acceptance.rig import Rig
from tests.integration.bounce_gateway import GatewayProcess
from tests.integration.bouncing_postfix import BouncingPostfix, missing

from postlane import Mail
from postlane.bounce_keys import ReturnPaths
from postlane.cli.main import main
from postlane.clock import SystemClock
from postlane.core.identity import delivery_id
from postlane.core.policy import Bounces

ENDS = ("delivered", "bounced", "suppressed")
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

    def __init__(self, bootstrap: str, folder: Path, env: Mapping[str, str] | None = None) -> None:
        """`env` is for every service."""
        bounces = bounces_of(folder)
        self.paths = ReturnPaths(bounces, SystemClock())
        self.mx = BouncingPostfix(folder / "mx")

        def configure(body: dict[str, Any]) -> None:
            body["bounces"] = {"address": ADDRESS, "key_file": str(bounces.key_file)}
            body["providers"]["primary"]["port"] = self.mx.port

        self.rig = Rig(
            bootstrap,
            folder / "rig",
            ledger=True,
            config=configure,
            env=dict.fromkeys(("router", "sender", "ledger"), env or {}),
        )
        self.gateway = GatewayProcess(bootstrap, self.rig.names.prefix, folder / "rig" / "postlane.yaml", env)
        self._bootstrap = bootstrap

    def __enter__(self) -> Town:
        routes = {"example.com": self.rig.practice.smtp_port, "bounces.example": self.gateway.port}
        self._running = ExitStack()
        for part in (self.mx.to(routes), self.rig, self.gateway):
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

    def until_new_one_is(self, state: str, to: str, tenant: str = "default") -> None:
        """Publishes to this recipient until it ends so: the router follows its tables, which may take a moment."""

        def ends() -> str:
            ident = self.publish(to, tenant)
            return str(until(lambda: (s := self.delivery(ident)["state"]) in ENDS and s, f"{ident} ends"))

        until(lambda: ends() == state, f"a new mail to {to} is {state}")

    def postlane(self, *args: str) -> list[dict[str, Any]]:
        """The documents of a command."""
        env = {"POSTLANE_BOOTSTRAP_SERVERS": self._bootstrap, "POSTLANE_TOPIC_PREFIX": self.rig.names.prefix}
        done = CliRunner().invoke(main, [*args, "--json"], env=env)
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]

    def suppressed(self) -> set[bytes]:
        return {message.key() for message in read_topic(self._bootstrap, self.rig.names.suppressions)}
