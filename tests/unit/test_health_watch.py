"""A worker's windows: by partition, begun anew with each new owner, repeats passed over, a gap begins anew, bounded."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest

pytest.importorskip("faust", reason="the extra [health] is not installed")

from postlane.config import ConfigurationError
from postlane.core.health_facts import Observed, ProviderHealth, Tally
from postlane.core.health_state import HealthState
from postlane.core.policy import Health
from postlane.eventlog.codec import encode, headers
from postlane.eventlog.health_table import HealthTable
from postlane.eventlog.ports import Received
from postlane_health.config import broker_urls, settings_of
from postlane_health.measures import Measures
from postlane_health.watch import PROVIDERS_MAX, Watch

AT = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = Health()


def seen(provider: str = "p", *, ago_s: float = 0, domain: str = "example.com") -> Observed:
    tally = Tally(delivered=30)
    at = AT - timedelta(seconds=ago_s)
    return Observed(provider=provider, instance="s1", at=at, total=tally, domains={domain: tally})


class Worker:
    """A watch that is fed in order."""

    def __init__(self, *partitions: int) -> None:
        self.watch = Watch(POLICY, "h1")
        self.watch.assigned(partitions, 0.0)
        self.offset = 0

    def feed(self, now: float, one: Observed | None, *, partition: int = 0, offset: int | None = None) -> str:
        at = self.offset if offset is None else offset
        self.offset = at + 1
        return self.watch.receive(partition, at, one, now, AT)

    def states(self, now: float) -> dict[str, HealthState]:
        return {word.health.provider: word.health.state for word in self.watch.view(now, AT)}


def test_a_new_owner_says_unknown_for_a_whole_window() -> None:
    worker = Worker(0)
    for now in range(31):
        worker.feed(float(now), seen())
        assert worker.states(float(now)) == {"p": HealthState.UP if now >= 30 else HealthState.UNKNOWN}


def test_a_partition_that_stays_keeps_its_windows_and_one_that_was_away_does_not() -> None:
    worker = Worker(0, 1)
    worker.feed(40.0, seen())
    worker.watch.assigned([0, 2], 41.0)
    assert worker.states(41.0) == {"p": HealthState.UP}
    worker.watch.assigned([2], 42.0)
    assert worker.states(42.0) == {}
    worker.watch.assigned([0], 43.0)
    worker.feed(44.0, seen())
    assert worker.states(44.0) == {"p": HealthState.UNKNOWN}


def test_repeated_records_are_passed_over_and_a_gap_begins_anew() -> None:
    worker = Worker(0)
    assert worker.feed(40.0, seen(), offset=5) == "merged"
    assert worker.feed(40.0, seen(), offset=5) == "repeated"
    assert worker.watch.view(40.0, AT)[0].health.delivered == 30
    assert worker.feed(41.0, seen(), offset=9) == "merged"
    assert (worker.watch.view(41.0, AT)[0].health.delivered, worker.states(41.0)["p"]) == (30, HealthState.UNKNOWN)


def test_old_unreadable_and_foreign_records_are_counted_and_change_nothing() -> None:
    worker = Worker(0)
    assert worker.feed(40.0, seen(ago_s=31)) == "late"
    assert worker.feed(40.0, None) == "unreadable"
    assert worker.feed(40.0, seen(), partition=7) == "not_owned"
    assert worker.states(40.0) == {}


def test_a_flood_of_providers_is_bounded() -> None:
    worker = Worker(0)
    found = [worker.feed(40.0, seen(f"p{n}")) for n in range(PROVIDERS_MAX + 5)]
    assert found.count("too_many") == 5


def test_what_is_new_is_said_at_once_what_stays_now_and_then_and_silence_once() -> None:
    worker = Worker(0)
    said: list[tuple[float, str]] = []

    def look(now: float) -> None:
        for word in worker.watch.news(worker.watch.view(now, AT), now):
            said.append((now, word.health.state.value))
            worker.watch.said(word, now)

    for now in range(40, 52):
        worker.feed(float(now), seen())
        look(float(now))
    assert said == [(40, "up"), (45, "up"), (50, "up")]
    said.clear()
    for now in range(52, 140):
        look(float(now))
    assert [state for _, state in said].count("unknown") <= 1 + 30 // 5
    assert said[-1][1] == "unknown"
    assert worker.states(139.0) == {}, "forgotten"


def test_metrics_are_of_what_is_known_now_only() -> None:
    registry = CollectorRegistry()
    measures, worker = Measures(registry), Worker(0)
    worker.feed(40.0, seen("primary"))
    measures.tell([word.health for word in worker.watch.view(40.0, AT)])
    text = generate_latest(registry).decode()
    assert 'postlane_provider_state{provider="primary"} 1.0' in text
    assert 'postlane_provider_results{provider="primary",result="delivered"} 30.0' in text
    assert 'postlane_provider_domain_success_ratio{domain="example.com",provider="primary"} 1.0' in text
    measures.tell([])
    assert 'provider="primary"' not in generate_latest(registry).decode()


# --------------------------------------------------------------------------------------------------------- the table


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.wall, self.mono = AT, 0.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.mono

    def pass_(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.mono += seconds


def word(state: HealthState, at: datetime = AT, provider: str = "p", key: bytes = b"p") -> Received:
    health = ProviderHealth(provider=provider, at=at, state=state)
    return Received("mail.health", 0, 0, 0, key, encode(health), headers(ProviderHealth, "t", "1", at))


def table(clock: Hands) -> HealthTable:
    return HealthTable(["p"], clock, 15.0)


def test_a_word_expires() -> None:
    clock = Hands()
    one = table(clock)
    assert one.state("p") is HealthState.UNKNOWN
    one.apply(word(HealthState.DOWN))
    clock.pass_(15)
    assert one.state("p") is HealthState.DOWN
    clock.pass_(0.1)
    assert one.state("p") is HealthState.UNKNOWN


def test_an_old_word_that_is_read_at_the_start_and_one_from_the_future_are_not_believed() -> None:
    for off_s in (-3600, 3600):
        one = table(Hands())
        one.apply(word(HealthState.DOWN, AT + timedelta(seconds=off_s)))
        assert one.state("p") is HealthState.UNKNOWN


def test_a_word_expires_even_where_the_wall_clock_stands_still() -> None:
    clock = Hands()
    one = table(clock)
    one.apply(word(HealthState.DOWN))
    clock.mono += 16
    assert one.state("p") is HealthState.UNKNOWN


def test_what_cannot_be_read_changes_nothing() -> None:
    one = table(Hands())
    one.apply(word(HealthState.UP))
    bad = word(HealthState.DOWN)
    for record in (
        Received("t", 0, 0, 0, b"p", b"{", bad.headers),
        Received("t", 0, 0, 0, b"other", bad.value, bad.headers),
        Received("t", 0, 0, 0, None, bad.value, bad.headers),
        word(HealthState.DOWN, provider="other"),
    ):
        one.apply(record)
    assert one.state("p") is HealthState.UP
    one.apply(Received("t", 0, 0, 0, b"p", None))
    assert one.state("p") is HealthState.UNKNOWN


# ------------------------------------------------------------------------------------------------------ configuration


def test_options_are_translated() -> None:
    made = settings_of({"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "u"})
    assert made["broker_credentials"].username == "u"
    assert settings_of({"session.timeout.ms": "6000", "linger.ms": "5"})["broker_session_timeout"] == 6.0
    assert "broker_credentials" not in settings_of({})
    assert broker_urls("a:1, b:2") == ["kafka://a:1", "kafka://b:2"]


@pytest.mark.parametrize(
    "options",
    [
        {"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER"},
        {"security.protocol": "SASL_PLAINTEXT"},
        {"security.protocol": "TLS"},
        {"ssl.ca.pem": "s3cret"},
        {"sasl.oauthbearer.config": "s3cret"},
        {"security.protocol": "SSL", "ssl.ca.location": "/nowhere/s3cret-free.pem"},
        {"session.timeout.ms": "soon"},
    ],
)
def test_what_cannot_be_done_safely_is_refused_without_its_value(options: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as raised:
        settings_of(options)
    assert "POSTLANE_KAFKA_" in str(raised.value)
    assert "s3cret" not in str(raised.value)
