"""A steady stream of mails from a publisher that behaves: it keeps its keys and publishes again where in doubt."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from postlane.errors import PublishError
from postlane.mail import Mail
from postlane.publisher import Publisher, Receipt

IN_FLIGHT_MAX = 500
REPEATS = 0.05  # of all publishes: an older mail once more, under its key
_REMEMBERED_MAX = 1_000
_LAG_MAX_S = 1.0  # a publisher that was held up catches up with no more than this


@dataclass(frozen=True, slots=True)
class Accepted:
    """One mail that was acknowledged. `asked_at` and `at` are Unix time in seconds: handed over, acknowledged."""

    message_id: str
    key: str
    lane: str
    recipient: str
    partition: int
    asked_at: float
    at: float
    kind: str = "ordinary"  # or what a scenario made it for


@dataclass(slots=True)
class _Order:
    key: str
    mail: Mail
    kind: str
    asked_at: float = field(default_factory=time.time)


class Load:
    """Publishes `per_s` mails a second over `lanes` from a thread of its own, from `start` until `stop`.

    A mail that was refused or whose fate is unknown is published again under its key until it is acknowledged; one in
    twenty is published twice anyway. `mails_max` is a budget: no new mail beyond it. `name` goes into keys, addresses
    and the campaign, so that one load's mails can be told from all others.
    """

    def __init__(
        self,
        publisher: Publisher,
        per_s: float,
        *,
        name: str,
        lanes: Sequence[str] = ("transactional", "bulk"),
        domain: str = "example.com",
        sender: str = "drill@example.org",
        seed: int = 1,
        mails_max: int | None = None,
    ) -> None:
        self.per_s = per_s
        self.name = name
        self.failures = 0  # publishes that were refused or unknown, and made again
        self.repeats = 0
        self.mails_max = mails_max
        self._publisher = publisher
        self._lanes, self._domain, self._sender = tuple(lanes), domain, sender
        self._dice = random.Random(f"load-{seed}")  # noqa: S311 (a choice of mails, no secret)
        self._accepted: dict[str, Accepted] = {}
        self._again: deque[_Order] = deque()
        self._known: deque[_Order] = deque(maxlen=_REMEMBERED_MAX)
        self._in_flight = 0
        self._made = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._giving_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drill-load", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout_s: float = 60.0) -> None:
        """No new mails; returns when everything published is acknowledged. TimeoutError when it is not."""
        self._stopping.set()
        if self._thread.ident is None:
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._giving_up.set()
            self._thread.join(5.0)
            raise TimeoutError(f"{self.unanswered} mails were not acknowledged within {timeout_s:.0f} s")

    @property
    def unanswered(self) -> int:
        """Mails that are on their way to Kafka, or wait to be published again."""
        with self._lock:
            return self._in_flight + len(self._again)

    @property
    def published(self) -> int:
        """Different mails handed over so far."""
        with self._lock:
            return self._made

    def accepted(self) -> dict[str, Accepted]:
        """What is acknowledged now, by message id."""
        with self._lock:
            return dict(self._accepted)

    def add(self, mail: Mail, key: str, kind: str) -> None:
        """One mail of a scenario's own, through the same hands: published soon, and kept account of as `kind`."""
        with self._lock:
            self._made += 1
            self._again.append(_Order(f"{self.name}-{key}", mail, kind))

    def ordinary(self, number: int) -> Mail:
        """The mail with this number."""
        recipient = f"{self.name}-{number}@{self._domain}"
        text = "\n".join(hashlib.sha256(f"{recipient} {i}".encode()).hexdigest() for i in range(8))
        lane = self._lanes[number % len(self._lanes)]
        return Mail(
            sender=self._sender, to=[recipient], subject=f"Drill {number}", text=text, lane=lane, campaign=self.name
        )

    # ------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        due = time.monotonic()
        while not self._giving_up.is_set() and not (self._stopping.is_set() and not self.unanswered):
            if self._pressing():
                self._one()
                if self._stopping.is_set():
                    time.sleep(0.01)  # what is refused at once shall not spin
                continue
            wait_s = due - time.monotonic()
            if wait_s > 0:
                time.sleep(min(wait_s, 0.02))
                continue
            due = max(due + 1.0 / self.per_s, time.monotonic() - _LAG_MAX_S)
            self._one()

    def _pressing(self) -> bool:
        """Whether something waits that does not keep to the rate: a scenario's own mail, or the last ones."""
        with self._lock:
            if self._in_flight >= IN_FLIGHT_MAX or not self._again:
                return False
            return self._stopping.is_set() or self._again[0].kind != "ordinary"

    def _one(self) -> None:
        order = self._next()
        if order is None:
            return
        with self._lock:
            self._in_flight += 1
        try:
            future = self._publisher.publish_soon(order.mail, order.key)
        except PublishError:
            self._answered(order, None)
        else:
            future.add_done_callback(self._reply_to(order))

    def _next(self) -> _Order | None:
        with self._lock:
            if self._in_flight >= IN_FLIGHT_MAX:
                return None
            if self._again:
                return self._again.popleft()
            if self._stopping.is_set() or (self.mails_max is not None and self._made >= self.mails_max):
                return None
            if self._known and self._dice.random() < REPEATS:
                self.repeats += 1
                return self._dice.choice(self._known)
            order = _Order(f"{self.name}-{self._made}", self.ordinary(self._made), "ordinary")
            self._made += 1
            self._known.append(order)
            return order

    def _reply_to(self, order: _Order) -> Callable[[Future[Receipt]], None]:
        return lambda future: self._answered(order, future)

    def _answered(self, order: _Order, future: Future[Receipt] | None) -> None:
        with self._lock:
            self._in_flight -= 1
            if future is None or future.exception() is not None:
                self.failures += 1
                self._again.append(order)
                return
            receipt = future.result()
            if receipt.message_id not in self._accepted:
                self._accepted[receipt.message_id] = Accepted(
                    receipt.message_id,
                    order.key,
                    order.mail.lane,
                    order.mail.to[0],
                    receipt.partition,
                    order.asked_at,
                    time.time(),
                    order.kind,
                )
