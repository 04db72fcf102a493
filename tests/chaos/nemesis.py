"""Injects faults, alone or mixed, under load, and says of each what came of it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from postlane.ops.drill.checkers import Broken
from postlane.ops.drill.load import Accepted, Load
from tests.chaos.oracle import Oracle
from tests.chaos.registry import Fault, NotFelt
from tests.chaos.town import Town

AFTER_S = 4.0  # of load after the healing, which belongs to the fault too
BEFORE_S = 3.0  # of load without a fault, to know what is normal
SETTLE_TIMEOUT_S = 120.0
LEDGER_TIMEOUT_S = 45.0
_WINDOW_S = 3.0  # over which throughput is taken
_REPEATED = frozenset({"copies", "nothing from nowhere", "replay guard"})
_NORMAL = 0.9  # of the rate at which mails are published
_log = logging.getLogger("chaos")


@dataclass(slots=True)
class Row:
    """What came of one fault. Times in seconds; None: it did not happen within the run."""

    fault: str
    what: str
    seed: int
    detail: str = ""
    held_s: float = 0.0
    accepted: int = 0
    delivered: int = 0
    lost: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)  # outside the rule
    other: list[str] = field(default_factory=list)  # every other broken promise
    uncertain: int = 0
    doubts: int = 0
    resent_copies: int = 0  # copies beyond the first, within the rule
    bounced: int = 0
    silence_s: float = 0.0  # the longest time without a delivery
    recover_s: float | None = None
    normal_s: float | None = None
    restarts: dict[str, int] = field(default_factory=dict)
    failed: str = ""  # the nemesis itself could not do what it was to do
    not_injected: str = ""

    @property
    def broken(self) -> bool:
        return bool(self.lost or self.repeated or self.other)

    @property
    def good(self) -> bool:
        return not (self.broken or self.failed)

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"good": self.good}


class Nemesis:
    """One town, its load and its oracle, and the faults one after another."""

    def __init__(self, town: Town, load: Load, oracle: Oracle) -> None:
        self.town = town
        self.load = load
        self.oracle = oracle
        self.fresh = True  # no fault yet
        self._told: set[str] = set()  # problems that an earlier row has
        self._judged: set[str] = set()  # messages that an earlier row has judged; all are judged once more at the end

    def alone(self, fault: Fault, seed: int) -> Row:
        """The fault by itself, healed after its time."""
        row = Row(fault.name, fault.what, seed)
        dice = random.Random(f"{fault.name}-{seed}")
        before = self._begin()
        starts = self.town.supervisor.starts.copy()
        began = healed = time.time()
        try:
            with fault.begin(self.town, dice) as detail:
                row.detail = detail
                self._hold(row, fault.hold_s)
                healed = time.time()
        except Exception as error:
            _log.exception("%s", fault.name)
            row.failed = f"{type(error).__name__}: {error}"
        self._finish(row, before, began, healed, starts)
        return row

    def mixed(self, faults: Sequence[Fault], seed: int, for_s: float) -> Row:
        """Faults that overlap, drawn by seed until `for_s` seconds have passed; none touches what another touches."""
        row = Row("mixed", f"{len(faults)} kinds of faults, overlapping, for {for_s:.0f} s", seed)
        dice = random.Random(f"mixed-{seed}")
        before = self._begin()
        starts = self.town.supervisor.starts.copy()
        began = time.time()
        injected: list[str] = []
        running: list[tuple[float, Fault, contextlib.ExitStack]] = []
        try:
            while time.time() - began < for_s or running:
                running = self._heal_due(running, row)
                touched = frozenset().union(*(fault.touches for _, fault, _ in running))
                free = [fault for fault in faults if not fault.touches & touched]
                if time.time() - began < for_s and free and len(running) < 3:
                    fault = dice.choice(free)
                    undo = contextlib.ExitStack()
                    injected.append(fault.name)
                    _log.info("mixed: %s begins", fault.name)
                    undo.enter_context(fault.begin(self.town, dice))
                    running.append((time.monotonic() + fault.hold_s * dice.uniform(0.5, 1.2), fault, undo))
                self._hold(row, dice.uniform(0.5, 3.0))
        except Exception as error:
            _log.exception("mixed")
            row.failed = f"{type(error).__name__}: {error}: {traceback.format_exc(limit=-3)}"
        for _, fault, undo in running:
            self._heal(fault, undo, row)
        row.detail = f"{len(injected)} faults: {', '.join(injected)}"
        self._finish(row, before, began, time.time(), starts)
        return row

    def end(self, row: Row) -> None:
        """No more mails; everything ever accepted is compared once more, and what is found goes to the last row."""
        self.load.stop()
        snapshot = self.load.accepted()
        row.lost += self._fresh([f"{m}: accepted and not settled" for m in self._until_settled(snapshot)])
        row.other += self._fresh(self.oracle.problems_now(snapshot))
        self._judge(row, snapshot)
        self._ledger(row, snapshot)

    # ------------------------------------------------------------------------------------------------------- steps

    def _heal_due(
        self, running: list[tuple[float, Fault, contextlib.ExitStack]], row: Row
    ) -> list[tuple[float, Fault, contextlib.ExitStack]]:
        kept = []
        for until, fault, undo in running:
            if time.monotonic() >= until:
                self._heal(fault, undo, row)
            else:
                kept.append((until, fault, undo))
        return kept

    def _heal(self, fault: Fault, undo: contextlib.ExitStack, row: Row) -> None:
        _log.info("mixed: %s is healed", fault.name)
        try:
            undo.close()
        except NotFelt as error:
            _log.info("%s: %s", fault.name, error)
        except Exception as error:
            _log.exception("%s", fault.name)
            row.failed = f"{fault.name}: {type(error).__name__}: {error}"

    def _begin(self) -> dict[str, Accepted]:
        time.sleep(BEFORE_S)
        self.oracle.catch_up()
        return self.load.accepted()

    def _hold(self, row: Row, seconds: float) -> None:
        """While it lasts, look whether a position has passed an unsettled delivery."""
        until = time.monotonic() + seconds
        if seconds >= 4.0:
            time.sleep(seconds / 2)
            row.other += self._fresh(self.oracle.problems_now(self._unjudged()))
        time.sleep(max(0.0, until - time.monotonic()))

    def _unjudged(self) -> dict[str, Accepted]:
        return {message: one for message, one in self.load.accepted().items() if message not in self._judged}

    def _fresh(self, problems: Sequence[Broken | str]) -> list[str]:
        found = [text for text in map(str, problems) if text not in self._told]
        self._told.update(found)
        return found

    def _finish(self, row: Row, before: dict[str, Accepted], began: float, healed: float, starts: Any) -> None:
        """Wait until what was accepted by now is settled and throughput is normal again; then compare per id."""
        row.held_s = round(healed - began, 1)
        time.sleep(AFTER_S)
        snapshot = self.load.accepted()
        waiting = self._until_settled({m: one for m, one in snapshot.items() if m not in self._judged})
        self._until_normal(row, healed)
        row.lost += self._fresh([f"{m}: accepted and not settled" for m in waiting])
        mine = {message: accepted for message, accepted in snapshot.items() if message not in self._judged}
        self._judge(row, mine)
        self._ledger(row, mine)
        self._judged |= mine.keys()
        self._measure(row, before, snapshot, began, healed)
        now = self.town.supervisor.starts
        row.restarts = {name: count - starts[name] for name, count in now.items() if count > starts[name]}

    def _until_settled(self, snapshot: dict[str, Accepted]) -> list[str]:
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            read = self.oracle.catch_up()
            waiting = self.oracle.unsettled(snapshot)
            if (read and not waiting) or time.monotonic() > deadline:
                return waiting
            time.sleep(1.0)

    def _until_normal(self, row: Row, healed: float) -> None:
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while row.normal_s is None and time.monotonic() < deadline:
            self.oracle.catch_up()
            row.normal_s = self._normal_after(healed)
            time.sleep(0.5)

    def _judge(self, row: Row, snapshot: dict[str, Accepted]) -> None:
        for broken in self.oracle.problems(snapshot):
            found = self._fresh([broken])
            if broken.promise == "accepted is kept" or broken.said.endswith("the witness has no copy"):
                row.lost += found
            elif broken.promise in _REPEATED:
                row.repeated += found
            else:
                row.other += found

    def _ledger(self, row: Row, snapshot: dict[str, Accepted]) -> None:
        deadline = time.monotonic() + LEDGER_TIMEOUT_S
        differs: list[Broken] = [Broken("the ledger is the fold of the log", "database", "it was not read")]
        while differs and time.monotonic() < deadline:
            try:
                differs = self.oracle.ledger_differs(snapshot)
            except Exception as error:  # sqlite3's, while the ledger's disk is full
                differs = [Broken("the ledger is the fold of the log", "database", f"{type(error).__name__}: {error}")]
            if differs:
                time.sleep(1.0)
        row.other += self._fresh(differs)

    def _measure(
        self, row: Row, before: dict[str, Accepted], snapshot: dict[str, Accepted], began: float, healed: float
    ) -> None:
        mine = self.oracle.deliveries(m for m in snapshot if m not in before)
        row.accepted = len(snapshot) - len(before)
        row.delivered = sum(1 for d in mine if "delivered" in d.ends)
        row.uncertain = sum(1 for d in mine if "uncertain" in d.ends)
        row.bounced = sum(1 for d in mine if "bounced" in d.ends)
        row.doubts = sum(d.doubts for d in mine)
        row.resent_copies = sum(max(0, len(d.copies) - 1) for d in mine)
        times = [at for at in self.oracle.times if at >= began - 1.0]
        row.silence_s = round(max((b - a for a, b in itertools.pairwise(times)), default=0.0), 1)
        row.recover_s = next((round(at - healed, 1) for at in times if at >= healed), None)

    def _normal_after(self, healed: float) -> float | None:
        """From the healing to the beginning of the first _WINDOW_S in which deliveries keep up with what comes in."""
        times = [at for at in self.oracle.times if at >= healed]
        wanted = int(self.load.per_s * _WINDOW_S * _NORMAL)
        if len(times) < wanted:
            return None
        for i in range(len(times) - wanted + 1):
            if times[i + wanted - 1] - times[i] <= _WINDOW_S:
                return round(times[i] - healed, 1)
        return None
