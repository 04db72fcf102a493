"""The metrics of the services, made by prometheus_client on a registry of their own.

Every label set is bounded: beyond the bound a new combination counts as "other", so that no tenant, provider or reply
can make a process or a Prometheus grow without end. Gauges are for the service to set; nothing here reads a clock.
"""

from __future__ import annotations

from functools import cached_property
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from postlane.telemetry.http import package_version

SERIES_MAX = 200  # combinations of label values of one metric
OTHER = "other"
_FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
_RECORDS = (1, 4, 16, 64, 256, 1024, 4096)

T = TypeVar("T", bound=MetricWrapperBase)


class Labelled(Generic[T]):
    """A metric with labels, at most `series_max` combinations; children are kept, so that a look-up is one get."""

    def __init__(self, metric: T, labels: int, series_max: int = SERIES_MAX) -> None:
        self._metric = metric
        self._other = (OTHER,) * labels
        self._series_max = series_max
        self._children: dict[tuple[str, ...], T] = {}

    def labels(self, *values: str) -> T:
        """The child of these label values, in the order of the declaration; "other" beyond the bound."""
        child = self._children.get(values)
        if child is None:
            if len(self._children) >= self._series_max and values != self._other:
                return self.labels(*self._other)
            child = self._children[values] = self._metric.labels(*values)
        return child


class Metrics:
    """All metrics of one process: those of its service from the start, other groups when first asked for."""

    def __init__(self, service: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        info = Gauge("postlane_build_info", "1, with what runs", ("service", "version"), registry=self.registry)
        info.labels(service, package_version()).set(1)
        if service in ("router", "sender", "ledger", "producer"):
            getattr(self, service)

    @cached_property
    def router(self) -> RouterMetrics:
        return RouterMetrics(self.registry)

    @cached_property
    def sender(self) -> SenderMetrics:
        return SenderMetrics(self.registry)

    @cached_property
    def ledger(self) -> LedgerMetrics:
        return LedgerMetrics(self.registry)

    @cached_property
    def producer(self) -> ProducerMetrics:
        return ProducerMetrics(self.registry)


class _Group:
    """Makes metrics whose names start with `postlane_<prefix>_`."""

    def __init__(self, prefix: str, registry: CollectorRegistry) -> None:
        self._prefix = f"postlane_{prefix}_"
        self._registry = registry

    def counter(self, name: str, says: str) -> Counter:
        return Counter(self._prefix + name, says, registry=self._registry)

    def gauge(self, name: str, says: str) -> Gauge:
        return Gauge(self._prefix + name, says, registry=self._registry)

    def histogram(self, name: str, says: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(self._prefix + name, says, registry=self._registry, buckets=buckets)

    def counters(self, name: str, says: str, *labels: str) -> Labelled[Counter]:
        return Labelled(Counter(self._prefix + name, says, labels, registry=self._registry), len(labels))

    def gauges(self, name: str, says: str, *labels: str) -> Labelled[Gauge]:
        return Labelled(Gauge(self._prefix + name, says, labels, registry=self._registry), len(labels))

    def histograms(self, name: str, says: str, buckets: tuple[float, ...], *labels: str) -> Labelled[Histogram]:
        metric = Histogram(self._prefix + name, says, labels, registry=self._registry, buckets=buckets)
        return Labelled(metric, len(labels))


class RouterMetrics:
    """What the router and its delay stage did."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Group("router", registry)
        self.requests_total = make.counters("requests_total", "requests read, by what became of them", "outcome")
        self.deliveries_total = make.counters("deliveries_total", "deliveries made, by lane", "lane")
        self.delayed_total = make.counters("delayed_total", "dispatch records, by delay step", "step")
        self.batch_seconds = make.histogram("batch_seconds", "time of one transaction", _FAST_S)
        self.batch_records = make.histogram("batch_records", "records read per transaction", _RECORDS)
        self.lag = make.gauges("lag_records", "records not read yet", "topic")
        self.fenced_total = make.counter("fenced_total", "times another process was found to be us")
        self.rebuilds_total = make.counter("rebuilds_total", "producers thrown away after an unknown commit")
        self.remembered_keys = make.gauge("remembered_keys", "idempotency keys in the store (an estimate)")


class SenderMetrics:
    """What the sender tried and what came of it, per lane."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Group("sender", registry)
        self.attempts_total = make.counters(
            "attempts_total", "SMTP attempts that ended, by result", "lane", "provider", "result"
        )
        self.attempt_seconds = make.histograms(
            "attempt_seconds", "from the first command of a mail to its last reply", _LATENCY_S, "lane", "provider"
        )
        self.outcomes_total = make.counters("outcomes_total", "dispatch records settled, by event", "lane", "outcome")
        self.tick_seconds = make.histograms("tick_seconds", "time of one tick's transaction", _FAST_S, "lane")
        self.tick_records = make.histograms("tick_records", "records written per tick", _RECORDS, "lane")
        self.in_doubt = make.gauges("in_doubt", "deliveries waiting because an attempt may have arrived", "lane")
        self.doubts_total = make.counters("doubts_total", "doubts recorded", "lane", "policy")
        self.fenced_total = make.counters("fenced_total", "ticks refused because another owns the work", "lane")
        self.rebuilds_total = make.counters("rebuilds_total", "producers thrown away", "lane", "reason")
        self.takeover_seconds = make.histograms("takeover_seconds", "ownership to first admission", _FAST_S, "lane")
        self.backlog = make.gauges("backlog_records", "dispatch records not admitted yet", "lane")
        self.unsettled = make.gauges("unsettled", "dispatch records admitted and not settled", "lane")
        self.oldest_age_seconds = make.gauges("oldest_age_seconds", "age of the oldest unsettled record", "lane")
        self.partitions = make.gauges("partitions", "partitions owned", "lane")
        self.breaker_state = make.gauges("breaker_state", "0 closed, 1 half open, 2 open", "lane", "provider")
        self.connections = make.gauges("connections", "open SMTP sessions", "lane", "provider")
        self.provider_hint = make.gauges(
            "provider_hint", "what the fleet says: 0 nothing, 1 up, 2 degraded, 3 down", "provider"
        )
        self.observations_total = make.counters(
            "observations_total", "seconds of a provider, by whether they were published", "outcome"
        )


class LedgerMetrics:
    """How the fold goes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Group("ledger", registry)
        self.events_total = make.counters("events_total", "events folded, by type", "type")
        self.unreadable_total = make.counter("unreadable_total", "records that could not be read, kept and passed")
        self.batch_seconds = make.histogram("batch_seconds", "time of one database transaction", _LATENCY_S)
        self.batch_events = make.histogram("batch_events", "events per database transaction", _RECORDS)
        self.lag = make.gauge("lag_records", "records of mail.events not folded yet")
        self.conflicts_total = make.counter("conflicts_total", "batches another ledger had folded already")
        self.pruned_total = make.counter("pruned_total", "timeline rows past their retention")


class ProducerMetrics:
    """What the gateways took in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Group("producer", registry)
        self.accepted_total = make.counters("accepted_total", "mails acknowledged by Kafka, by way in", "way")
        self.refused_total = make.counters("refused_total", "mails refused, by way in and reason", "way", "reason")
        self.publish_seconds = make.histogram("publish_seconds", "from hand-over to acknowledgement", _FAST_S)
