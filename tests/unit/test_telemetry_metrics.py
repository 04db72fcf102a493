"""The metrics have bounded label sets and names of ours."""

from __future__ import annotations

from prometheus_client import generate_latest

from postlane.telemetry.metrics import SERIES_MAX, Metrics


def test_beyond_the_bound_a_label_is_other() -> None:
    metrics = Metrics("sender")
    for number in range(SERIES_MAX + 50):
        metrics.sender.attempts_total.labels("bulk", f"provider-{number}", "delivered").inc()
    text = generate_latest(metrics.registry).decode()
    rows = [line for line in text.splitlines() if line.startswith("postlane_sender_attempts_total{")]
    assert len(rows) == SERIES_MAX + 1
    assert 'postlane_sender_attempts_total{lane="other",provider="other",result="other"} 50.0' in rows


def test_two_services_in_one_process_do_not_share_a_registry() -> None:
    one, two = Metrics("router"), Metrics("router")
    one.router.fenced_total.inc()
    assert b"postlane_router_fenced_total 1.0" in generate_latest(one.registry)
    assert b"postlane_router_fenced_total 0.0" in generate_latest(two.registry)


def test_a_service_exposes_only_its_own_group() -> None:
    metrics = Metrics("ledger")
    assert metrics.ledger.lag is metrics.ledger.lag
    text = generate_latest(metrics.registry).decode()
    assert "postlane_ledger_lag_records" in text
    assert "postlane_sender" not in text
    assert 'service="ledger"' in text


def test_every_group_can_be_made() -> None:
    metrics = Metrics("all")
    groups = (metrics.router, metrics.sender, metrics.ledger, metrics.producer)
    assert all(groups)
    names = {family.name for family in metrics.registry.collect()}
    assert all(name.startswith(("postlane_", "process_")) for name in names)
