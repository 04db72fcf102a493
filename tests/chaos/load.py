"""A steady stream of mails from a client that behaves: it keeps its keys, and publishes again where it is not sure."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

from postlane import Mail, Publisher, Receipt
from postlane.errors import PublishError

REPEATS = 0.05  # of all publishes: an older mail once more, with its key
IN_FLIGHT_MAX = 500
_REMEMBERED = 2000


@dataclass(frozen=True, slots=True)
class Accepted:
    """One mail that was acknowledged; `at` is Unix time in seconds."""

    message_id: str
    lane: str
    recipient: str
    at: float


class Load:
    """Publishes `per_s` mails a second, half in each lane, from a thread of its own, until `stop`."""

    def __init__(self, bootstrap: str, prefix: str, per_s: float, seed: int) -> None:
        self.per_s = per_s
        self.accepted: dict[str, Accepted] = {}  # message id
        self.repeats = 0
        self.failures = 0  # publishes that were refused or unknown, and made again
        self._publisher = Publisher(bootstrap, topic_prefix=prefix, timeout_s=10)
        self._dice = random.Random(f"load-{seed}")
        self._again: deque[tuple[str, Mail]] = deque()
        self._known: deque[tuple[str, Mail]] = deque(maxlen=_REMEMBERED)
        self._in_flight = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._paused = threading.Event()
        self._made = 0
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 60.0) -> None:
        """No new mails; returns when everything published is acknowledged. TimeoutError when it is not."""
        self._stopping.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"{self._in_flight + len(self._again)} mails were not acknowledged in {timeout_s:.0f} s")
        self._publisher.close()

    def snapshot(self) -> dict[str, Accepted]:
        """What is acknowledged now."""
        with self._lock:
            return dict(self.accepted)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping.is_set() or self._in_flight or self._again:
            wait_s = due - time.monotonic()
            if wait_s > 0:
                time.sleep(min(wait_s, 0.05))
                continue
            due = max(due + 1.0 / self.per_s, time.monotonic() - 1.0)
            if self._in_flight < IN_FLIGHT_MAX:
                self._one()

    def _one(self) -> None:
        with self._lock:
            chosen = self._again.popleft() if self._again else None
        if chosen is None:
            if self._stopping.is_set():
                return
            if self._known and self._dice.random() < REPEATS:
                chosen = self._dice.choice(self._known)
                self.repeats += 1
            else:
                chosen = self._new()
                self._known.append(chosen)
        key, mail = chosen
        with self._lock:
            self._in_flight += 1
        try:
            future = self._publisher.publish_soon(mail, key)
        except PublishError:
            self._answered(key, mail, None)
        else:
            future.add_done_callback(lambda f: self._answered(key, mail, f))

    def _new(self) -> tuple[str, Mail]:
        number = self._made
        self._made += 1
        recipient = f"r{number}@example.com"
        text = "\n".join(hashlib.sha256(f"{recipient} {i}".encode()).hexdigest() for i in range(8))
        lane = ("transactional", "bulk")[number % 2]
        return f"k{number}", Mail(sender="shop@example.org", to=[recipient], subject=f"{number}", text=text, lane=lane)

    def _answered(self, key: str, mail: Mail, future: Future[Receipt] | None) -> None:
        with self._lock:
            self._in_flight -= 1
            if future is None or future.exception() is not None:
                self.failures += 1
                self._again.append((key, mail))
                return
            message_id = future.result().message_id
            if message_id not in self.accepted:
                self.accepted[message_id] = Accepted(message_id, mail.lane, mail.to[0], time.time())
