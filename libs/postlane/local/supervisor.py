"""What a platform's supervisor does: start again what has ended, unless it is held down. It also counts."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

from postlane.local.errors import LocalError
from postlane.local.kafka import KafkaCluster
from postlane.local.stack import Stack

_POLL_S = 0.25
_AGAIN_S = 1.0  # between two starts of the same process
_log = logging.getLogger("postlane.supervisor")


class Supervisor:
    """Of the services of a stack and, if wanted, of brokers: a thread each, since a broker's start takes seconds."""

    def __init__(self, stack: Stack, kafka: KafkaCluster | None = None) -> None:
        self._stack = stack
        self._kafka = kafka
        self._held: Counter[str | int] = Counter()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.starts: Counter[str] = Counter()  # of what had ended, by name

    def start(self) -> None:
        self._run(self._services)
        if (kafka := self._kafka) is not None:
            self._run(lambda: self._brokers(kafka))

    def _run(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name="postlane-supervisor", daemon=True)
        thread.start()
        self._threads.append(thread)

    def stop(self) -> None:
        """Returns when nothing is started any more."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(100)

    def hold(self, names: Iterable[str | int]) -> None:
        """These services (names) and brokers (numbers) stay down until they are let go of as often."""
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

    def _brokers(self, kafka: KafkaCluster) -> None:
        while not self._stopping.wait(_POLL_S):
            for i in range(kafka.brokers):
                if not self._free(i) or kafka.is_running(i):
                    continue
                try:
                    kafka.start_broker(i)
                except LocalError as error:
                    _log.warning("broker %d: %s", i, error)
                else:
                    self.starts[f"broker-{i}"] += 1
                    _log.info("broker %d started again", i)
