"""The gateway with its listener for bounces, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from postlane.core.api_keys import digest, new_key
from postlane.local import http_probe, ports

START_TIMEOUT_S = 60.0


class GatewayProcess:
    """`with GatewayProcess(...) as gateway:` — it listens at `gateway.port` when the block begins; a caller with
    `gateway.key` may bring bounces to `gateway.api` over HTTP."""

    def __init__(self, bootstrap: str, prefix: str, config_file: Path, env: Mapping[str, str] | None = None) -> None:
        self.port, api, self._probe = ports.free_ports(3)
        self.api = f"http://{ports.HOST}:{api}"
        self.key = new_key(bytes(range(32)))
        self._folder = config_file.parent
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("POSTLANE_", "OTEL_"))}
        self._env = {
            **clean,
            "POSTLANE_BOOTSTRAP_SERVERS": bootstrap,
            "POSTLANE_TOPIC_PREFIX": prefix,
            "POSTLANE_CONFIG": str(config_file),
            "POSTLANE_DATA_DIR": str(self._folder / "gateway"),
            "POSTLANE_INSTANCE_ID": f"gateway-{api}",
            "POSTLANE_HTTP_PORT": str(self._probe),
            "POSTLANE_GATEWAY_LISTEN": f"{ports.HOST}:{api}",
            "POSTLANE_GATEWAY_KEYS_FILE": str(self._folder / "gateway-keys.yaml"),
            "POSTLANE_BOUNCES_LISTEN": f"{ports.HOST}:{self.port}",
            **(env or {}),
        }

    def __enter__(self) -> GatewayProcess:
        self._folder.mkdir(parents=True, exist_ok=True)
        entry = f"{{name: mailbox, sha256: {digest(self.key)}, may: [bounces]}}"
        (self._folder / "gateway-keys.yaml").write_text(f"keys: [{entry}]\n")
        self._process = subprocess.Popen([sys.executable, "-m", "postlane_producer"], env=self._env)
        deadline = time.monotonic() + START_TIMEOUT_S
        while http_probe.get(f"http://{ports.HOST}:{self._probe}/readyz").status != 200:
            assert self._process.poll() is None, "the gateway has ended"
            assert time.monotonic() < deadline, "the gateway is not ready"
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        assert self._process.wait(60) == 0
