"""Postlane: the sender is killed; router and ledger run on. One sender, one router, one broker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from postlane import Mail
from postlane.local.practice import PracticeProcess
from tests.acceptance.rig import Rig


class PostlaneSender:
    killed = "the sender process"

    def __init__(self, bootstrap: str, folder: Path, lane: str) -> None:
        policy = {"transactional": "resend", "bulk": "park"}[lane]
        self.name = f"Postlane, in doubt: {policy}"
        self._lane = lane
        self._rig = Rig(bootstrap, folder, lanes=(lane,))

    def __enter__(self) -> PostlaneSender:
        self._rig.__enter__()
        self._rig.stack.stop("sender-1")
        return self

    def __exit__(self, *args: object) -> None:
        self._rig.__exit__(None, None, None)

    @property
    def practice(self) -> PracticeProcess:
        return self._rig.practice

    def accept(self, recipients: Sequence[str]) -> None:
        mails = [
            (Mail(sender="shop@example.org", to=[r], subject="Hello", text="Hello", lane=self._lane), r)
            for r in recipients
        ]
        for (mail, _), receipt in zip(mails, self._rig.publisher.publish_many(mails), strict=True):
            self._rig.accepted[receipt.message_id] = mail

    def start(self) -> None:
        self._rig.stack.start("sender-1")

    def kill(self) -> None:
        self._rig.stack.kill("sender-1")

    def pending(self) -> int | None:
        books = self._rig.books()
        return sum(1 for m in self._rig.accepted if not books.settled({m: None}))

    def uncertain(self) -> frozenset[str]:
        ends = [d for d in self._rig.books().deliveries.values() if "uncertain" in d.terminal]
        return frozenset(event["recipient"] for d in ends for event in d.events[:1])

    def note(self) -> str:
        books = self._rig.books()
        problems = books.problems(self._rig.accepted)
        assert problems == [], problems[:5]
        doubts = sum(d.doubts for d in books.deliveries.values())
        return f"{doubts} doubts recorded; every copy within the rule"
