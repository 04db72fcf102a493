"""The Grafana dashboards as code -> grafana/dashboards/*.json, by grafana-foundation-sdk.

A panel is a title, a unit and its queries; a test checks that every metric in a query is one that exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery as Query
from grafana_foundation_sdk.models.dashboard import DataSourceRef
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
_RATE = "$__rate_interval"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; `queries` are (expression, legend). `kind`: timeseries, stat or table. `width` is of 24 columns."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    says: str = ""
    width: int = 8


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard: rows of panels."""

    uid: str
    title: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]


def _quantile(share: float, metric: str, by: str) -> str:
    return f"histogram_quantile({share}, sum by ({by}, le) (rate({metric}_bucket[{_RATE}])))"


OVERVIEW = Board(
    "postlane-overview",
    "Postlane: overview",
    (
        (
            "Now",
            (
                Panel("Alerts firing", (('ALERTS{alertstate="firing",severity!="none"}', ""),), kind="table", width=12),
                Panel("Services ready", (("sum by (service) (postlane_ready)", "{{service}}"),), kind="stat", width=6),
                Panel("Brokers", (("max(postlane_kafka_brokers)", "brokers"),), kind="stat", width=6),
            ),
        ),
        (
            "Mails",
            (
                Panel(
                    "Requests routed",
                    ((f"sum by (outcome) (rate(postlane_router_requests_total[{_RATE}]))", "{{outcome}}"),),
                    "ops",
                ),
                Panel(
                    "Outcomes",
                    (("sum by (outcome) (postlane:outcomes:rate5m)", "{{outcome}}"),),
                    "ops",
                ),
                Panel(
                    "Backlog", (("postlane:backlog:records", "{{lane}}"),), says="Read and not settled, and not read"
                ),
                Panel(
                    "Age of the oldest mail",
                    (("max by (lane) (postlane_sender_oldest_age_seconds)", "{{lane}}"),),
                    "s",
                ),
                Panel(
                    "Acceptance to first attempt",
                    (
                        (_quantile(0.5, "postlane_sender_first_attempt_seconds", "lane"), "{{lane}} p50"),
                        (_quantile(0.99, "postlane_sender_first_attempt_seconds", "lane"), "{{lane}} p99"),
                    ),
                    "s",
                ),
                Panel(
                    "Doubts and dead letters",
                    (
                        ("sum by (lane) (increase(postlane_sender_doubts_total[1h]))", "{{lane}} doubts"),
                        (
                            "sum by (lane, reason) (increase(postlane_sender_dead_letters_total[1h]))",
                            "{{lane}} {{reason}}",
                        ),
                        ("sum by (reason) (increase(postlane_router_dead_letters_total[1h]))", "router {{reason}}"),
                    ),
                    says="within an hour",
                ),
            ),
        ),
        (
            "Promises",
            (
                Panel(
                    "Error budget burn, 1 h",
                    (
                        (
                            "postlane:slo_bad:ratio_rate1h / (1 - postlane:slo_objective)",
                            "{{slo}} {{lane}}",
                        ),
                    ),
                    says="1 is what the budget allows; 14.4 pages",
                    width=12,
                ),
                Panel(
                    "Error budget burn, 3 d",
                    (("postlane:slo_bad:ratio_rate3d / (1 - postlane:slo_objective)", "{{slo}} {{lane}}"),),
                    width=12,
                ),
            ),
        ),
    ),
)

