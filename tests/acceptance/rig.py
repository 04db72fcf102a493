"""A whole system on the session's Kafka: its own topics, services as processes, a practice server as witness."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import yaml
from confluent_kafka import KafkaException

from postlane import Mail, Publisher, Receipt
from postlane.core.policy import Config
from postlane.eventlog.admin import KafkaAdmin
from postlane.eventlog.kafka_config import ClientConfig
from postlane.eventlog.topics import TopicNames, declare
from postlane.local import ports
from postlane.local.practice import PracticeProcess
from postlane.local.stack import ChildSpec, Stack
from tests.acceptance.checker import Books, read_books

PARTITIONS = 4
WAIT_S = 60.0
_RETRY = {"first_s": 0.2, "factor": 2, "max_s": 2, "jitter": 0.2, "give_up_after": 6, "expire_after_s": 600}


def configuration(smtp: Mapping[str, int], partitions: int = PARTITIONS, **changes: object) -> dict[str, object]:
    """A postlane.yaml for the practice server's listeners, with short waits; `changes` go into its top level."""
    breaker = {"breaker_failures": 3, "breaker_probe_first_s": 0.2, "breaker_probe_max_s": 1.0}
    base: dict[str, object] = {
        "lanes": {
            "transactional": {"in_doubt": "resend", "providers": list(smtp), "intent_ttl_s": 3, "drain_timeout_s": 5},
            "bulk": {"in_doubt": "park", "providers": list(smtp), "intent_ttl_s": 3, "drain_timeout_s": 5},
        },
        "providers": {
            name: {"host": ports.HOST, "port": port, "tls": "none", "connections": 8, **breaker}
            for name, port in smtp.items()
        },
        "retry": _RETRY,
        "topics": {"partitions": partitions},
    }
    return {**base, **changes}


