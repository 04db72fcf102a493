"""What came of one scenario, as plain values: the report and the JSON are made from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["passed", "failed", "abandoned", "not played"]


@dataclass(slots=True)
class Told:
    """An alert whose condition came to hold with the fault or in its wake; times in seconds after its beginning.

    `condition_s`: since when; `for_s`: how long it has to hold; `fires_s`: their sum, which is when a person would
    have been told while the fault lasts (plus the intervals of scraping and evaluation of the Prometheus in use).
    `fired`: it did fire within the drill.
    """

    alert: str
    severity: str
    condition_s: float
    for_s: float
    fires_s: float
    fired: bool
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Second:
    """One second of the timeline: mails published and accepted by the witness in it."""

    at_s: float
    published: int
    delivered: int


@dataclass(slots=True)
class Result:
    """Times in seconds. `first_delivery_s`: from the fault to the first delivery of a mail published after it;
    `rto_s`: until every partition of every lane had one, or until what the scenario calls recovered."""

    scenario: str
    what: str
    verdict: Verdict = "not played"
    why: str = ""
    detail: str = ""
    held_s: float = 0.0
    rto_s: float | None = None
    first_delivery_s: float | None = None
    silence_s: float = 0.0
    slowest_s: float = 0.0
    accepted: int = 0
    delivered: int = 0
    lost: int = 0
    repeated: int = 0
    resent: int = 0
    uncertain: int = 0
    doubts: int = 0
    others_affected: int = 0
    broken: list[str] = field(default_factory=list)
    unmet: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    alerts: list[Told] = field(default_factory=list)
    alerts_by: str = ""
    fault_s: float = 0.0
    healed_s: float = 0.0
    ends_s: float = 0.0
    marks: list[tuple[float, str]] = field(default_factory=list)
    seconds: list[Second] = field(default_factory=list)

    @property
    def first_alert(self) -> Told | None:
        """The one that would have told a person first; a page before a ticket where both do at once."""
        return min(self.alerts, key=lambda told: (told.fires_s, told.severity != "page"), default=None)

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        first = self.first_alert
        return {**asdict(self), "first_alert": None if first is None else asdict(first)}
