"""One scenario played from its first mail to its verdict.

  1. load, until mails arrive and for `before_s` more, so that normal is known
  2. the fault, for its time; all along: new records are read, the promises that hold at any moment are checked, the
     budget and the wish to stop are looked at, and Prometheus is asked
  3. healed; until mails arrive as before
  4. no more load; until everything accepted is settled; then every promise, per id
Whatever ends it, the fault is undone first.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from postlane.local.errors import LocalError
from postlane.ops.drill import verdict
from postlane.ops.drill.checkers import FINAL, LOCAL, Broken, check, ledger_is_the_fold
from postlane.ops.drill.follow import Follower, ledger_rows
from postlane.ops.drill.load import Load
from postlane.ops.drill.prometheus import Alarm
from postlane.ops.drill.result import Result
from postlane.ops.drill.scene import POLL_S, Abandoned, Scenario, Scene
from postlane.ops.drill.site import Site
from postlane.publisher import Publisher

_READ_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How long each step takes, and what a drill may cost.

    `hold_factor` stretches every fault's own time; `seconds_max`, `mails_max` and `affected_max` (mails of others) are
    budgets: the drill is abandoned beyond them.
    """

    per_s: float = 20.0
    before_s: float = 5.0
    after_s: float = 5.0
    hold_factor: float = 1.0
    hold_s: float | None = None
    arrive_timeout_s: float = 60.0
    settle_timeout_s: float = 120.0
    ledger_timeout_s: float = 30.0
    seconds_max: float | None = None
    mails_max: int | None = None
    affected_max: int | None = None