SENDING = Board(
    "postlane-sending",
    "Postlane: providers and senders",
    (
        (
            "Providers",
            (
                Panel(
                    "Attempts",
                    (("sum by (provider, result) (postlane:attempts:rate5m)", "{{provider}} {{result}}"),),
                    "ops",
                ),
                Panel(
                    "Failed for the provider's reasons",
                    (("postlane:attempts_failed:ratio_rate10m", "{{provider}}"),),
                    "percentunit",
                ),
                Panel(
                    "Breakers",
                    (("max by (lane, provider) (postlane_sender_breaker_state)", "{{lane}} {{provider}}"),),
                    says="0 closed, 1 half open, 2 open",
                ),
                Panel(
                    "Time of an attempt",
                    (
                        (_quantile(0.5, "postlane_sender_attempt_seconds", "provider"), "{{provider}} p50"),
                        (_quantile(0.99, "postlane_sender_attempt_seconds", "provider"), "{{provider}} p99"),
                    ),
                    "s",
                ),
                Panel(
                    "Under way",
                    (("sum by (lane, provider) (postlane_sender_under_way)", "{{lane}} {{provider}}"),),
                ),
                Panel(
                    "Oldest attempt under way",
                    (("max by (provider) (postlane_sender_provider_oldest_seconds)", "{{provider}}"),),
                    "s",
                ),
                Panel(
                    "Sessions",
                    (("sum by (lane, provider) (postlane_sender_connections)", "{{lane}} {{provider}}"),),
                ),
                Panel(
                    "Certificates end in",
                    (
                        (
                            "min by (provider) (postlane_sender_certificate_expiry_timestamp_seconds) - time()",
                            "{{provider}}",
                        ),
                    ),
                    "s",
                ),
                Panel(
                    "What the fleet says",
                    (("max by (provider) (postlane_sender_provider_hint)", "{{provider}}"),),
                    says="0 nothing, 1 up, 2 degraded, 3 down",
                ),
            ),
        ),
        (
            "The fleet's providers (postlane_health)",
            (
                Panel(
                    "State",
                    (("max by (provider) (postlane_provider_state)", "{{provider}}"),),
                    says="0 unknown, 1 up, 2 degraded, 3 down",
                ),
                Panel(
                    "Delivered of all results",
                    (("min by (provider) (postlane_provider_success_ratio)", "{{provider}}"),),
                    "percentunit",
                ),
                Panel(
                    "From the dot to the answer",
                    (
                        (
                            'max by (provider, quantile) (postlane_provider_answer_seconds{quantile!="0.95"})',
                            "{{provider}} p{{quantile}}",
                        ),
                    ),
                    "s",
                ),
            ),
        ),
        (
            "Books",
            (
                Panel(
                    "Time of a tick",
                    (
                        (_quantile(0.5, "postlane_sender_tick_seconds", "lane"), "{{lane}} p50"),
                        (_quantile(0.99, "postlane_sender_tick_seconds", "lane"), "{{lane}} p99"),
                    ),
                    "s",
                ),
                Panel("Records of a tick", ((_quantile(0.5, "postlane_sender_tick_records", "lane"), "{{lane}} p50"),)),
                Panel(
                    "Refused ticks, producers thrown away",
                    (
                        (f"sum by (lane) (rate(postlane_sender_fenced_total[{_RATE}]))", "{{lane}} refused"),
                        (
                            f"sum by (lane, reason) (rate(postlane_sender_rebuilds_total[{_RATE}]))",
                            "{{lane}} {{reason}}",
                        ),
                    ),
                    "ops",
                ),
                Panel("In doubt now", (("sum by (lane) (postlane_sender_in_doubt)", "{{lane}}"),)),
                Panel(
                    "Books reach back",
                    (
                        ("max by (lane) (postlane_sender_state_lag_records)", "{{lane}} state records"),
                        ("max by (lane) (postlane_sender_span_max_records)", "{{lane}} span at most"),
                    ),
                    says="what a takeover would read, of the worst partition",
                ),
                Panel(
                    "Takeover of a partition",
                    ((_quantile(0.99, "postlane_sender_takeover_seconds", "lane"), "{{lane}} p99"),),
                    "s",
                ),
                Panel(
                    "Partitions",
                    (("sum by (instance, lane) (postlane_sender_partitions)", "{{instance}} {{lane}}"),),
                ),
            ),
        ),
    ),
)

