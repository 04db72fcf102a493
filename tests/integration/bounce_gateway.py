"""The bounce listener as a process of its own: `bounce_gateway PORT`, wired as a service is, by its environment."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from postlane.bounce_keys import ReturnPaths
from postlane.clock import SystemClock
from postlane.config import read_config, read_environment
from postlane.eventlog.kafka import KafkaLog
from postlane.local import ports
from postlane.telemetry import tracing
from postlane.telemetry.metrics import Metrics
from postlane_producer.bounce_smtp import BounceListener
from postlane_producer.bounces import BounceIntake

PROGRAM = "tests.integration.bounce_gateway"


class GatewayProcess:
    """`with GatewayProcess(...) as gateway:` — it listens at `gateway.port` when the block begins."""

    def __init__(self, bootstrap: str, prefix: str, config_file: Path, env: Mapping[str, str] | None = None) -> None:
        self.port = ports.free_port()
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("POSTLANE_", "OTEL_"))}
        self._env = {
            **clean,
            "POSTLANE_BOOTSTRAP_SERVERS": bootstrap,
            "POSTLANE_TOPIC_PREFIX": prefix,
            "POSTLANE_CONFIG": str(config_file),
            **(env or {}),
        }

    def __enter__(self) -> GatewayProcess:
        self._process = subprocess.Popen(
            [sys.executable, "-m", PROGRAM, str(self.port)], env=self._env, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        assert self._process.wait(30) == 0


async def main(port: int) -> None:
    environment = read_environment()
    config = read_config(environment.config_file)
    assert config.bounces is not None
    tracer = tracing.tracer("producer", environment.instance_id)
    log = KafkaLog(environment.bootstrap_servers, environment.kafka)
    appender = log.appender()
    intake = BounceIntake(
        appender,
        environment.names,
        ReturnPaths(config.bounces, SystemClock()),
        suppress=config.bounces.suppress,
        clock=SystemClock(),
        tracer=tracer,
        metrics=Metrics("producer").producer,
    )
    listener = BounceListener(ports.HOST, port, intake)
    await listener.start()
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    print("ready", flush=True)
    await asked.wait()
    await listener.close()
    await appender.close()
    await log.close()
    tracer.close()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(int(sys.argv[1])))
