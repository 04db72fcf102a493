"""The histograms of hot loops read like Prometheus's own, are bounded, and carry exemplars."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

from postlane.telemetry.timings import Timings

BOUNDS = (0.1, 1.0, 10)


@given(st.lists(st.sampled_from([0.0, 0.05, 0.1, 0.10001, 1.0, 5, 10, 11, 1e9]), max_size=30))
def test_it_reads_as_prometheus_own_histogram_does(values: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    timings = Timings("x_seconds", "says", ("lane",), BOUNDS, ours, 10)
    histogram = Histogram("x_seconds", "says", ("lane",), buckets=BOUNDS, registry=theirs)
    for value in values:
        timings.labels("a").observe(value)
        histogram.labels("a").observe(value)
    expected = [line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line]
    assert sorted(generate_latest(ours).decode().splitlines()) == sorted(expected)


def test_beyond_the_bound_a_label_is_other() -> None:
    registry = CollectorRegistry()
    timings = Timings("x_seconds", "says", ("lane", "provider"), BOUNDS, registry, 3)
    for number in range(50):
        timings.labels("bulk", f"p{number}").observe(0.5)
    text = generate_latest(registry).decode()
    assert text.count("x_seconds_count{") == 4
    assert 'x_seconds_count{lane="other",provider="other"} 47.0' in text


def test_an_exemplar_is_exposed_where_it_is_asked_for() -> None:
    registry = CollectorRegistry()
    timings = Timings("x_seconds", "says", ("lane",), BOUNDS, registry, 3)
    timings.labels("bulk").observe(0.5, "a" * 32)
    timings.labels("bulk").observe(0.6)
    assert f'# {{trace_id="{"a" * 32}"}} 0.5' in openmetrics(registry).decode()
    assert "trace_id" not in generate_latest(registry).decode()


def test_a_name_is_taken_once() -> None:
    registry = CollectorRegistry()
    Timings("x_seconds", "says", ("lane",), BOUNDS, registry, 3)
    with pytest.raises(ValueError, match="Duplicated"):
        Timings("x_seconds", "says", ("lane",), BOUNDS, registry, 3)
