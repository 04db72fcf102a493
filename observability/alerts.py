"""The alerts as data: what each looks at, how long, whom it wakes, and its runbook.

severity: `page` wakes a person now, `ticket` is for the next working day, `none` is the heartbeat.
Every metric named here is one that a service exposes (a test compares), or belongs to an exporter named in `needs`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["page", "ticket", "none"]
RUNBOOKS = "docs/runbooks"
# Results that speak of a provider, not of a mail.
_FAULTS = "provider|infrastructure|policy|throttled|in_doubt"
BACKLOG = "postlane:backlog:records"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alerting rule. `needs` names what has to run beside Postlane for its metrics to exist."""

    name: str
    expr: str
    for_: str
    severity: Severity
    summary: str
    description: str
    needs: str = ""
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def runbook(self) -> str:
        """docs/runbooks/<alert-in-kebab-case>.md"""
        return f"{RUNBOOKS}/{re.sub(r'(?<!^)(?=[A-Z])', '-', self.name).lower()}.md"

    def rule(self) -> dict[str, Any]:
        """As Prometheus reads it."""
        annotations = {"summary": self.summary, "description": self.description, "runbook": self.runbook}
        if self.needs:
            annotations["needs"] = self.needs
        labels = {"severity": self.severity, **self.labels}
        return {"alert": self.name, "expr": self.expr, "for": self.for_, "labels": labels, "annotations": annotations}


RECORDED: tuple[tuple[str, str], ...] = (
    (BACKLOG, "sum by (lane) (postlane_sender_backlog_records + postlane_sender_unsettled)"),
    ("postlane:outcomes:rate5m", "sum by (lane, outcome) (rate(postlane_sender_outcomes_total[5m]))"),
    ("postlane:attempts:rate5m", "sum by (lane, provider, result) (rate(postlane_sender_attempts_total[5m]))"),
    (
        "postlane:attempts_failed:ratio_rate10m",
        'sum by (provider) (rate(postlane_sender_attempts_total{result=~"' + _FAULTS + '"}[10m]))'
        " / (sum by (provider) (rate(postlane_sender_attempts_total[10m])) > 0)",
    ),
)

PROVIDERS = (
    Alert(
        "ProviderDown",
        "max by (provider) (postlane_sender_breaker_state) == 2\n"
        "and min by (provider) (postlane_sender_breaker_state) == 2",
        "1m",
        "page",
        "{{ $labels.provider }}: every sender's breaker is open",
        "No sender gets a session with it. Mails go to the next provider of their lane; where none is left they wait.",
    ),
    Alert(
        "ProviderDegraded",
        "postlane:attempts_failed:ratio_rate10m > 0.2\n"
        "and sum by (provider) (increase(postlane_sender_attempts_total[10m])) > 50\n"
        "or (avg by (provider) (avg_over_time(postlane_sender_breaker_state[10m])) > 0.5\n"
        "and min by (provider) (postlane_sender_breaker_state) < 2)",
        "5m",
        "ticket",
        "{{ $labels.provider }}: it refuses or drops a part of what it is given",
        "More than a fifth of the attempts failed for reasons of the provider, or its breakers keep opening.",
    ),
    Alert(
        "LaneStopped",
        "min by (lane) (postlane_sender_breaker_state) == 2",
        "1m",
        "page",
        "lane {{ $labels.lane }}: no provider is healthy, nothing is sent",
        "Nothing is lost and no attempt is spent: Kafka holds the backlog until a probe succeeds.",
    ),
    Alert(
        "CertificateExpiry",
        "min by (provider) (postlane_sender_certificate_expiry_timestamp_seconds) - time() < 14 * 86400",
        "1h",
        "ticket",
        "{{ $labels.provider }}: its TLS certificate ends within 14 days",
        "{{ $value | humanizeDuration }} left. After that no session is opened: there is no way back to plaintext.",
    ),
)

