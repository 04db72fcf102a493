"""The metrics of the services, made by prometheus_client on a registry of their own.

Every label set is bounded: beyond the bound a new combination counts as "other", so that no tenant, provider or reply
can make a process or a Prometheus grow without end. Gauges are for the service to set; nothing here reads a clock.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from postlane.core.late_bounce import Outcome
from postlane.telemetry.http import package_version
from postlane.telemetry.timings import Timings

BOUNCE_OUTCOMES = tuple(outcome.value for outcome in Outcome)
SERIES_MAX = 200  # combinations of label values of one metric
OTHER = "other"
_FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
# From acceptance to the first attempt: the bounds of slos.yaml are among them (a test compares).
_WAIT_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400)
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
        self._service = service

    def watch(self, ready: Callable[[], str | None], data_dir: Path) -> None:
        """Tell with every scrape whether the process is ready and how full the disk of its data directory is."""
        gauge = Gauge("postlane_ready", "1 while /readyz answers 200", ("service",), registry=self.registry)
        gauge.labels(self._service).set_function(lambda: _is_ready(ready))
        for name, place in (("size", 0), ("free", 2)):
            disk = Gauge(f"postlane_data_{name}_bytes", f"{name} of the data directory's disk", registry=self.registry)
            disk.set_function(lambda place=place: _disk_bytes(data_dir, place))  # type: ignore[misc]

    @cached_property
    def kafka(self) -> KafkaMetrics:
        return KafkaMetrics(self.registry)

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


def _is_ready(ready: Callable[[], str | None]) -> float:
    try:
        return float(ready() is None)
    except Exception:  # as /readyz: a check that fails is itself a reason
        return 0.0


def _disk_bytes(folder: Path, place: int) -> float:
    """Of the nearest folder that exists; NaN where that cannot be told."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return float(shutil.disk_usage(folder)[place])
    except OSError:
        return float("nan")


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

    def timings(self, name: str, says: str, bounds: tuple[float, ...], *labels: str) -> Timings:
        return Timings(self._prefix + name, says, labels, bounds, self._registry, SERIES_MAX)


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
        self.aborted_total = make.counter("aborted_total", "transactions that were rolled back")
        self.dead_letters_total = make.counters("dead_letters_total", "records sent to the dead letters", "reason")
        self.partitions = make.gauge("partitions", "partitions owned")
        self.taking_over = make.gauge("taking_over", "partitions owned whose memory of keys is not there yet")
        self.store_rebuilds_total = make.counter("store_rebuilds_total", "times the store of keys was found damaged")
        self.rebuilds_total = make.counter("rebuilds_total", "producers thrown away after an unknown commit")
        self.remembered_keys = make.gauge("remembered_keys", "idempotency keys in the store (an estimate)")
        for outcome in ("accepted", "repeated", "conflicted", "undecodable"):
            self.requests_total.labels(outcome)
        for reason in ("undecodable", "key_conflict", "unknown_lane"):
            self.dead_letters_total.labels(reason)


class SenderMetrics:
    """What the sender tried and what came of it, per lane."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Group("sender", registry)
        self.attempts_total = make.counters(
            "attempts_total", "SMTP attempts that ended, by result", "lane", "provider", "result"
        )
        self.attempt_seconds = make.timings(
            "attempt_seconds", "from a mail's intent to the server's last word", _LATENCY_S, "lane", "provider"
        )
        self.first_attempt_seconds = make.timings(
            "first_attempt_seconds", "from acceptance (or send_at) to the first attempt's intent", _WAIT_S, "lane"
        )
        self.dead_letters_total = make.counters("dead_letters_total", "dead letters, by reason", "lane", "reason")
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
        self.under_way = make.gauges("under_way", "mails placed with a provider", "lane", "provider")
        self.provider_oldest_seconds = make.gauges(
            "provider_oldest_seconds", "age of the oldest attempt under way", "lane", "provider"
        )
        self.state_lag = make.gauges(
            "state_lag_records", "state records that a takeover would read, of the worst partition", "lane"
        )
        self.span_max = make.gauges("span_max_records", "how far reading may be ahead of the position", "lane")
        self.certificate_expiry = make.gauges(
            "certificate_expiry_timestamp_seconds", "when the certificate that a provider showed ends", "provider"
        )
        self.provider_hint = make.gauges(
            "provider_hint", "what the fleet says: 0 nothing, 1 up, 2 degraded, 3 down", "provider"
        )
        self.observations_total = make.counters(
            "observations_total", "seconds of a provider, by whether they were published", "outcome"
        )

    def expect(self, lane: str, providers: Iterable[str], policy: str) -> None:
        """Let the series of a lane begin at 0: Prometheus sees no increase in a series that begins above it."""
        for outcome in ("Delivered", "Bounced", "Deferred", "DeadLettered", "Expired", "Uncertain"):
            self.outcomes_total.labels(lane, outcome)
        for reason in ("uncertain", "undecodable"):
            self.dead_letters_total.labels(lane, reason)
        self.doubts_total.labels(lane, policy)
        self.fenced_total.labels(lane)
        self.in_doubt.labels(lane)
        for provider in providers:
            self.breaker_state.labels(lane, provider)
            for result in ("accepted", "in_doubt", "infrastructure", "policy", "provider", "throttled"):
                self.attempts_total.labels(lane, provider, result)


class LedgerMetrics:
    """How the fold goes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Group("ledger", registry)
        self.events_total = make.counters("events_total", "events folded, by type", "type")
        self.unreadable_total = make.counter("unreadable_total", "records that could not be read, kept and passed")
        self.batch_seconds = make.histogram("batch_seconds", "time of one database transaction", _LATENCY_S)
        self.batch_events = make.histogram("batch_events", "events per database transaction", _RECORDS)
        self.lag = make.gauge("lag_records", "records of mail.events not folded yet")
        self.behind_seconds = make.gauge("behind_seconds", "age of the newest event folded, 0 when none is left")
        self.conflicts_total = make.counter("conflicts_total", "batches another ledger had folded already")
        self.pruned_total = make.counter("pruned_total", "timeline rows past their retention")


class KafkaMetrics:
    """The cluster as a service sees it: one request for metadata now and then, no exporter needed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Group("kafka", registry)
        self.brokers = make.gauge("brokers", "brokers that are registered; 0 when none answers")
        self.under_replicated = make.gauge("under_replicated_partitions", "partitions with replicas out of sync")
        self.offline = make.gauge("offline_partitions", "partitions without a leader")


class ProducerMetrics:
    """What the gateways took in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Group("producer", registry)
        self.accepted_total = make.counters("accepted_total", "mails acknowledged by Kafka, by way in", "way")
        self.refused_total = make.counters("refused_total", "mails refused, by way in and reason", "way", "reason")
        self.publish_seconds = make.histogram("publish_seconds", "from hand-over to acknowledgement", _FAST_S)
        self.bounces_total = make.counters(
            "bounces_total", "recipients of notifications that came back, by what came of them", "outcome"
        )
        for outcome in BOUNCE_OUTCOMES:
            self.bounces_total.labels(outcome)

    def expect(self, way: str, reasons: Iterable[str]) -> None:
        """Let the series of a way in begin at 0, as SenderMetrics.expect."""
        self.accepted_total.labels(way)
        for reason in reasons:
            self.refused_total.labels(way, reason)
