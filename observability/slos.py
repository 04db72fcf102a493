"""SLOs as data (slos.yaml) -> recording rules of their error ratios and multi-window burn-rate alerts.

The windows and factors are those of the SRE workbook, chapter 5, for a budget of 30 days: 2 % of it gone in an hour
or 5 % in six hours pages, 10 % in one or three days opens a ticket. An alert needs both its windows, so that it comes
soon and goes as soon as the trouble is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from observability.alerts import Alert

FILE = Path(__file__).with_name("slos.yaml")
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
Name = Literal["first_attempt", "delivery", "books"]
# Terminal without a verdict of a server on the mail. A doubt that is sent again is no end: `Uncertain` counts in books.
_FAILED = "DeadLettered|Expired"
_ENDED = "Delivered|Bounced|DeadLettered|Expired"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Promise(_Strict):
    """What one lane is promised."""

    objective: float = Field(gt=0, lt=1)
    within_s: float | None = Field(default=None, gt=0)
    min_events: int = Field(ge=1)


class Slo(_Strict):
    name: Name
    says: str
    lanes: dict[str, Promise]


class Slos(_Strict):
    slos: list[Slo]


@dataclass(frozen=True, slots=True)
class Burn:
    """One pair of windows: how fast the budget must go in both."""

    speed: str
    factor: float
    long: str
    short: str
    severity: Literal["page", "ticket"]
    for_: str


BURNS = (
    Burn("fast", 14.4, "1h", "5m", "page", "2m"),
    Burn("steady", 6, "6h", "30m", "page", "15m"),
    Burn("slow", 3, "1d", "2h", "ticket", "1h"),
    Burn("creeping", 1, "3d", "6h", "ticket", "3h"),
)
ALERTS: dict[str, str] = {
    "first_attempt": "SloFirstAttemptBurning",
    "delivery": "SloDeliveryBurning",
    "books": "SloBooksBurning",
}


def read(path: Path = FILE) -> list[Slo]:
    """Raises pydantic.ValidationError for what is no such file."""
    slos = Slos.model_validate(yaml.safe_load(path.read_text("utf-8"))).slos
    for slo in slos:
        if slo.name == "first_attempt" and any(promise.within_s is None for promise in slo.lanes.values()):
            raise ValueError("first_attempt: every lane needs within_s")
    return slos


def _events(slo: Slo, lane: str, promise: Promise, window: str) -> tuple[str, str]:
    """(bad, all) events of a window, as rates."""
    of = f'lane="{lane}"'
    match slo.name:
        case "first_attempt":
            name = "postlane_sender_first_attempt_seconds"
            total = f"sum(rate({name}_count{{{of}}}[{window}]))"
            within = f'sum(rate({name}_bucket{{{of},le="{float(promise.within_s or 0)}"}}[{window}]))'
            return f"({total} - {within})", total
        case "delivery":
            name = "postlane_sender_outcomes_total"
            parked = f'sum(rate(postlane_sender_dead_letters_total{{{of},reason="uncertain"}}[{window}]))'
            failed = f'sum(rate({name}{{{of},outcome=~"{_FAILED}"}}[{window}]))'
            ended = f'sum(rate({name}{{{of},outcome=~"{_ENDED}"}}[{window}]))'
            return f"({failed} + {parked})", f"({ended} + {parked})"
        case "books":
            doubts = f"sum(rate(postlane_sender_doubts_total{{{of}}}[{window}]))"
            return doubts, f"sum(rate(postlane_sender_attempts_total{{{of}}}[{window}]))"


def recordings(slos: list[Slo]) -> list[dict[str, Any]]:
    """`postlane:slo_bad:ratio_rate<window>` per SLO and lane; absent while there are no events."""
    rules: list[dict[str, Any]] = []
    for slo in slos:
        for lane, promise in slo.lanes.items():
            labels = {"slo": slo.name, "lane": lane}
            for window in WINDOWS:
                bad, total = _events(slo, lane, promise, window)
                expr = f"({bad} / ({total} > 0))"
                rules.append({"record": f"postlane:slo_bad:ratio_rate{window}", "expr": expr, "labels": labels})
            _, total = _events(slo, lane, promise, "1h")
            rules.append({"record": "postlane:slo_events:increase1h", "expr": f"{total} * 3600", "labels": labels})
            rules.append({"record": "postlane:slo_objective", "expr": f"vector({promise.objective})", "labels": labels})
    return rules


def burn_alerts(slos: list[Slo]) -> list[Alert]:
    """Four alerts of one name for each SLO and lane, told apart by the label `speed`."""
    made: list[Alert] = []
    for slo in slos:
        for lane, promise in slo.lanes.items():
            for burn in BURNS:
                limit = f"{burn.factor:g} * {1 - promise.objective:.6g}"
                of = f'{{slo="{slo.name}",lane="{lane}"}}'
                enough = f"postlane:slo_events:increase1h{of} >= {promise.min_events}"
                expr = (
                    f"postlane:slo_bad:ratio_rate{burn.long}{of} > {limit}\n"
                    f"and postlane:slo_bad:ratio_rate{burn.short}{of} > {limit}"
                )
                if burn.severity == "page":
                    expr += f"\nand {enough}"
                made.append(
                    Alert(
                        name=ALERTS[slo.name],
                        expr=expr,
                        for_=burn.for_,
                        severity=burn.severity,
                        summary=f"lane {lane}: {slo.says}: the error budget burns {burn.factor:g} times too fast",
                        description=f"{{{{ $value | humanizePercentage }}}} of the last {burn.long} were bad; "
                        f"promised: at most {(1 - promise.objective):.4%}.",
                        labels={"slo": slo.name, "lane": lane, "speed": burn.speed},
                    )
                )
    return made
