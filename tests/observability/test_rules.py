"""Each alert fires on its fault and is silent on the healthy fleet, by promtool's unit tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from observability.__main__ import HERE

from tests.observability.faults import FAULTS, MINUTES, Fault, healthy
from tests.observability.names import rules

PROMTOOL = shutil.which("promtool")
RULES = HERE / "prometheus" / "rules.yml"
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (Debian: apt install prometheus)"
)


def check(folder: Path, tests: list[dict[str, Any]], *, slos: bool = True) -> None:
    """Raises AssertionError with what promtool says. `slos` False leaves their rules out: they cost most."""
    file, chosen = folder / "tests.yml", folder / "rules.yml"
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    chosen.write_text(yaml.safe_dump({"groups": [g for g in groups if slos or "-slo" not in g["name"]]}))
    file.write_text(yaml.safe_dump({"rule_files": [str(chosen)], "evaluation_interval": "1m", "tests": tests}))
    run = subprocess.run([str(PROMTOOL), "test", "rules", str(file)], capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, (run.stdout + run.stderr)[:4000]


def firing(alert: str, labels: dict[str, str]) -> str:
    wanted = "".join(f',{name}="{value}"' for name, value in labels.items())
    return f'count(ALERTS{{alertstate="firing",alertname="{alert}"{wanted}}}) > bool 0'


def test(series: dict[str, str], expr: str, at: int, value: float | None) -> dict[str, Any]:
    samples = [] if value is None else [{"labels": "{}", "value": value}]
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expr, "eval_time": f"{at}m", "exp_samples": samples}],
    }


test.__test__ = False  # type: ignore[attr-defined]


def test_every_alert_has_a_fault() -> None:
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert {fault.alert for fault in FAULTS} | {"Watchdog"} == alerts


@needs_promtool
def test_each_alert_fires_on_its_fault(tmp_path: Path) -> None:
    for slos in (False, True):
        chosen = [fault for fault in FAULTS if fault.alert.startswith("Slo") is slos]
        check(tmp_path, [test(f.series(), firing(f.alert, f.fires), f.at, 1) for f in chosen], slos=slos)


@needs_promtool
def test_a_healthy_fleet_wakes_nobody(tmp_path: Path) -> None:
    loud = 'count(ALERTS{alertname!="Watchdog"}) or vector(0)'
    series = healthy()
    times = range(5, MINUTES, 5)
    check(tmp_path, [{**test(series, loud, 5, 0), "promql_expr_test": [expectation(loud, at, 0) for at in times]}])


def expectation(expr: str, at: int, value: float) -> dict[str, Any]:
    return {"expr": expr, "eval_time": f"{at}m", "exp_samples": [{"labels": "{}", "value": value}]}


@needs_promtool
def test_a_fault_wakes_only_for_what_it_is(tmp_path: Path) -> None:
    """A page for one lane says nothing of the other; a breaker of one sender is no provider down."""
    quiet = [
        (Fault("", FAULTS[0].changes), 'ALERTS{alertname="LaneStopped"}'),
        (Fault("", FAULTS[2].changes), 'ALERTS{alertname="ProviderDown"}'),
        (Fault("", FAULTS[5].changes), 'ALERTS{alertname="BacklogGrowing",lane="transactional"}'),
        (
            Fault("", {'postlane_sender_oldest_age_seconds{lane="bulk"}': "3600x100"}),
            'ALERTS{alertname="OldestMailTooOld"}',
        ),
    ]
    check(tmp_path, [test(fault.series(), f"count({expr}) or vector(0)", 60, 0) for fault, expr in quiet], slos=False)


@needs_promtool
def test_few_events_page_nobody(tmp_path: Path) -> None:
    """Ten mails an hour, half of them bad: a ticket at most."""
    few = {
        f'postlane_sender_outcomes_total{{instance="sender-1:9102",lane="{lane}",outcome="{outcome}"}}': "0+0.1x100"
        for lane in ("transactional", "bulk")
        for outcome in ("Delivered", "DeadLettered")
    }
    check(tmp_path, [test(few, 'count(ALERTS{alertname="SloDeliveryBurning",severity="page"}) or vector(0)', 90, 0)])


@needs_promtool
def test_an_alert_says_where_its_runbook_is(tmp_path: Path) -> None:
    fault = FAULTS[0]
    rule = next(rule for rule in rules() if rule.get("alert") == fault.alert)
    annotations = {
        "summary": "primary: every sender's breaker is open",
        "description": rule["annotations"]["description"],
        "runbook": "docs/runbooks/provider-down.md",
    }
    alert = {"exp_labels": {"severity": "page", "provider": "primary"}, "exp_annotations": annotations}
    series = [{"series": name, "values": values} for name, values in fault.series().items()]
    expected = [{"alertname": fault.alert, "eval_time": f"{fault.at}m", "exp_alerts": [alert]}]
    check(tmp_path, [{"interval": "1m", "input_series": series, "alert_rule_test": expected}], slos=False)