class Drill:
    """Plays scenarios on a site. `stopping` tells whether it shall end; `tell` hears of progress."""

    def __init__(
        self,
        site: Site,
        pace: Pace,
        tell: Callable[[str], None],
        stopping: Callable[[], str | None] = lambda: None,
        *,
        from_now: bool = False,
        seed: int = 1,
    ) -> None:
        self.site, self.pace = site, pace
        self._tell, self._stopping = tell, stopping
        self._from_now, self._seed = from_now, seed
        self._deadline = None if pace.seconds_max is None else time.monotonic() + pace.seconds_max
        self._alarms: dict[tuple[str, Any, float], Alarm] = {}
        self._asked_at = 0.0
        self._broken: list[Broken] = []
        self.campaigns: list[str] = []  # under which the mails of this drill go
        self._mails_left = pace.mails_max

    def play(self, scenario: Scenario) -> Result:
        """The result; whatever the fault does is in it.

        Raises BrokerUnavailable or PublishRefused when Kafka is not there to begin with.
        """
        result = Result(scenario.name, scenario.what)
        why_not = scenario.why_not(self.site)
        if why_not is not None:
            result.why = why_not
            return result
        self._broken, self._alarms = [], {}
        with contextlib.ExitStack() as undo:
            publisher = self._publisher()
            undo.callback(_close, publisher)
            publisher.connect()
            follower = self._follower()
            undo.callback(follower.close)
            load = self._load(publisher, scenario)
            scene = Scene(self.site, load, follower, lambda: self._look(scene), self._tell)
            started = time.time()
            try:
                self._play(scenario, scene, result)
            except (Abandoned, LocalError) as reason:  # it shall end, or a fault could not be injected or healed
                result.verdict, result.why = "abandoned", str(reason)
            finally:
                if self._mails_left is not None:
                    self._mails_left = max(0, self._mails_left - load.published)
                self._measure(scene, result, started)
        return result

    # ------------------------------------------------------------------------------------------------------- steps

    def _play(self, scenario: Scenario, scene: Scene, result: Result) -> None:
        try:
            self._warm_up(scene)
            self._break(scenario, scene, result)
            self._come_back(scene)
        finally:
            with contextlib.suppress(TimeoutError):
                scene.load.stop(10.0 if self._stopping() else 60.0)
        accepted = scene.load.accepted()
        settled = scene.until(
            lambda: not scene.follower.account.waiting(accepted),
            "everything accepted is settled",
            self.pace.settle_timeout_s,
        )
        scene.follower.catch_up()
        scene.follower.catch_up()  # the witness once more, after the topics: see follow.py
        if scenario.after is not None and settled:
            scenario.after(scene)
        self._broken += check(scene.follower.account, accepted, FINAL)
        self._broken += self._ledger(scene)
        if scene.site.restarts:
            scene.figures["restarts"] = scene.site.restarts
        result.figures = scene.figures

    def _warm_up(self, scene: Scene) -> None:
        scene.load.start()
        scene.tell("load has begun; waiting for the first mail")
        account, accepted = scene.follower.account, scene.load.accepted
        arrived = scene.until(
            lambda: any(d.copies for d in account.of(accepted())), "a first mail arrives", self.pace.arrive_timeout_s
        )
        if not arrived:
            raise Abandoned("no mail arrived before the fault: this stack does not work")
        scene.hold(self.pace.before_s)

    def _break(self, scenario: Scenario, scene: Scene, result: Result) -> None:
        hold_s = self.pace.hold_s if self.pace.hold_s is not None else scenario.hold_s * self.pace.hold_factor
        scene.figures["load_average"] = round(os.getloadavg()[0], 1)  # times are to be read beside it
        scene.hold_s, scene.began = hold_s, time.time()
        with scenario.play(scene) as detail:
            result.detail = detail
            scene.mark(f"{scenario.name}: {detail}")
            scene.hold(hold_s)
            scene.healed = time.time()
        if not any(mark.at >= scene.healed for mark in scene.marks):
            scene.mark("healed")

    def _come_back(self, scene: Scene) -> None:
        """Until mails that were published after the healing arrive, and `after_s` more."""

        def back() -> bool:
            late = {m for m, a in scene.load.accepted().items() if a.asked_at >= scene.healed}
            return any(d.copies for d in scene.follower.account.of(late))

        scene.until(back, "a mail published after the healing arrives", self.pace.settle_timeout_s)
        scene.hold(self.pace.after_s)

    def _measure(self, scene: Scene, result: Result, started: float) -> None:
        if not scene.began:
            return
        healed = scene.healed or time.time()
        account, accepted = scene.follower.account, scene.load.accepted()
        verdict.measure(result, account, accepted, scene.began, healed, started)
        result.held_s = round(healed - scene.began, 1)
        result.others_affected = len(verdict.others(account, accepted, scene.began))
        result.marks = [(round(mark.at - started, 2), mark.said) for mark in scene.marks]
        if scene.recovered is not None:
            result.rto_s = round(scene.recovered - scene.began, 2)
        self._alerts(scene, result)
        if result.verdict == "abandoned":
            result.broken = [str(b) for b in self._broken]
        else:
            verdict.judge(result, self._broken, scene.failed)

    # ------------------------------------------------------------------------------------------------- all along

    def _look(self, scene: Scene) -> None:
        why = self._stopping()
        if why:
            raise Abandoned(why)
        self._ask()
        scene.follower.catch_up(_READ_TIMEOUT_S)
        accepted = scene.load.accepted()
        broken = check(scene.follower.account, accepted, LOCAL)
        if broken:
            self._broken += [b for b in broken if b not in self._broken]
            raise Abandoned(f"a promise was broken: {broken[0]}")
        self._keep_to_budget(scene, accepted)

    def _keep_to_budget(self, scene: Scene, accepted: Any) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise Abandoned(f"the budget of {self.pace.seconds_max:.0f} s is spent")
        if self.pace.affected_max is not None and scene.began:
            touched = verdict.others(scene.follower.account, accepted, scene.began)
            if len(touched) > self.pace.affected_max:
                raise Abandoned(f"{len(touched)} mails of others were affected, {self.pace.affected_max} may be")

    def _ask(self) -> None:
        prometheus = self.site.prometheus
        if prometheus is None or time.monotonic() - self._asked_at < 1.0:
            return
        self._asked_at = time.monotonic()
        with contextlib.suppress(OSError, ValueError, KeyError):
            for alarm in prometheus.alarms():
                key = alarm.name, (alarm.labels, alarm.severity, alarm.for_s), alarm.since
                if key not in self._alarms or alarm.state == "firing":
                    self._alarms[key] = alarm

    def _alerts(self, scene: Scene, result: Result) -> None:
        prometheus = self.site.prometheus
        if prometheus is None:
            result.alerts_by = "not evaluated: no Prometheus is installed here, or no rules were found"
            return
        try:
            result.alerts_by = f"Prometheus {prometheus.version()} with the rules"
        except (OSError, ValueError, KeyError) as error:
            result.alerts_by = f"not evaluated: {error}"
            return
        result.alerts = verdict.told(self._alarms.values(), scene.began, time.time())

    def _ledger(self, scene: Scene) -> list[Broken]:
        """The ledger's database against the log; it may be a moment behind."""
        url, account = self.site.database_url, scene.follower.account
        if url is None:
            return []
        accepted = list(scene.load.accepted())
        deadline = time.monotonic() + self.pace.ledger_timeout_s
        while True:
            try:
                rows = ledger_rows(url, [d.ident for d in account.of(accepted)])
                broken = list(ledger_is_the_fold(account, accepted, rows))
            except Exception as error:  # the database's own
                broken = [
                    Broken("the ledger is the fold of the log", "the database", f"{type(error).__name__}: {error}")
                ]
            if not broken or time.monotonic() > deadline:
                return broken
            time.sleep(POLL_S)

    # ---------------------------------------------------------------------------------------------------- its parts

    def _publisher(self) -> Publisher:
        return Publisher(self.site.bootstrap, topic_prefix=self.site.names.prefix, kafka=self.site.options)

    def _follower(self) -> Follower:
        site = self.site
        return Follower(site.bootstrap, site.names, site.lanes, site.witness, site.options, from_now=self._from_now)

    def _load(self, publisher: Publisher, scenario: Scenario) -> Load:
        name = f"drill-{scenario.name}-{int(time.time())}"
        self.campaigns.append(name)
        return Load(
            publisher,
            self.pace.per_s,
            name=name,
            lanes=self.site.lanes,
            domain=self.site.recipients_domain,
            sender=self.site.sender,
            seed=self._seed,
            mails_max=self._mails_left,
        )


def _close(publisher: Publisher) -> None:
    with contextlib.suppress(Exception):  # mails that nobody acknowledged are known to the load
        publisher.close(5.0)
