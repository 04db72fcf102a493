"""The fleet's view as Prometheus metrics: made at each scrape from what is known, so that a provider that another
worker took over, or that nobody uses any more, leaves no series behind. Bounded: providers, and DOMAINS_MAX + 1
domains of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from postlane.core.health_facts import Figures, ProviderHealth
from postlane.core.health_state import HealthState
from postlane.core.health_sums import Kind

VALUES = {HealthState.UNKNOWN: 0, HealthState.UP: 1, HealthState.DEGRADED: 2, HealthState.DOWN: 3}
_QUANTILES = (("0.5", "answer_p50_s"), ("0.95", "answer_p95_s"), ("0.99", "answer_p99_s"))


class Measures(Collector):
    """What /metrics says of the providers of this worker, and of the worker."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._told: Sequence[ProviderHealth] = ()
        self.observations = Counter(
            "postlane_health_observations_total",
            "records read, by what became of them",
            ("outcome",),
            registry=registry,
        )
        self.written = Counter("postlane_health_written_total", "records written to mail.health", registry=registry)
        self.failed = Counter("postlane_health_write_failures_total", "records that were not taken", registry=registry)
        self.partitions = Gauge("postlane_health_partitions", "partitions owned", registry=registry)
        registry.register(self)

    def tell(self, told: Sequence[ProviderHealth]) -> None:
        """What is known now."""
        self._told = tuple(told)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called at each scrape, in the HTTP server's thread: works on values that nobody changes."""
        told = self._told
        state = _gauge("state", "0 unknown, 1 up, 2 degraded, 3 down", "provider")
        results = _gauge("results", "results within the window, by kind", "provider", "result")
        success = _gauge("success_ratio", "delivered of all results within the window", "provider")
        answers = _gauge("answer_seconds", "from the dot to the answer, within the window", "provider", "quantile")
        waits = _gauge("oldest_wait_seconds", "how long the oldest mail has waited for its answer", "provider")
        senders = _gauge("senders", "sender processes that reported of late", "provider")
        shut = _gauge("senders_open", "of them, those whose breaker is not closed", "provider")
        of_domain = _gauge("domain_state", "0 unknown, 1 up, 2 degraded, 3 down", "provider", "domain")
        domain_success = _gauge("domain_success_ratio", "delivered of all results", "provider", "domain")
        for health in told:
            name = health.provider
            state.add_metric((name,), VALUES[health.state])
            senders.add_metric((name,), health.senders)
            shut.add_metric((name,), health.senders_open)
            waits.add_metric((name,), health.oldest_wait_s)
            for kind in Kind:
                results.add_metric((name, kind.value), getattr(health, kind.value))
            _add_ratio(success, (name,), health)
            for quantile, attribute in _QUANTILES:
                seconds = getattr(health, attribute)
                if seconds is not None:
                    answers.add_metric((name, quantile), seconds)
            for domain, figures in health.domains.items():
                of_domain.add_metric((name, domain), VALUES[figures.state])
                _add_ratio(domain_success, (name, domain), figures)
        yield from (state, results, success, answers, waits, senders, shut, of_domain, domain_success)


def _gauge(name: str, says: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"postlane_provider_{name}", says, labels=labels)


def _add_ratio(gauge: GaugeMetricFamily, labels: tuple[str, ...], figures: Figures) -> None:
    count = sum(getattr(figures, kind.value) for kind in Kind)
    if count:
        gauge.add_metric(labels, figures.delivered / count)