class Rig:
    """`with Rig(...) as rig:` — routers, senders (and a ledger on demand) that are ready when the block begins."""

    def __init__(
        self,
        bootstrap: str,
        folder: Path,
        *,
        senders: int = 1,
        routers: int = 1,
        ledger: bool = False,
        lanes: tuple[str, ...] = ("transactional", "bulk"),
        env: Mapping[str, Mapping[str, str]] | None = None,
        listeners: tuple[str, ...] = ("primary",),
        config: Callable[[dict[str, object]], None] | None = None,
        partitions: int = PARTITIONS,
    ) -> None:
        self.bootstrap = bootstrap
        self.folder = folder
        self.names = TopicNames(f"t{uuid.uuid4().hex[:8]}.")
        self.practice = PracticeProcess(folder / "practice", listeners)
        body = configuration(self.practice.smtp_ports, partitions)
        if config is not None:
            config(body)
        self.config = Config.model_validate(body)
        self._config_file = folder / "postlane.yaml"
        self._config_file.parent.mkdir(parents=True, exist_ok=True)
        self._config_file.write_text(yaml.safe_dump(body))
        self._own_env = dict(env or {})
        self._lanes = lanes
        self._wanted = {"router": routers, "sender": senders, "ledger": 1 if ledger else 0}
        self.database_url = f"sqlite:///{folder / 'ledger.db'}"
        self.stack = Stack(folder / "stack", tied=True)
        self.accepted: dict[str, Mail] = {}
        self._publisher: Publisher | None = None

    # ------------------------------------------------------------------------------------------------ up and down

    def __enter__(self) -> Rig:
        self.practice.start()
        asyncio.run(self._make_topics())
        self.stack.up(lambda _: self._children())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._publisher is not None:
            self._publisher.close()
        for name in self.stack.names():
            if (pid := self.stack.pid(name)) is not None:
                os.kill(pid, signal.SIGCONT)  # a stopped process cannot end in order
        self.stack.down(grace_s=15.0)
        self.practice.stop()

    async def _make_topics(self) -> None:
        admin = KafkaAdmin(ClientConfig(self.bootstrap))
        specs = declare(self.names, tuple(self.config.lanes), self.config.topics)
        await admin.create_topics(specs, 1)

    def _children(self) -> list[ChildSpec]:
        specs = []
        for service, count in self._wanted.items():
            for i in range(count):
                specs.append(self._child(service, f"{service}-{i + 1}"))
        return specs

    def _child(self, service: str, name: str) -> ChildSpec:
        port = ports.free_port()
        env = {
            "POSTLANE_BOOTSTRAP_SERVERS": self.bootstrap,
            "POSTLANE_TOPIC_PREFIX": self.names.prefix,
            "POSTLANE_CONFIG": str(self._config_file),
            "POSTLANE_INSTANCE_ID": name,
            "POSTLANE_HTTP_PORT": str(port),
            "POSTLANE_DATA_DIR": str(self.folder / "data" / name),
            "POSTLANE_DATABASE_URL": self.database_url,
            "POSTLANE_KAFKA_SESSION_TIMEOUT_MS": "6000",
            "POSTLANE_LANES": ",".join(self._lanes) if service == "sender" else "",
            **self._own_env.get(name, {}),
            **self._own_env.get(service, {}),
        }
        url = f"http://{ports.HOST}:{port}"
        return ChildSpec(name, (sys.executable, "-m", f"postlane_{service}"), env, f"{url}/readyz", url)

    # --------------------------------------------------------------------------------------------------- publishing

    @property
    def publisher(self) -> Publisher:
        if self._publisher is None:
            self._publisher = Publisher(self.bootstrap, topic_prefix=self.names.prefix)
        return self._publisher

    def publish(
        self, count: int, lane: str = "transactional", domain: str = "example.com", **more: object
    ) -> list[str]:
        """Publish `count` mails; returns the ids of the accepted messages."""
        batch = uuid.uuid4().hex[:6]
        mails = [
            (
                Mail(
                    sender="shop@example.org",
                    to=[f"r{i}-{batch}@{domain}"],
                    subject=f"Mail {i}",
                    text="Hello",
                    lane=lane,
                    **more,  # type: ignore[arg-type]
                ),
                f"{batch}-{i}",
            )
            for i in range(count)
        ]
        receipts: list[Receipt] = list(self.publisher.publish_many(mails))
        for (mail, _), receipt in zip(mails, receipts, strict=True):
            self.accepted[receipt.message_id] = mail
        return [receipt.message_id for receipt in receipts]

    # -------------------------------------------------------------------------------------------------------- waiting

    def books(self) -> Books:
        """Everything that the topics and the witness say now."""
        return read_books(self.bootstrap, self.names, tuple(self.config.lanes), self.practice.control)

    def until(self, condition: Callable[[Books], bool], what: str, timeout_s: float = WAIT_S) -> Books:
        """The books as soon as they satisfy `condition`; AssertionError with what they say after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        said = "nothing"
        while True:
            try:
                books = self.books()
            except KafkaException as error:  # a broker that is only just back leads no partition yet
                said = str(error)
            else:
                if condition(books):
                    return books
                said = str(books.summary())
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s} s: {what}; {said}")
            time.sleep(0.2)

    def revive(self) -> None:
        """What a supervisor does: start again what has ended."""
        for name in self.stack.names():
            if self.stack.pid(name) is None:
                self.stack.start(name)

    def until_settled(self, timeout_s: float = WAIT_S) -> Books:
        """The books when every accepted delivery is in a terminal state."""
        return self.until(lambda books: books.settled(self.accepted), "every accepted mail is settled", timeout_s)

    def until_gone(self, name: str, timeout_s: float = 30.0) -> None:
        """Returns when a child has ended (e.g. at a failpoint)."""
        deadline = time.monotonic() + timeout_s
        while self.stack.pid(name) is not None:
            assert time.monotonic() < deadline, f"{name} still runs after {timeout_s} s"
            time.sleep(0.05)
