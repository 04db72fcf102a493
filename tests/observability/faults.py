"""What each alert is there for, as series over minutes: a healthy fleet, and for each fault what differs from it.

Values are in promtool's notation, a sample a minute: `0+60x30` begins at 0 and grows by 60, thirty times.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MINUTES = 100
_LANES = ("transactional", "bulk")
_PROVIDERS = ("primary", "backup")


def grows(per_minute: float, minutes: int = MINUTES, start: float = 0) -> str:
    return f"{start}+{per_minute}x{minutes}"


def stays(value: float, minutes: int = MINUTES) -> str:
    return f"{value}x{minutes}"


def healthy(minutes: int = MINUTES) -> dict[str, str]:
    """Two senders and one of each other service; mails go out, now and then a hard bounce or a retry."""
    series: dict[str, str] = {}
    for job, instance, port in (
        ("router", "router-1", 9101),
        ("sender", "sender-1", 9102),
        ("sender", "sender-2", 9102),
        ("ledger", "ledger-1", 9103),
    ):
        at = f'job="postlane-{job}",instance="{instance}:{port}"'
        series[f"up{{{at}}}"] = stays(1, minutes)
        series[f'postlane_ready{{{at},service="{job}"}}'] = stays(1, minutes)
        series[f"process_start_time_seconds{{{at}}}"] = stays(1, minutes)
        series[f"postlane_data_size_bytes{{{at}}}"] = stays(100, minutes)
        series[f"postlane_data_free_bytes{{{at}}}"] = stays(60, minutes)
    for name, value in (("brokers", 3), ("under_replicated_partitions", 0), ("offline_partitions", 0)):
        series[f'postlane_kafka_{name}{{instance="router-1:9101"}}'] = stays(value, minutes)
    series['postlane_router_lag_records{topic="mail.requests"}'] = stays(40, minutes)
    series['postlane_router_lag_records{topic="mail.delay.1d"}'] = grows(100, minutes)  # they wait on purpose
    series['postlane_router_taking_over{instance="router-1:9101"}'] = stays(0, minutes)
    series["postlane_router_fenced_total"] = stays(0, minutes)
    series['postlane_router_dead_letters_total{reason="undecodable"}'] = stays(0, minutes)
    series["postlane_ledger_behind_seconds"] = stays(2, minutes)
    series['postlane_producer_refused_total{reason="unavailable",way="http"}'] = stays(0, minutes)
    # Callers' own mistakes wake nobody.
    series['postlane_producer_refused_total{reason="invalid-mail",way="http"}'] = grows(60, minutes)
    series['postlane_backup_last_success_timestamp_seconds{prefix=""}'] = stays(0, minutes)
    for instance in ("sender-1:9102", "sender-2:9102"):
        for lane in _LANES:
            series |= _lane(instance, lane, minutes)
    return series


def _lane(instance: str, lane: str, minutes: int) -> dict[str, str]:
    of = f'instance="{instance}",lane="{lane}"'
    sender = "postlane_sender"
    waits = 5.0 if lane == "transactional" else 900.0
    objective = 10.0 if lane == "transactional" else 3600.0
    series = {
        f"{sender}_backlog_records{{{of}}}": stays(30, minutes),
        f"{sender}_unsettled{{{of}}}": stays(20, minutes),
        f"{sender}_oldest_age_seconds{{{of}}}": stays(waits, minutes),
        f"{sender}_in_doubt{{{of}}}": stays(0, minutes),
        f'{sender}_doubts_total{{{of},policy="resend"}}': stays(0, minutes),
        f"{sender}_fenced_total{{{of}}}": stays(1, minutes),
        f'{sender}_dead_letters_total{{{of},reason="uncertain"}}': stays(0, minutes),
        f'{sender}_dead_letters_total{{{of},reason="temporary"}}': stays(0, minutes),
        f"{sender}_state_lag_records{{{of}}}": stays(500, minutes),
        f"{sender}_span_max_records{{{of}}}": stays(8192, minutes),
        f'{sender}_outcomes_total{{{of},outcome="Delivered"}}': grows(600, minutes),
        f'{sender}_outcomes_total{{{of},outcome="Bounced"}}': grows(6, minutes),
        f'{sender}_outcomes_total{{{of},outcome="Deferred"}}': grows(12, minutes),
        f'{sender}_outcomes_total{{{of},outcome="DeadLettered"}}': stays(0, minutes),
        f'{sender}_tick_seconds_bucket{{{of},le="0.05"}}': grows(600, minutes),
        f'{sender}_tick_seconds_bucket{{{of},le="10.0"}}': grows(600, minutes),
        f'{sender}_tick_seconds_bucket{{{of},le="+Inf"}}': grows(600, minutes),
        f'{sender}_first_attempt_seconds_bucket{{{of},le="{objective}"}}': grows(600, minutes),
        f'{sender}_first_attempt_seconds_bucket{{{of},le="+Inf"}}': grows(600, minutes),
        f"{sender}_first_attempt_seconds_count{{{of}}}": grows(600, minutes),
    }
    for provider in _PROVIDERS:
        with_it = f'{of},provider="{provider}"'
        series[f"{sender}_breaker_state{{{with_it}}}"] = stays(0, minutes)
        ends = 90 * 86_400
        series[f'{sender}_certificate_expiry_timestamp_seconds{{instance="{instance}",provider="{provider}"}}'] = stays(
            ends, minutes
        )
        for result, pace in (("accepted", 300), ("temporary", 6), ("throttled", 1), ("in_doubt", 0)):
            series[f'{sender}_attempts_total{{{with_it},result="{result}"}}'] = grows(pace, minutes)
    return series


@dataclass(frozen=True)
class Fault:
    """`changes`: the series that the fault makes other, by the beginning of their name and labels that they have.
    `fires`: labels that the alert then carries. `at` is minutes after the beginning."""

    alert: str
    changes: dict[str, str]
    fires: dict[str, str] = field(default_factory=dict)
    at: int = 60
    minutes: int = MINUTES
    gone: tuple[str, ...] = ()
    says: str = ""

    def series(self) -> dict[str, str]:
        """The healthy fleet with the fault in it."""
        made = healthy(self.minutes)
        for what, values in self.changes.items():
            hit = [name for name in made if matches(name, what)]
            for name in hit or [what]:
                made[name] = values
        return {name: values for name, values in made.items() if not any(matches(name, what) for what in self.gone)}


def matches(name: str, what: str) -> bool:
    """Whether a series has the metric name and at least the labels of `what`."""
    metric, _, labels = name.partition("{")
    wanted, _, needed = what.partition("{")
    have = set(labels.rstrip("}").split(","))
    return metric == wanted and set(filter(None, needed.rstrip("}").split(","))) <= have


def _later(before: float, after: float, minute: int = 20) -> str:
    return f"{before}x{minute - 1} {after}x{MINUTES - minute}"


def _begins(before_per_minute: float, after_per_minute: float, minute: int = 20) -> str:
    reached = before_per_minute * minute
    return f"0+{before_per_minute}x{minute} {reached}+{after_per_minute}x{MINUTES - minute}"


_S = "postlane_sender"
FAULTS: tuple[Fault, ...] = (
    Fault("ProviderDown", {f'{_S}_breaker_state{{provider="primary"}}': _later(0, 2)}, {"provider": "primary"}, at=25),
    Fault(
        "ProviderDegraded",
        {f'{_S}_attempts_total{{provider="primary",result="throttled"}}': _begins(1, 200)},
        {"provider": "primary"},
        at=45,
    ),
    Fault(
        "ProviderDegraded",
        {f'{_S}_breaker_state{{provider="backup",instance="sender-1:9102"}}': _later(0, 2)},
        {"provider": "backup"},
        says="the breaker of one sender of two stays open",
        at=50,
    ),
    Fault("LaneStopped", {f'{_S}_breaker_state{{lane="bulk"}}': _later(0, 2)}, {"lane": "bulk"}, at=25),
    Fault(
        "CertificateExpiry",
        {f'{_S}_certificate_expiry_timestamp_seconds{{provider="backup"}}': stays(13 * 86_400)},
        {"provider": "backup"},
        at=70,
    ),
    Fault("BacklogGrowing", {f'{_S}_backlog_records{{lane="bulk"}}': _begins(0, 300)}, {"lane": "bulk"}, at=60),
    Fault(
        "OldestMailTooOld",
        {f'{_S}_oldest_age_seconds{{lane="transactional"}}': _begins(0, 60)},
        {"lane": "transactional"},
        at=40,
    ),
    Fault("OldestMailTooOld", {f'{_S}_oldest_age_seconds{{lane="bulk"}}': stays(22_000)}, {"lane": "bulk"}),
    Fault("RouterBehind", {'postlane_router_lag_records{topic="mail.requests"}': _later(40, 20_000)}, at=35),
    Fault("RouterStoreRebuilding", {"postlane_router_taking_over": _later(0, 4)}, {"instance": "router-1:9101"}, at=30),
    Fault(
        "UncertainRising",
        {f'{_S}_doubts_total{{lane="transactional"}}': _begins(0, 1)},
        {"lane": "transactional"},
        at=35,
    ),
    Fault("UncertainRising", {f'{_S}_in_doubt{{lane="bulk"}}': _later(0, 40)}, {"lane": "bulk"}, at=25),
    Fault(
        "DeadLettersRising",
        {f'{_S}_dead_letters_total{{lane="bulk",reason="temporary"}}': _begins(0, 1)},
        {"lane": "bulk", "reason": "temporary"},
        at=35,
    ),
    Fault(
        "DeadLettersRising",
        {"postlane_router_dead_letters_total": _begins(0, 2)},
        {"lane": "router", "reason": "undecodable"},
        at=35,
    ),
    Fault("FencedRepeatedly", {f'{_S}_fenced_total{{lane="bulk"}}': _begins(0, 1)}, {"lane": "bulk"}, at=35),
    Fault("FencedRepeatedly", {"postlane_router_fenced_total": _begins(0, 1)}, {"lane": "router"}, at=35),
    Fault("StateTopicLag", {f'{_S}_state_lag_records{{lane="bulk"}}': _later(500, 15_000)}, {"lane": "bulk"}, at=40),
    Fault("TicksSlow", {f'{_S}_tick_seconds_bucket{{lane="bulk",le="0.05"}}': stays(0)}, {"lane": "bulk"}),
    Fault("LedgerBehind", {"postlane_ledger_behind_seconds": _begins(0, 60)}, at=40),
    Fault(
        "ServiceDown",
        {'up{instance="sender-2:9102"}': _later(1, 0)},
        {"job": "postlane-sender", "instance": "sender-2:9102"},
        at=25,
    ),
    Fault("ServiceDown", {}, {"job": "postlane-ledger"}, gone=('up{job="postlane-ledger"}',), says="none is known"),
    Fault("PublishFailing", {'postlane_producer_refused_total{reason="unavailable"}': _begins(0, 30)}, at=30),
    Fault("ServiceNotReady", {'postlane_ready{service="router"}': _later(1, 0)}, {"service": "router"}, at=30),
    Fault(
        "ServiceRestarting",
        {'process_start_time_seconds{instance="sender-1:9102"}': "0x20 1200 1260 1320 1380x70"},
        {"instance": "sender-1:9102"},
        at=28,
    ),
    Fault("BrokerDown", {"postlane_kafka_brokers": _later(3, 2)}, at=25),
    Fault("UnderReplicated", {"postlane_kafka_under_replicated_partitions": _later(0, 12)}, at=30),
    Fault("PartitionsOffline", {"postlane_kafka_offline_partitions": _later(0, 3)}, at=25),
    Fault(
        "DiskFull",
        {'postlane_data_free_bytes{instance="router-1:9101"}': _later(60, 5)},
        {"instance": "router-1:9101"},
        at=30,
    ),
    Fault(
        "DiskFull",
        {
            'node_filesystem_avail_bytes{instance="broker-1:9100",fstype="ext4"}': stays(9),
            'node_filesystem_size_bytes{instance="broker-1:9100",fstype="ext4"}': stays(100),
        },
        {"instance": "broker-1:9100"},
        says="a broker's, by node_exporter",
    ),
    Fault(
        "BackupTooOld",
        {"postlane_backup_last_success_timestamp_seconds": stays(-27 * 3600)},
        at=70,
    ),
    Fault("BackupTooOld", {}, gone=("postlane_backup_last_success_timestamp_seconds",), says="there is none", at=70),
    Fault(
        "SloFirstAttemptBurning",
        {
            f'{_S}_first_attempt_seconds_bucket{{lane="transactional",le="10.0"}}': grows(300),
        },
        {"lane": "transactional", "slo": "first_attempt", "speed": "fast"},
        at=70,
    ),
    Fault(
        "SloDeliveryBurning",
        {f'{_S}_outcomes_total{{lane="bulk",outcome="DeadLettered"}}': grows(200)},
        {"lane": "bulk", "slo": "delivery", "speed": "fast"},
        at=70,
    ),
    Fault(
        "SloBooksBurning",
        {f'{_S}_doubts_total{{lane="transactional"}}': grows(2)},
        {"lane": "transactional", "slo": "books", "speed": "fast"},
        at=70,
    ),
)