WAITING = (
    Alert(
        "BacklogGrowing",
        f"{BACKLOG} > 1000 and deriv({BACKLOG}[10m]) > 0",
        "15m",
        "ticket",
        "lane {{ $labels.lane }}: more comes in than goes out",
        "{{ $value }} mails wait, and for a quarter of an hour there have been more and more of them.",
    ),
    Alert(
        "OldestMailTooOld",
        'max by (lane) (postlane_sender_oldest_age_seconds{lane!="bulk"}) > 300\n'
        'or max by (lane) (postlane_sender_oldest_age_seconds{lane="bulk"}) > 6 * 3600',
        "2m",
        "page",
        "lane {{ $labels.lane }}: the oldest mail has waited {{ $value | humanizeDuration }}",
        "Five minutes are too long, six hours for bulk. The clock starts anew with each hop: this is no retry's wait.",
    ),
    Alert(
        "RouterBehind",
        'sum(postlane_router_lag_records{topic=~".*mail\\\\.requests"}) > 10000',
        "10m",
        "page",
        "{{ $value }} requests are not routed yet",
        "Accepted mails wait before their lane; their age does not show in the lanes.",
    ),
    Alert(
        "RouterStoreRebuilding",
        "sum by (instance) (postlane_router_taking_over) > 0",
        "5m",
        "ticket",
        "{{ $labels.instance }}: {{ $value }} partitions wait for the router's memory of keys",
        "It is read again from mail.seen: its volume was lost or damaged, or the partitions came from another router.",
    ),
)

BOOKS = (
    Alert(
        "UncertainRising",
        "sum by (lane) (increase(postlane_sender_doubts_total[15m])) > 5\n"
        "or sum by (lane) (postlane_sender_in_doubt) > 50",
        "0m",
        "page",
        "lane {{ $labels.lane }}: mails whose outcome nobody knows",
        "{{ $value }} in 15 minutes (or waiting now): connections are lost after the final dot, or senders are killed.",
    ),
    Alert(
        "DeadLettersRising",
        "sum by (lane, reason) (increase(postlane_sender_dead_letters_total[15m])) > 10\n"
        "or sum by (lane, reason) (label_replace(increase(postlane_router_dead_letters_total[15m]), "
        '"lane", "router", "", "")) > 10',
        "0m",
        "ticket",
        "{{ $labels.lane }}: dead letters, reason {{ $labels.reason }}",
        "{{ $value }} within 15 minutes. They are kept; replay them when the cause is gone.",
    ),
    Alert(
        "FencedRepeatedly",
        "sum by (lane) (increase(postlane_sender_fenced_total[15m])) > 5\n"
        'or sum by (lane) (label_replace(increase(postlane_router_fenced_total[15m]), "lane", "router", "", "")) > 2',
        "0m",
        "page",
        "{{ $labels.lane }}: transactions are refused again and again",
        "Two processes share an instance id, or the group does not come to rest: what is sent may not be written down.",
    ),
    Alert(
        "StateTopicLag",
        "max by (lane) (postlane_sender_state_lag_records)\n> 1.5 * max by (lane) (postlane_sender_span_max_records)",
        "10m",
        "ticket",
        "lane {{ $labels.lane }}: a takeover would have to read {{ $value }} records of the state topic",
        "One record holds O back: until it is settled a restart takes longer; at last the partition admits no more.",
    ),
    Alert(
        "TicksSlow",
        "histogram_quantile(0.99, sum by (lane, le) (rate(postlane_sender_tick_seconds_bucket[5m]))) > 2",
        "5m",
        "page",
        "lane {{ $labels.lane }}: one commit in a hundred takes more than {{ $value | humanizeDuration }}",
        "The brokers are slow. No body is written before its tick is committed, so everything is.",
    ),
    Alert(
        "LedgerBehind",
        "max(postlane_ledger_behind_seconds) > 120",
        "5m",
        "ticket",
        "the ledger shows what was true {{ $value | humanizeDuration }} ago",
        "Mails are not affected; `postlane status` and the timelines are late.",
    ),
)