SERVICES = Board(
    "postlane-services",
    "Postlane: gateway, router, ledger, Kafka, processes",
    (
        (
            "Gateway",
            (
                Panel(
                    "Accepted",
                    ((f"sum by (way) (rate(postlane_producer_accepted_total[{_RATE}]))", "{{way}}"),),
                    "ops",
                ),
                Panel(
                    "Refused",
                    ((f"sum by (reason) (rate(postlane_producer_refused_total[{_RATE}]))", "{{reason}}"),),
                    "ops",
                ),
                Panel(
                    "Time to acknowledge",
                    (
                        (_quantile(0.5, "postlane_producer_publish_seconds", "job"), "p50"),
                        (_quantile(0.99, "postlane_producer_publish_seconds", "job"), "p99"),
                    ),
                    "s",
                ),
            ),
        ),
        (
            "Router",
            (
                Panel("Lag", (("sum by (topic) (postlane_router_lag_records)", "{{topic}}"),)),
                Panel(
                    "Time of a transaction",
                    (
                        (_quantile(0.5, "postlane_router_batch_seconds", "job"), "p50"),
                        (_quantile(0.99, "postlane_router_batch_seconds", "job"), "p99"),
                    ),
                    "s",
                ),
                Panel(
                    "Deliveries and delays",
                    (
                        (f"sum by (lane) (rate(postlane_router_deliveries_total[{_RATE}]))", "{{lane}}"),
                        (f"sum by (step) (rate(postlane_router_delayed_total[{_RATE}]))", "delay {{step}}"),
                    ),
                    "ops",
                ),
                Panel(
                    "Partitions",
                    (
                        ("sum by (instance) (postlane_router_partitions)", "{{instance}} owned"),
                        ("sum by (instance) (postlane_router_taking_over)", "{{instance}} taking over"),
                    ),
                ),
                Panel("Keys remembered", (("sum(postlane_router_remembered_keys)", "keys"),)),
                Panel(
                    "Rolled back, rebuilt",
                    (
                        (f"sum(rate(postlane_router_aborted_total[{_RATE}]))", "rolled back"),
                        (f"sum(rate(postlane_router_rebuilds_total[{_RATE}]))", "producers thrown away"),
                        (f"sum(rate(postlane_router_store_rebuilds_total[{_RATE}]))", "stores rebuilt"),
                    ),
                    "ops",
                ),
            ),
        ),
        (
            "Ledger",
            (
                Panel(
                    "Events folded",
                    ((f"sum by (type) (rate(postlane_ledger_events_total[{_RATE}]))", "{{type}}"),),
                    "ops",
                ),
                Panel(
                    "Behind",
                    (("max(postlane_ledger_behind_seconds)", "behind"),),
                    "s",
                ),
                Panel(
                    "Time of a batch",
                    ((_quantile(0.99, "postlane_ledger_batch_seconds", "job"), "p99"),),
                    "s",
                ),
            ),
        ),
        (
            "Kafka and processes",
            (
                Panel(
                    "Partitions in trouble",
                    (
                        ("max(postlane_kafka_under_replicated_partitions)", "under-replicated"),
                        ("max(postlane_kafka_offline_partitions)", "offline"),
                    ),
                ),
                Panel(
                    "CPU",
                    ((f"rate(process_cpu_seconds_total[{_RATE}])", "{{job}} {{instance}}"),),
                    "percentunit",
                ),
                Panel("Memory", (("process_resident_memory_bytes", "{{job}} {{instance}}"),), "bytes"),
                Panel(
                    "Data directories, free",
                    (("postlane_data_free_bytes / postlane_data_size_bytes", "{{job}} {{instance}}"),),
                    "percentunit",
                ),
                Panel("Versions", (("sum by (service, version) (postlane_build_info)", "{{service}} {{version}}"),)),
                Panel(
                    "Last backup",
                    (("time() - max by (prefix) (postlane_backup_last_success_timestamp_seconds)", "age"),),
                    "s",
                ),
            ),
        ),
    ),
)

BOARDS: tuple[Board, ...] = (OVERVIEW, SENDING, SERVICES)


def _targets(queries: Sequence[tuple[str, str]], *, instant: bool) -> list[Builder[Query]]:
    made: list[Builder[Query]] = []
    for place, (expr, legend) in enumerate(queries):
        query = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(chr(ord("A") + place)).datasource(SOURCE)
        made.append(query.instant().format(PromQueryFormat.TABLE) if instant else query.range().exemplar(True))
    return made


def _built(panel: Panel) -> timeseries.Panel | stat.Panel | table.Panel:
    made: timeseries.Panel | stat.Panel | table.Panel
    if panel.kind == "table":
        made = table.Panel()
    elif panel.kind == "stat":
        made = stat.Panel().unit(panel.unit)
    else:
        made = timeseries.Panel().unit(panel.unit).fill_opacity(8).min(0)
    made = made.title(panel.title).datasource(SOURCE).span(panel.width).height(7)
    if panel.says:
        made = made.description(panel.says)
    return made.targets(_targets(panel.queries, instant=panel.kind == "table"))


def text(board: Board) -> str:
    """The JSON of a dashboard."""
    made = dashboard.Dashboard(board.title).uid(board.uid).tags(["postlane"]).readonly()
    made = made.refresh("30s").time("now-6h", "now").timezone("browser")
    for title, panels in board.rows:
        made = made.with_row(dashboard.Row(title))
        for panel in panels:
            made = made.with_panel(_built(panel))
    return str(JSONEncoder(sort_keys=True, indent=2).encode(made.build())) + "\n"
