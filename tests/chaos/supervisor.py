"""What a cluster's supervisor does: start again what has ended, unless it is held down. It also counts."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable

from postlane.local.errors import LocalError
from postlane.local.kafka import KafkaCluster
from postlane.local.stack import Stack

_POLL_S = 0.25
_AGAIN_S = 1.0  # between two starts of the same process
_log = logging.getLogger("chaos.supervisor")


class Supervisor:
    """Two threads, since a broker's start takes seconds: one for brokers, one for services."""

    def __init__(self, kafka: KafkaCluster, stack: Stack) -> None:
        self._kafka = kafka
        self._stack = stack
        self._held: Counter[str | int] = Counter()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.starts: Counter[str] = Counter()  # of what had ended, by name

    def start(self) -> None:
        for target in (self._services, self._brokers):
            thread = threading.Thread(target=target, name=target.__name__, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(100)

    def hold(self, names: Iterable[str | int]) -> None:
        with self._lock:
            self._held.update(names)

    def let_go(self, names: Iterable[str | int]) -> None:
        with self._lock:
            self._held.subtract(names)

    def _free(self, name: str | int) -> bool:
        with self._lock:
            return self._held[name] <= 0

    def _services(self) -> None:
        last: dict[str, float] = {}
        while not self._stopping.wait(_POLL_S):
            for name in self._stack.names():
                if not self._free(name) or self._stack.pid(name) is not None:
                    continue
                if time.monotonic() - last.get(name, 0.0) < _AGAIN_S:
                    continue
                last[name] = time.monotonic()
                code = self._stack.exit_code(name)
                try:
                    self._stack.launch(name)
                except LocalError as error:
                    _log.warning("%s: %s", name, error)
                else:
                    self.starts[name] += 1
                    _log.info("%s had ended with %s; started again", name, code)

    def _brokers(self) -> None:
        while not self._stopping.wait(_POLL_S):
            for i in range(self._kafka.brokers):
                if not self._free(i) or self._kafka.is_running(i):
                    continue
                try:
                    self._kafka.start_broker(i)
                except LocalError as error:
                    _log.warning("broker %d: %s", i, error)
                else:
                    self.starts[f"broker-{i}"] += 1
                    _log.info("broker %d started again", i)