SERVICES = (
    Alert(
        "ServiceDown",
        'up{job=~"postlane-.+"} == 0\n'
        'or label_replace(absent(up{job="postlane-router"} == 1), "job", "postlane-router", "", "")\n'
        'or label_replace(absent(up{job="postlane-sender"} == 1), "job", "postlane-sender", "", "")\n'
        'or label_replace(absent(up{job="postlane-ledger"} == 1), "job", "postlane-ledger", "", "")',
        "2m",
        "page",
        "{{ $labels.job }} {{ $labels.instance }} does not answer",
        "No instance of it answers, or this one is known to Prometheus and does not.",
    ),
    Alert(
        "PublishFailing",
        'sum(increase(postlane_producer_refused_total{reason=~"unavailable|unknown|refused|busy|failed"}[5m])) > 10',
        "1m",
        "page",
        "callers of the gateway are told to come again: {{ $value | humanize }} times within 5 minutes",
        "What they were to publish is not accepted, or nobody knows; it is safe to send it again with the same key.",
    ),
    Alert(
        "ServiceNotReady",
        "postlane_ready == 0",
        "5m",
        "page",
        "{{ $labels.service }} {{ $labels.instance }} lives and cannot do its work",
        "Its /readyz says why.",
    ),
    Alert(
        "ServiceRestarting",
        'changes(process_start_time_seconds{job=~"postlane-.+"}[15m]) > 2',
        "0m",
        "ticket",
        "{{ $labels.job }} {{ $labels.instance }} was started {{ $value }} times within 15 minutes",
        "Exit code 2 is a configuration error, 1 something that broke; the last lines of its log say what.",
    ),
)

CLUSTER = (
    Alert(
        "BrokerDown",
        "max(postlane_kafka_brokers) < max(max_over_time(postlane_kafka_brokers[1d]))",
        "2m",
        "page",
        "{{ $value }} brokers answer; there were more within a day",
        "With one of three gone everything goes on. One more, and nothing can be written.",
    ),
    Alert(
        "UnderReplicated",
        "max(postlane_kafka_under_replicated_partitions) > 0",
        "5m",
        "ticket",
        "{{ $value }} partitions have fewer replicas in sync than they should",
        "Retention and the books rest on them: the next broker that goes may stop writing.",
    ),
    Alert(
        "PartitionsOffline",
        "max(postlane_kafka_offline_partitions) > 0",
        "1m",
        "page",
        "{{ $value }} partitions have no leader",
        "Mails of these partitions neither come in nor go out.",
    ),
    Alert(
        "DiskFull",
        "postlane_data_free_bytes / postlane_data_size_bytes < 0.1\n"
        'or node_filesystem_avail_bytes{fstype!~"tmpfs|ramfs|overlay|squashfs"} / node_filesystem_size_bytes < 0.1',
        "5m",
        "page",
        "{{ $labels.instance }}: less than a tenth of a disk is free",
        "{{ $value | humanizePercentage }} left. A broker whose disk is full stops; so do the store and the recorders.",
        needs="node_exporter for the brokers' disks; the services report their own data directories",
    ),
    Alert(
        "BackupTooOld",
        "time() - max by (prefix) (postlane_backup_last_success_timestamp_seconds) > 26 * 3600\n"
        "or absent(postlane_backup_last_success_timestamp_seconds)",
        "1h",
        "ticket",
        "the last backup is older than 26 hours, or there is none",
        "What would be lost with the cluster grows until one succeeds.",
        needs="node_exporter's textfile collector, where `postlane backup --textfile` writes",
    ),
)

WATCHDOG = Alert(
    "Watchdog",
    "vector(1)",
    "0m",
    "none",
    "the way of the alerts works",
    "Always fires. A receiver outside that misses it knows that Prometheus or Alertmanager is down.",
)

GROUPS: dict[str, tuple[Alert, ...]] = {
    "postlane-providers": PROVIDERS,
    "postlane-waiting": WAITING,
    "postlane-books": BOOKS,
    "postlane-services": SERVICES,
    "postlane-cluster": CLUSTER,
    "postlane-watchdog": (WATCHDOG,),
}
