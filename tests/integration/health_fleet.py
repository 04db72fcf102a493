"""An installation for the tests of provider health: health workers and senders as processes, on a real Kafka."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from postlane.core.events import DispatchReady, MailContent
from postlane.core.health_facts import Observed, ProviderHealth, Tally
from postlane.core.health_state import HealthState
from postlane.core.identity import delivery_id, message_id_from_key
from postlane.core.policy import Topics
from postlane.eventlog.codec import decode, encode, headers
from postlane.eventlog.errors import Retriable
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.ports import Outgoing, Received
from postlane.eventlog.topics import TopicNames, declare
from postlane.local.kafka import KafkaCluster
from postlane.local.ports import free_port
from postlane.local.practice import PracticeProcess

PARTITIONS = 3
WINDOW_S = 2
HINT_S = 3
LANE = "transactional"


class Fleet:
    """Topics of its own, the processes, and every word of `mail.health` in the order in which it came."""

    def __init__(self, kafka: KafkaCluster, folder: Path, practice: PracticeProcess | None) -> None:
        self.names = TopicNames(f"h{uuid4().hex[:8]}.")
        self.log = KafkaLog(kafka.bootstrap_servers)
        self.appender = self.log.appender()
        self.folder, self.practice = folder, practice
        self.words: dict[str, list[ProviderHealth]] = defaultdict(list)
        self.partition_of: dict[str, int] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ports: dict[str, int] = {}
        self._observed = 0
        ports = practice.smtp_ports if practice is not None else {"primary": 1, "backup": 2}
        (folder / "postlane.yaml").write_text(
            f"lanes: {{{LANE}: {{providers: [primary, backup]}}}}\n"
            "providers:\n"
            + "".join(f"  {n}: {{host: 127.0.0.1, port: {p}, tls: none, connections: 4}}\n" for n, p in ports.items())
            + f"topics: {{partitions: {PARTITIONS}}}\n"
            + f"health: {{window_s: {WINDOW_S}, recent_s: 1, results_min: 5, hint_s: {HINT_S}}}\n"
        )
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("POSTLANE_", "OTEL_"))}
        self._env = {
            **clean,
            "POSTLANE_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "POSTLANE_TOPIC_PREFIX": self.names.prefix,
            "POSTLANE_CONFIG": str(folder / "postlane.yaml"),
            "POSTLANE_DATA_DIR": str(folder),
        }

    async def create(self) -> None:
        await self.log.admin.create_topics(declare(self.names, (LANE,), Topics(partitions=PARTITIONS)), 1)
        await self.log.tail(self.names.health, self._heard).ready(60)

    def _heard(self, record: Received) -> None:
        health = decode(ProviderHealth, record.value)
        self.words[health.provider].append(health)
        self.partition_of[health.provider] = record.partition

    def start(self, service: str, instance: str) -> subprocess.Popen[bytes]:
        """A process, with the shortest session that a broker allows where it is a health worker."""
        env = {**self._env, "POSTLANE_INSTANCE_ID": instance}
        self.ports[instance] = free_port()
        env["POSTLANE_HTTP_PORT"] = str(self.ports[instance])
        if service == "health":
            env["POSTLANE_KAFKA_SESSION_TIMEOUT_MS"] = "6000"
        with (self.folder / f"{instance}.log").open("ab") as log:
            made = subprocess.Popen([sys.executable, "-m", f"postlane_{service}"], env=env, stderr=log)
        self.processes[instance] = made
        return made

    async def ready(self, *instances: str) -> None:
        await self.until(lambda: all(self.get(instance, "/readyz") for instance in instances))

    def get(self, instance: str, path: str) -> str:
        """What it answers with 200, else nothing."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[instance]}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, OSError):
            return ""

    def metric(self, instance: str, series: str) -> float | None:
        for line in self.get(instance, "/metrics").splitlines():
            if line.startswith(series + " "):
                return float(line.rpartition(" ")[2])
        return None

    async def until(self, condition: Callable[[], object], timeout_s: float = 180) -> None:
        async with asyncio.timeout(timeout_s):
            while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - other processes tell nobody
                await asyncio.sleep(0.1)

    def given(self, instance: str, partition: int) -> list[datetime]:
        """When a health worker was given a partition that it had not, by its own log."""
        lines = [json.loads(line) for line in (self.folder / f"{instance}.log").read_text().splitlines()]
        return [
            datetime.fromisoformat(line["at"])
            for line in lines
            if line.get("message") == "partitions" and partition in line["new"]
        ]

    def never_early(self) -> None:
        """Nobody gave a verdict before it had watched for a whole window."""
        for provider, words in self.words.items():
            for word in words:
                if word.state is HealthState.UNKNOWN or word.instance not in self.processes:
                    continue
                since = [at for at in self.given(word.instance, self.partition_of[provider]) if at <= word.at]
                assert since, f"{word.instance} speaks of {provider}, which is not its own"
                assert (word.at - since[-1]).total_seconds() > WINDOW_S - 0.2, (word.instance, provider)

    # ---------------------------------------------------------------------------------------------- what senders write

    async def observe(self, *providers: str, **counts: int) -> None:
        """What one sender would say of each of these."""
        now = datetime.now(UTC)
        for provider in providers:
            tally = Tally(**(counts or {"delivered": 10}), answer_s=((40, 10),))
            self._observed += 1
            seen = Observed(
                provider=provider, instance="test", at=now, total=tally, domains={f"{provider}.example": tally}
            )
            about = headers(Observed, "test", f"o{self._observed}", now)
            self.appender.append_soon(Outgoing(self.names.observations, None, provider.encode(), encode(seen), about))
        await self.appender.flush(30)

    async def observing(self, *providers: str, **counts: int) -> None:
        while True:
            await self.observe(*providers, **counts)
            await asyncio.sleep(0.25)

    async def lying(self, provider: str, state: HealthState) -> None:
        """A word about a provider that nothing supports, four times a second."""
        while True:
            now = datetime.now(UTC)
            health = ProviderHealth(provider=provider, at=now, state=state, instance="liar")
            about = headers(ProviderHealth, "liar", f"{now}", now)
            await self.appender.append(Outgoing(self.names.health, None, provider.encode(), encode(health), about))
            await asyncio.sleep(0.25)

    def mail(self, key: str) -> str:
        """One mail for the senders, as the router would hand it over; its delivery id."""
        message = message_id_from_key("default", key)
        recipient = f"{key}@example.com"
        ready = DispatchReady(
            delivery_id=delivery_id(message, recipient),
            message_id=message,
            recipient=recipient,
            lane=LANE,
            requested_at=datetime.now(UTC),
            content=MailContent(sender="shop@example.org", to=(recipient,), subject=key, text="On its way."),
        )
        about = headers(DispatchReady, "test", ready.delivery_id, ready.requested_at)
        try:
            self.appender.append_soon(Outgoing(self.names.dispatch(LANE), None, message.encode(), encode(ready), about))
        except Retriable:
            raise AssertionError("the test's own producer is full") from None
        return ready.delivery_id

    def taken(self) -> dict[str, list[str]]:
        """Delivery -> the providers that took it, once for each time."""
        assert self.practice is not None
        found: dict[str, list[str]] = defaultdict(list)
        for entry in self.practice.control.ledger():
            if entry.accepted and entry.delivery is not None:
                found[entry.delivery].append(entry.server)
        return found

    async def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait(10)
        await self.log.close()
