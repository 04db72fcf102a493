"""A coordinator found after we stopped waiting must not end the process (librdkafka#4605: an assertion did)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from postlane.eventlog.admin import KafkaAdmin
from postlane.eventlog.errors import Unreachable
from postlane.eventlog.kafka_config import ClientConfig
from postlane.eventlog.ports import Partition
from postlane.local.kafka import KafkaCluster

QUESTIONS = {
    "groups": lambda admin: admin.groups(["a-group"]),
    "group_offsets": lambda admin: admin.group_offsets("a-group", [Partition("a-topic", 0)]),
    "group_rights": lambda admin: admin.group_rights(["a-group"]),
}


async def ask_a_frozen_broker(bootstrap: str, broker: int) -> None:
    """Run in a process of its own, which an assertion of the library would end."""
    for question in QUESTIONS.values():
        admin = KafkaAdmin(ClientConfig(bootstrap, {}), timeout_s=1.0)
        await admin.cluster()
        os.kill(broker, signal.SIGSTOP)
        try:
            with pytest.raises(Unreachable):
                await question(admin)
        finally:
            os.kill(broker, signal.SIGCONT)
        async with asyncio.timeout(30):
            while True:
                try:
                    await question(admin)
                    break
                except Unreachable:
                    continue
    await asyncio.sleep(3)  # the clients that were let go are gone
    print("alive")


@pytest.mark.kafka
def test_a_coordinator_found_too_late_ends_nothing(broker: KafkaCluster) -> None:
    pid = broker.pid(0)
    assert pid is not None
    asked = subprocess.run(
        [sys.executable, "-m", __name__, broker.bootstrap_servers, str(pid)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (asked.returncode, asked.stdout) == (0, "alive\n"), asked.stderr


if __name__ == "__main__":
    asyncio.run(ask_a_frozen_broker(sys.argv[1], int(sys.argv[2])))
