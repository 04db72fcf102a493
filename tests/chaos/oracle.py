"""The checkers of a chaos run: those of `postlane drill`, and one more that only a run of one's own can have.

`postlane.ops.drill` follows topics and witness with plain clients and compares per id. What is added here: that the
witness has the bytes that the request calls for, so that nothing of a flipped bit reaches a mail.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from postlane.core.events import DispatchReady
from postlane.eventlog.ports import Received
from postlane.eventlog.tables import TemplateTable
from postlane.local.practice.client import LedgerEntry
from postlane.ops.drill import checkers, follow
from postlane.ops.drill.account import Delivery
from postlane.ops.drill.checkers import Broken
from postlane.ops.drill.load import Accepted
from postlane_sender.composer import Composer
from tests.chaos.town import LANES, Town

_READ_TIMEOUT_S = 60.0


class _Follower(follow.Follower):
    """Also composes each mail from its dispatch record, as the witness should have it."""

    def __init__(self, town: Town) -> None:
        self.wanted: dict[str, str] = {}  # delivery id -> digest
        self.times: list[float] = []  # of accepted copies, Unix time
        self._composer = Composer(TemplateTable())
        super().__init__(town.bootstrap, town.names, LANES, town.practice.control, {"log_level": "0"})

    def _dispatch(self, record: Received, body: dict[str, Any]) -> None:
        super()._dispatch(record, body)
        ident = body.get("delivery_id")
        if isinstance(ident, str) and ident not in self.wanted:
            try:
                mail = DispatchReady.model_validate(body)
            except ValidationError:
                return
            self.wanted[ident] = hashlib.sha256(self._composer(mail).data).hexdigest()

    def _copy(self, entry: LedgerEntry) -> None:
        super()._copy(entry)
        if entry.accepted:
            self.times.append(entry.at)


class Oracle:
    """Everything that is on record, kept up to date by `catch_up`."""

    def __init__(self, town: Town) -> None:
        self._town = town
        self._follower = _Follower(town)

    def close(self) -> None:
        self._follower.close()

    def catch_up(self) -> bool:
        """Read what is new, to the end. False where brokers or witness do not answer in time."""
        return self._follower.catch_up(_READ_TIMEOUT_S)

    @property
    def times(self) -> list[float]:
        """When the witness took a mail, in order; Unix time in seconds."""
        return self._follower.times

    def deliveries(self, messages: Iterable[str]) -> list[Delivery]:
        return self._follower.account.of(messages)

    def unsettled(self, accepted: Mapping[str, Accepted]) -> list[str]:
        """The accepted messages that are nowhere, or have a delivery without an end."""
        return self._follower.account.waiting(accepted)

    def problems(self, accepted: Mapping[str, Accepted]) -> list[Broken]:
        """Every broken promise of these, by id. Only once they are settled, and the log was read to its end."""
        found = checkers.check(self._follower.account, accepted)
        return [*found, *self._other_bytes(accepted)]

    def problems_now(self, accepted: Mapping[str, Accepted]) -> list[Broken]:
        """Those of the promises that hold at any moment, e.g. that no position passes an unsettled delivery."""
        return checkers.check(self._follower.account, accepted, checkers.LOCAL) if self.catch_up() else []

    def ledger_differs(self, accepted: Mapping[str, Accepted]) -> list[Broken]:
        """Deliveries of these that the ledger's database has otherwise than the log. Raises the database's errors."""
        rows = follow.ledger_rows(f"sqlite:///{self._town.database}", (d.ident for d in self.deliveries(accepted)))
        return list(checkers.ledger_is_the_fold(self._follower.account, accepted, rows))

    def _other_bytes(self, accepted: Mapping[str, Accepted]) -> Iterator[Broken]:
        for delivery in self.deliveries(accepted):
            wanted = self._follower.wanted.get(delivery.ident)
            if any(copy.digest != wanted for copy in delivery.copies):
                yield Broken("bytes", delivery.ident, "the witness has others than the request calls for")
