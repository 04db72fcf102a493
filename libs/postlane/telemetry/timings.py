"""Histograms for hot loops: an observation is a bisection and two additions (0.3 µs), where Histogram.observe walks its
buckets under locks.

One thread observes; the HTTP thread reads at a scrape, and may see a sum one observation ahead of its buckets.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

OTHER = "other"


class Timing:
    """One combination of labels; `exemplars` keeps the last trace of each bucket."""

    __slots__ = ("bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] = {}

    def observe(self, seconds: float, trace_id: str = "") -> None:
        """`trace_id`: 32 hex digits, where the observation belongs to a trace that is exported."""
        bucket = bisect_left(self.bounds, seconds)
        self.counts[bucket] += 1
        self.total += seconds
        if trace_id:
            self.exemplars[bucket] = Exemplar({"trace_id": trace_id}, seconds, time.time())


class Timings(Collector):
    """A histogram with labels, at most `series_max` combinations; beyond them everything is "other"."""

    def __init__(
        self,
        name: str,
        says: str,
        labels: tuple[str, ...],
        bounds: tuple[float, ...],
        registry: CollectorRegistry,
        series_max: int,
    ) -> None:
        self._about = name, says, labels
        self._bounds = bounds
        self._series_max = series_max
        self._children: dict[tuple[str, ...], Timing] = {}
        registry.register(self)

    def labels(self, *values: str) -> Timing:
        """The child of these label values, in the order of the declaration."""
        child = self._children.get(values)
        if child is None:
            other = (OTHER,) * len(self._about[2])
            if len(self._children) >= self._series_max and values != other:
                return self.labels(*other)
            child = self._children[values] = Timing(self._bounds)
        return child

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """The name alone: registering must not collect."""
        name, says, labels = self._about
        yield HistogramMetricFamily(name, says, labels=labels)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """As Prometheus wants it: cumulative, the last bucket unbounded."""
        name, says, labels = self._about
        family = HistogramMetricFamily(name, says, labels=labels)
        ends = [str(float(bound)) for bound in self._bounds] + ["+Inf"]
        for values, child in list(self._children.items()):
            counts, total, seen = list(child.counts), child.total, 0
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
            for place, (end, count) in enumerate(zip(ends, counts, strict=True)):
                seen += count
                exemplar = child.exemplars.get(place)
                buckets.append((end, seen) if exemplar is None else (end, seen, exemplar))
            family.add_metric(values, buckets, total)
        yield family
