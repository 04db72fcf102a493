"""One contestant's trial: a backlog of mails, kills at fixed shares of it, and what an independent witness counted.

The witness is the practice SMTP server: it takes `DOT_DELAY_S` for a mail and, for `DROPPED` of them, accepts the mail
and closes the connection without the 250, the one thing that no sender can tell from a refusal.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from postlane.local.practice import PracticeProcess

DOT_DELAY_S = 0.02
DROPPED = 0.01
CONNECTIONS = 8
# Longer than Kafka's session time-out, Postfix's back-off, and the 100 s after which a Celery worker looks again for
# what another took and did not finish (ten of those at a time).
QUIET_S = 130.0
TRIAL_MAX_S = 1200.0
_POLL_S = 0.02


class Contestant(Protocol):
    """Something that takes mails in and sends them, and can be killed."""

    name: str
    killed: str  # what a kill ends

    @property
    def practice(self) -> PracticeProcess: ...

    def accept(self, recipients: Sequence[str]) -> None:
        """Take one mail for each recipient; returns when the queue has acknowledged all."""

    def start(self) -> None:
        """Begin, or begin again, to send."""

    def kill(self) -> None:
        """SIGKILL."""

    def pending(self) -> int | None:
        """How many mails it still has; None when it cannot tell just now."""

    def uncertain(self) -> frozenset[str]:
        """The recipients of whom it says itself, on record, that a person has to look."""

    def note(self) -> str:
        """What it says itself of the run."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trial, by recipient.

    `lost`: the witness has none, and the contestant does not say so; `surplus`: copies beyond the first; `uncertain`:
    left for a person, `uncertain_lost` of them without a copy; `left`: queued still when nothing came for QUIET_S.
    """

    name: str
    killed: str
    mails: int
    kills: int
    lost: tuple[str, ...]
    repeated: tuple[str, ...]
    surplus: int
    uncertain: int
    uncertain_lost: int
    left: int | None
    dropped_replies: int
    seconds: float
    note: str

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "killed": self.killed,
            "mails": self.mails,
            "kills": self.kills,
            "lost": len(self.lost),
            "repeated": len(self.repeated),
            "surplus_copies": self.surplus,
            "uncertain": self.uncertain,
            "uncertain_without_a_copy": self.uncertain_lost,
            "still_queued": self.left,
            "replies_dropped": self.dropped_replies,
            "seconds": round(self.seconds, 1),
            "note": self.note,
            "lost_ids": list(self.lost),
            "repeated_ids": list(self.repeated),
        }


def run(contestant: Contestant, mails: int, kills: int, seed: int) -> Outcome:
    """Kill it each time another 1/(kills + 1) of the mails is with the witness; then wait until nothing comes."""
    recipients = [f"r{i}@example.com" for i in range(mails)]
    control = contestant.practice.control
    control.add_fault("delay", "dot", delay_s=DOT_DELAY_S)
    control.add_fault("accept_drop", "dot", probability=DROPPED, seed=seed)
    contestant.accept(recipients)
    began = time.monotonic()
    contestant.start()
    done = 0
    for turn in range(1, kills + 1):
        if not _reached(contestant, mails * turn // (kills + 1)):
            break
        contestant.kill()
        done += 1
        contestant.start()
    _quiet(contestant)
    entries = [entry for entry in control.ledger() if entry.accepted]
    copies: Counter[str] = Counter(rcpt for entry in entries for rcpt in entry.rcpts)
    strangers = set(copies) - set(recipients)
    assert not strangers, f"the witness has mails that nobody asked for: {sorted(strangers)[:3]}"
    uncertain = contestant.uncertain()
    return Outcome(
        name=contestant.name,
        killed=contestant.killed,
        mails=mails,
        kills=done,
        lost=tuple(r for r in recipients if not copies[r] and r not in uncertain),
        repeated=tuple(r for r in recipients if copies[r] > 1),
        surplus=sum(count - 1 for count in copies.values()),
        uncertain=len(uncertain),
        uncertain_lost=sum(1 for r in uncertain if not copies[r]),
        left=contestant.pending(),
        dropped_replies=sum(1 for entry in entries if entry.outcome == "accepted_dropped"),
        seconds=(entries[-1].at - entries[0].at) if entries else time.monotonic() - began,
        note=contestant.note(),
    )


def _records(contestant: Contestant) -> int:
    return int(contestant.practice.control.health()["records"])


def _reached(contestant: Contestant, count: int) -> bool:
    deadline = time.monotonic() + TRIAL_MAX_S
    while _records(contestant) < count:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _quiet(contestant: Contestant) -> None:
    """Until it says that nothing is left and 3 s have passed without a mail, or no mail has come for QUIET_S."""
    deadline = time.monotonic() + TRIAL_MAX_S
    seen, since = _records(contestant), time.monotonic()
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if (now := _records(contestant)) != seen:
            seen, since = now, time.monotonic()
        silent_s = time.monotonic() - since
        if silent_s > QUIET_S or (silent_s > 3.0 and contestant.pending() == 0):
            return
