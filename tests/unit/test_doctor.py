"""The doctor: each misconfiguration is found, alone, by its name, with what to do; secrets are never shown.

Every test starts from what is healthy, breaks one thing, and asserts that exactly that is told (`troubles`). The last
test holds the catalogue to these: a check that no test here breaks is an error.
"""

from __future__ import annotations

import asyncio
import fcntl
import re
import ssl
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import orjson
import pytest
import trustme
from tests.unit.doctor_servers import Manners, name_server, smtp_server

from postlane.cli.output import document
from postlane.config import SECRETS, Environment
from postlane.core.events import Control
from postlane.core.policy import Config, Provider
from postlane.eventlog.admin import Broker, ClusterState, TopicState
from postlane.eventlog.admin_groups import GroupMember, GroupState
from postlane.eventlog.kafka_config import TRANSACTION_TIMEOUT_MS
from postlane.eventlog.ports import Committed, Partition
from postlane.eventlog.topics import DAY_MS, RECORD_MAX_BYTES, TopicNames
from postlane.ops.acls import IDENTITIES, acls
from postlane.ops.doctor import Wish, effective, examine, masked_url
from postlane.ops.doctor.backups import ask_backups
from postlane.ops.doctor.books import (
    Told,
    behind_check,
    ledger_checks,
    pause_checks,
    schema_check,
    unattended_checks,
    unsettled_checks,
)
from postlane.ops.doctor.bounded import in_time
from postlane.ops.doctor.brokers import (
    broker_clock_check,
    checks_of_options,
    count_checks,
    java_hash,
    record_clock_check,
)
from postlane.ops.doctor.catalogue import WHY
from postlane.ops.doctor.check import Check
from postlane.ops.doctor.configuration import FAMILIES, VARIABLES, configuration_checks
from postlane.ops.doctor.domains import Nameserver, domain_checks
from postlane.ops.doctor.fleet import identity_checks, lane_positions, rights_check, service_check
from postlane.ops.doctor.machine import FREE_MIN_BYTES, FREE_STOP_BYTES, machine_checks, space_check
from postlane.ops.doctor.providers import lane_checks, provider_checks, session_checks, settings_checks
from postlane.ops.doctor.services import Service, ask_service, service_checks
from postlane.ops.doctor.smtp_probe import Spoken, probe
from postlane.ops.doctor.topics import prefix_check, topic_checks
from postlane.ops.topics import Declared, declared, differences

SECRET = "correct-horse-battery"
NOW = datetime(2026, 1, 31, 9, tzinfo=UTC)
BROKEN: set[str] = set()


def troubles(found: Iterable[Check]) -> dict[str, str]:
    """What is not well: name -> verdict. Each says why it matters and what to do."""
    checks = list(found)
    told: dict[str, str] = {}
    for check in checks:
        assert check.why == WHY[check.name]
        if check.verdict in ("warn", "fail"):
            assert check.found, check
            assert check.do, check
            told[check.name] = check.verdict
    BROKEN.update(told)
    return told


def only(found: Iterable[Check], name: str, verdict: str | None = None) -> Check:
    checks = list(found)
    told = troubles(checks)
    assert set(told) == {name}, told
    (check,) = [c for c in checks if c.name == name and c.verdict in ("warn", "fail")]
    assert verdict is None or check.verdict == verdict
    return check


# ------------------------------------------------------------------------------------------------------------ secrets


def test_no_secret_is_ever_shown() -> None:
    environment = Environment(
        kafka={"sasl.password": SECRET, "ssl.key.password": SECRET, "sasl.jaas.config": SECRET, "sasl.username": "me"},
        database_url=f"postgresql://me:{SECRET}@db:5432/books?sslpassword={SECRET}",
    )
    policy = config(
        providers={
            "primary": {"host": "h", "username": "u", "password": SECRET},
            "backup": {"host": "h", "username": "u", "password_file": "/run/secrets/x"},
        }
    )
    shown = document(effective(environment, policy))
    assert SECRET not in shown
    told = orjson.loads(shown)
    assert told["environment"]["kafka"]["sasl.username"] == "me"
    assert told["environment"]["database_url"] == "postgresql://me:********@db:5432/books?…"
    assert told["config"]["providers"]["backup"]["password_file"] == "/run/secrets/x"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///./postlane.db", "sqlite:///./postlane.db"),
        ("postgresql://db/books", "postgresql://db/books"),
        (f"postgresql://:{SECRET}@db/books", "postgresql://:********@db/books"),
        (f"postgresql://db:{SECRET}", "********"),
    ],
)
def test_urls_are_masked(url: str, shown: str) -> None:
    assert masked_url(url) == shown


# ------------------------------------------------------------------------------------------------------ configuration


def config(**changed: Any) -> Config:
    lanes = {"bulk": {"providers": ["primary", "backup"]}}
    providers = {"primary": {"host": "127.0.0.1"}, "backup": {"host": "127.0.0.2"}}
    return Config.model_validate({"lanes": lanes, "providers": providers, **changed})


def told_by_configuration(policy: Config, variables: dict[str, str] | None = None, **env: Any) -> Any:
    return configuration_checks(Environment(config_file=Path("postlane.yaml"), **env), policy, variables or {})


def test_the_key_of_return_paths_is_there_and_not_for_everybody(tmp_path: Path) -> None:
    file = tmp_path / "bounce-key"
    policy = config(bounces={"address": "bounces@bounces.example.org", "key_file": str(file)})
    only(told_by_configuration(policy), "bounce-key", "fail")
    file.write_text("short")
    assert "short" not in only(told_by_configuration(policy), "bounce-key", "fail").found.partition(": ")[2]
    file.write_text("a-key-that-is-long-enough")
    file.chmod(0o644)
    only(told_by_configuration(policy), "bounce-key", "warn")
    file.chmod(0o640)
    assert troubles(told_by_configuration(policy)) == {}


def test_variables_are_those_that_are_read() -> None:
    root = Path(__file__).parents[2]
    sources = [path.read_text() for folder in ("libs", "services") for path in (root / folder).rglob("*.py")]
    named = {name for source in sources for name in re.findall(r"POSTLANE_[A-Z_]*[A-Z](?![A-Z_])", source)}
    named = {name for name in named if not name.startswith((*FAMILIES, "POSTLANE_TEST_"))}
    files = {f"{name}_FILE" for name in SECRETS}
    assert named - files == VARIABLES - files


def test_a_healthy_configuration() -> None:
    assert troubles(told_by_configuration(config(), {"POSTLANE_KAFKA_ACKS": "all", "PATH": "/bin"})) == {}


@pytest.mark.parametrize(
    ("env", "policy", "name", "verdict", "says"),
    [
        ({"kafka": {"acks": "1"}}, {}, "kafka-option", "fail", "acks"),
        ({"kafka": {"no.such": "1"}}, {}, "kafka-option", "fail", "no.such"),
        ({"bootstrap_servers": "127.0.0.1:1,k1.example.net:9092"}, {}, "kafka-encryption", "warn", "k1.example.net"),
        ({"kafka": {"message.max.bytes": "1000000"}}, {}, "client-message-size", "fail", "1000000"),
        ({"lanes": ("blk",)}, {}, "served-lanes", "fail", "blk"),
        ({}, {"lanes": {"bulk": {"providers": ["primary"]}}, "providers": {"primary": {"host": "h"}}},
         "single-provider", "warn", "nowhere to go"),
        ({}, {"providers": {"primary": {"host": "h"}, "backup": {"host": "H."}}}, "duplicate-provider", "warn", "both"),
        ({}, {"lanes": {"bulk": {"providers": ["primary", "backup"], "intent_ttl_s": 10}}},
         "intent-lifetime", "fail", "10"),
        ({}, {"lanes": {"bulk": {"providers": ["primary", "backup"], "drain_timeout_s": 60}}},
         "drain-time", "fail", "60"),
        ({}, {"retry": {"expire_after_s": 864_000}}, "expiry-retention", "fail", "10 days"),
        ({}, {"topics": {"dedup_days": 40}}, "dedup-retention", "fail", "40 days"),
        ({}, {"topics": {"events_days": 3}}, "events-retention", "warn", "3 days"),
        ({}, {"topics": {"replication": 1}}, "replication-setting", "warn", "1"),
    ],
)  # fmt: skip
def test_what_is_configured_wrongly(
    env: dict[str, Any], policy: dict[str, Any], name: str, verdict: str, says: str
) -> None:
    assert says in only(told_by_configuration(config(**policy), **env), name, verdict).found


def test_a_provider_that_no_lane_names() -> None:
    providers = {"primary": {"host": "a"}, "backup": {"host": "b"}, "bakcup": {"host": "c"}}
    assert only(told_by_configuration(config(providers=providers)), "idle-provider", "warn").about == "bakcup"


def test_no_configuration_file() -> None:
    only(configuration_checks(Environment(), config(), {}), "configuration-file", "warn")


def test_a_misspelt_variable() -> None:
    found = told_by_configuration(config(), {"POSTLANE_BOOTSTRAP_SERVER": "x", "POSTLANE_KAFKA_ACKS": "x"})
    assert only(found, "unknown-variable", "warn").do == "did you mean POSTLANE_BOOTSTRAP_SERVERS?"


def test_a_test_setting_in_force() -> None:
    found = told_by_configuration(config(), {"POSTLANE_TEST_RULES_OFF": "dedup"})
    assert only(found, "test-setting", "fail").about == "POSTLANE_TEST_RULES_OFF"


# ------------------------------------------------------------------------------------------------------- this machine


def told_by_machine(folder: Path, policy: Config | None = None, **env: Any) -> Any:
    return machine_checks(Environment(data_dir=folder, **{"instance_id": "sender-1", **env}), policy or config())


def test_a_healthy_machine(tmp_path: Path) -> None:
    assert troubles(told_by_machine(tmp_path / "not there yet")) == {}


def test_a_data_folder_that_cannot_be_written() -> None:
    only(told_by_machine(Path(__file__) / "x"), "data-folder", "fail")


def test_a_disk_that_is_almost_full() -> None:
    assert [space_check(Path("/d"), n).verdict for n in (FREE_STOP_BYTES - 1, FREE_MIN_BYTES - 1, FREE_MIN_BYTES)] == [
        "fail",
        "warn",
        "ok",
    ]
    only([space_check(Path("/d"), 1)], "disk-space")


def test_too_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 4096))
    only(told_by_machine(tmp_path), "open-files", "fail")


def test_an_instance_id_that_every_machine_has(tmp_path: Path) -> None:
    only(told_by_machine(tmp_path, instance_id="localhost.localdomain"), "instance-id", "warn")


def test_a_sender_without_its_recorder(tmp_path: Path) -> None:
    lock = tmp_path / "sender-sender-1.lock"
    lock.touch()
    assert troubles(told_by_machine(tmp_path)) == {}  # it does not run
    with lock.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert "bulk" in only(told_by_machine(tmp_path), "flight-recorder", "warn").found
        (tmp_path / "sender-sender-1").mkdir()
        (tmp_path / "sender-sender-1" / "flight-bulk.bin").touch()
        assert troubles(told_by_machine(tmp_path)) == {}


# ---------------------------------------------------------------------------------------------------------- providers


def provider(**fields: Any) -> Provider:
    return Provider.model_validate({"name": "p", "host": "127.0.0.1", "tls": "none", **fields})


def test_password_files(tmp_path: Path) -> None:
    good, empty, open_to_all = tmp_path / "good", tmp_path / "empty", tmp_path / "open"
    for path, text, mode in ((good, SECRET, 0o600), (empty, " \n", 0o600), (open_to_all, SECRET, 0o644)):
        path.write_text(text)
        path.chmod(mode)
    cases: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"username": "u", "password_file": str(good)}, {}),
        ({"username": "u", "password_file": str(empty)}, {"provider-password": "fail"}),
        ({"username": "u", "password_file": str(open_to_all)}, {"provider-password-exposed": "warn"}),
        ({"username": "u", "password_file": str(tmp_path / "none")}, {"provider-password": "fail"}),
        ({"username": "u", "password_file": str(tmp_path)}, {"provider-password": "fail"}),
        ({"password_file": str(good)}, {"provider-password": "fail"}),
        ({"username": "u"}, {"provider-password": "fail"}),
        ({"username": "u", "password": SECRET}, {"provider-password-exposed": "warn"}),
        ({}, {}),
    ]
    for fields, told in cases:
        found = list(settings_checks(provider(**fields)))
        assert troubles(found) == told, fields
        assert SECRET not in document(found)


def test_tls_of_providers(tmp_path: Path) -> None:
    far = {"host": "smtp.example.net"}
    only(settings_checks(provider(**far)), "provider-encryption", "warn")
    login = {"username": "u", "password_file": str(tmp_path / "p")}
    (tmp_path / "p").write_text("x")
    (tmp_path / "p").chmod(0o600)
    only(settings_checks(provider(**far, **login)), "provider-encryption", "fail")
    only(settings_checks(provider(tls_ca_file=str(tmp_path / "none"))), "provider-ca-file", "fail")
    assert troubles(settings_checks(provider(**far, tls="starttls"))) == {}


class Authority:
    """A certificate authority of the test's own, and servers with certificates of it."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def server(self, name: str = "127.0.0.1", **dates: datetime) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._ca.issue_cert(name, **dates).configure_cert(context)
        return context


async def session(manners: Manners, password: str | None = None, **fields: Any) -> list[Check]:
    """What a session with such a server shows."""
    async with smtp_server(manners) as port:
        one = provider(port=port, **fields)
        return list(session_checks(one, await probe(one, password), datetime.now(UTC)))


async def test_sessions_with_providers(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good = authority.server()
    tls = {"tls": "starttls", "tls_ca_file": str(authority.file)}
    user = {"username": "u"}
    ended = {"not_before": datetime(2020, 1, 1, tzinfo=UTC), "not_after": datetime(2021, 1, 1, tzinfo=UTC)}
    soon = {"not_after": datetime.now(UTC) + timedelta(days=10)}
    now = {"not_after": datetime.now(UTC) + timedelta(days=1)}
    cases: list[tuple[Manners, str | None, dict[str, Any], dict[str, str]]] = [
        (Manners(), None, {}, {}),
        (Manners(tls=good), None, tls, {}),
        (Manners(tls=good, implicit=True), None, {**tls, "tls": "implicit"}, {}),
        (Manners(tls=good, password=SECRET), SECRET, {**tls, **user}, {}),
        (Manners(tls=good, password=SECRET, mechanisms="LOGIN"), SECRET, {**tls, **user}, {}),
        (Manners(greeting="554 go away"), None, {}, {"provider-greeting": "fail"}),
        (Manners(greeting="HTTP/1.1 400 Bad"), None, {}, {"provider-reachable": "warn"}),
        (Manners(tls=good, starttls=False), None, tls, {"provider-starttls": "fail"}),
        (Manners(tls=good), None, {"tls": "starttls"}, {"provider-certificate": "fail"}),
        (Manners(), None, {**tls, "tls": "implicit"}, {"provider-certificate": "fail"}),
        (Manners(tls=authority.server("mx.example")), None, tls, {"provider-certificate-name": "fail"}),
        (Manners(tls=authority.server(**ended)), None, tls, {"provider-certificate-expiry": "fail"}),
        (Manners(tls=authority.server(**soon)), None, tls, {"provider-certificate-expiry": "warn"}),
        (Manners(tls=authority.server(**now)), None, tls, {"provider-certificate-expiry": "fail"}),
        (Manners(tls=good), SECRET, {**tls, **user}, {"provider-auth": "fail"}),
        (Manners(tls=good, password="x", mechanisms="GSSAPI"), SECRET, {**tls, **user}, {"provider-auth": "fail"}),
        (Manners(tls=good, password="other"), SECRET, {**tls, **user}, {"provider-login": "fail"}),
        (Manners(offers=("SIZE 20000000",)), None, {}, {"provider-pipelining": "warn"}),
        (Manners(offers=("SIZE 20000000",)), None, {"pipelining": False}, {}),
        (Manners(offers=("PIPELINING", "SIZE 1000000")), None, {}, {"provider-size": "warn"}),
    ]
    for number, (manners, password, fields, told) in enumerate(cases):
        found = await session(manners, password, **fields)
        assert troubles(found) == told, (number, found)
        assert SECRET not in document(found)  # the server of "other" says the password back


async def test_a_provider_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("postlane.ops.doctor.smtp_probe.PROBE_TIMEOUT_S", 0.2)
    assert "no answer" in only(await session(Manners(silent=True)), "provider-reachable", "warn").found
    gone, nameless = {"host": "127.0.0.1", "port": 1}, {"host": "no.such.host.invalid"}
    policy = Config.model_validate(
        {"lanes": {"l": {"providers": ["gone"]}}, "providers": {"gone": gone, "nameless": nameless}}
    )
    found = await provider_checks(policy, connect=True)
    assert {c.about for c in found if c.name == "provider-reachable" and c.verdict == "warn"} == {"gone", "nameless"}
    assert [c for c in await provider_checks(policy, connect=False) if c.name == "provider-reachable"] == []
    assert {c.about for c in found if c.name == "lane-unserved"} == {"l"}
    assert troubles(c for c in found if c.name == "lane-unserved") == {"lane-unserved": "fail"}


def test_a_lane_is_served_while_one_of_its_providers_is() -> None:
    one = Check("provider-reachable", "warn", "x", "y", "primary", WHY["provider-reachable"])
    soon = Check("provider-certificate-expiry", "warn", "x", "y", "backup", WHY["provider-certificate-expiry"])
    ended = Check("provider-certificate-expiry", "fail", "x", "y", "backup", WHY["provider-certificate-expiry"])
    assert troubles(lane_checks(config(), [one, soon])) == {}
    assert only(lane_checks(config(), [one, ended]), "lane-unserved", "fail").about == "bulk"


# -------------------------------------------------------------------------------------------------------------- names

HEALTHY = {
    ("shop.tld", "MX"): ("10 mx.shop.tld.",),
    ("shop.tld", "TXT"): ('"other"', '"v=spf1 include:spf.provider.tld" " -all"'),
    ("_dmarc.shop.tld", "TXT"): ('"v=DMARC1; p=none"',),
    ("k1._domainkey.shop.tld", "TXT"): ('"v=DKIM1; p=MIG"',),
}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, {}),
        ({("shop.tld", "MX"): ()}, {"domain-mx": "warn"}),
        ({("shop.tld", "MX"): ("0 .",)}, {"domain-mx": "fail"}),
        ({("shop.tld", "TXT"): ('"other"',)}, {"domain-spf": "fail"}),
        ({("shop.tld", "TXT"): ('"v=spf1 -all"', '"v=spf1 ~all"')}, {"domain-spf": "fail"}),
        ({("shop.tld", "TXT"): ('"v=spf1 +all"',)}, {"domain-spf": "warn"}),
        ({("_dmarc.shop.tld", "TXT"): ()}, {"domain-dmarc": "fail"}),
        ({("_dmarc.shop.tld", "TXT"): ('"v=DMARC1; p=none"', '"v=DMARC1; p=reject"')}, {"domain-dmarc": "fail"}),
        ({("k1._domainkey.shop.tld", "TXT"): ()}, {"domain-dkim": "fail"}),
        ({("k1._domainkey.shop.tld", "TXT"): ('"v=DKIM1; p="',)}, {"domain-dkim": "fail"}),
    ],
)
async def test_the_dns_of_a_sender_domain(change: dict[Any, Any], told: dict[str, str]) -> None:
    async with name_server({**HEALTHY, **change}) as port:
        found = await domain_checks(["shop.tld"], ["k1"], Nameserver("127.0.0.1", port))
    assert troubles(found) == told, found
    assert {c.name for c in found} == {"domain-mx", "domain-spf", "domain-dkim", "domain-dmarc"}


async def test_dkim_without_a_selector_dmarc_of_the_domain_above_and_reserved_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {**HEALTHY, ("news.shop.tld", "MX"): ("10 mx.shop.tld.",), ("news.shop.tld", "TXT"): ('"v=spf1 -all"',)}
    async with name_server(names) as port:
        server = Nameserver("127.0.0.1", port)
        assert troubles(await domain_checks(["shop.tld"], (), server)) == {}  # there may be keys
        assert troubles(await domain_checks(["news.shop.tld"], (), server)) == {"domain-dkim": "fail"}
        assert troubles(await domain_checks(["no.tld"], ["k1"], server))["domain-mx"] == "fail"
        assert await domain_checks(["example.org", "a.test", "mail.example.com"], (), server) == ()
        returns = await domain_checks((), (), server, "no.tld")  # what bounces come back to
        assert {check.name for check in returns} == {"domain-mx", "domain-spf"}
        assert troubles(returns)["domain-mx"] == "fail"
        assert await domain_checks((), (), server, "bounces.example.org") == ()
    monkeypatch.setattr("postlane.ops.doctor.domains.LOOKUP_TIMEOUT_S", 0.3)
    assert {c.verdict for c in await domain_checks(["shop.tld"], (), Nameserver("127.0.0.1", 1))} == {"skip"}


# ------------------------------------------------------------------------------------------------------------ brokers

OPTIONS = {
    "offsets.retention.minutes": "10081",
    "transaction.max.timeout.ms": str(TRANSACTION_TIMEOUT_MS),
    "message.max.bytes": "1048588",
    "auto.create.topics.enable": "false",
    "unclean.leader.election.enable": "false",
    "log.cleaner.enable": "true",
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
}


@pytest.mark.parametrize(
    ("option", "value", "name", "verdict"),
    [
        ("offsets.retention.minutes", "10080", "offsets-retention", "fail"),
        ("transaction.max.timeout.ms", "1000", "transaction-timeout", "fail"),
        ("message.max.bytes", "1000000", "broker-message-size", "warn"),
        ("auto.create.topics.enable", "true", "auto-create-topics", "warn"),
        ("unclean.leader.election.enable", "true", "unclean-election", "fail"),
        ("log.cleaner.enable", "false", "log-cleaner", "fail"),
        ("authorizer.class.name", "", "authorizer", "warn"),
    ],
)
def test_broker_options(option: str, value: str, name: str, verdict: str) -> None:
    assert troubles(checks_of_options(OPTIONS, 7)) == {}
    only(checks_of_options({**OPTIONS, option: value}, 7), name, verdict)


def test_how_many_brokers() -> None:
    brokers = tuple(Broker(n, "h", 9092) for n in range(3))
    assert troubles(count_checks("h:9092", ClusterState("c", 0, brokers))) == {}
    only(count_checks("h:9092", ClusterState("c", 0, brokers[:1])), "broker-count", "warn")


def test_clocks() -> None:
    assert troubles([broker_clock_check(1_000_500, 1_000_000, 1_000_900)]) == {}
    assert troubles([broker_clock_check(1_001_900, 1_000_000, 1_001_000)]) == {}
    assert "1.5 s ahead" in only([broker_clock_check(1_002_500, 1_000_000, 1_001_000)], "broker-clock", "warn").found
    assert "10.0 s behind" in only([broker_clock_check(990_000, 1_000_000, 1_000_100)], "broker-clock", "fail").found
    newest = {Partition("mail.requests", 0): 1_000_000, Partition("mail.events", 3): 1_060_000}
    assert only([record_clock_check(newest, 1_000_000)], "record-clock", "fail").about == "mail.events"
    assert troubles([record_clock_check(newest, 1_060_000), record_clock_check({}, 0)]) == {}


def test_the_hash_of_a_group_is_javas() -> None:
    assert [java_hash(text) for text in ("", "hello", "polygenelubricants")] == [0, 99162322, 0]


# ------------------------------------------------------------------------------------------------------------- topics

NAMES = TopicNames()


def as_declared(want: Declared) -> dict[str, TopicState]:
    return {s.name: TopicState(s.name, s.partitions, want.replication, s.config) for s in want.specs}


def told_by_topics(change: dict[str, dict[str, Any]] | None = None, policy: Config | None = None) -> list[Check]:
    """`change`: topic -> fields of its state that differ; `config` is merged, None takes an option out."""
    policy = policy or config()
    want = declared(NAMES, policy, 3)
    actual = as_declared(want)
    for topic, fields in (change or {}).items():
        if fields.get("gone"):
            del actual[topic]
            continue
        state = actual[topic]
        merged = {**state.config, **fields.pop("config", {})}
        options = {k: v for k, v in merged.items() if v is not None}
        plain = {"partitions": state.partitions, "replication": state.replication, **fields}
        actual[topic] = TopicState(topic, config=options, **plain)
    return topic_checks(Environment(), policy, want, differences(want, actual), actual)


@pytest.mark.parametrize(
    ("change", "name", "verdict"),
    [
        ({"mail.control": {"gone": True}}, "topic-missing", "fail"),
        ({"mail.dead-letters": {"partitions": 6}}, "topic-partitions", "fail"),
        ({"mail.control": {"replication": 1, "config": {"min.insync.replicas": "2"}}}, "topic-replication", "warn"),
        ({"mail.requests": {"config": {"min.insync.replicas": None}}}, "topic-in-sync", "fail"),
        ({"mail.requests": {"config": {"min.insync.replicas": "3"}}}, "topic-in-sync", "fail"),
        ({"mail.suppressions": {"config": {"cleanup.policy": "delete"}}}, "topic-cleanup", "fail"),
        ({"mail.requests": {"config": {"retention.ms": str(29 * DAY_MS)}}}, "topic-retention", "warn"),
        ({"mail.requests": {"config": {"retention.ms": "3600000"}}}, "topic-retention", "fail"),
        ({"mail.seen": {"config": {"segment.ms": "7"}}}, "topic-options", "warn"),
        ({"mail.requests": {"config": {"max.message.bytes": "1000000"}}}, "topic-message-size", "fail"),
        ({"mail.events": {"under_replicated": 1}}, "replicas", "warn"),
        ({"mail.events": {"under_replicated": 1, "offline": 1}}, "replicas", "fail"),
    ],
)
def test_what_is_wrong_with_topics(change: dict[str, Any], name: str, verdict: str) -> None:
    found = told_by_topics({topic: dict(fields) for topic, fields in change.items()})
    told = troubles(found)
    if name == "topic-replication":  # one copy that wants two in sync also stops at once
        told.pop("topic-in-sync")
    assert told == {name: verdict}, found


def test_topics_as_they_should_be_and_larger_than_they_must() -> None:
    assert troubles(told_by_topics()) == {}
    larger = {"mail.requests": {"config": {"max.message.bytes": str(2 * RECORD_MAX_BYTES)}}}
    assert troubles(told_by_topics(larger)) == {}


def test_what_topics_keep_against_what_the_books_need() -> None:
    short = {"mail.seen": {"config": {"retention.ms": str(5 * DAY_MS)}}}
    assert troubles(told_by_topics(short)) == {"seen-retention": "fail", "topic-retention": "warn"}
    book = {"mail.state.bulk": {"config": {"retention.ms": str(7 * DAY_MS)}}}
    assert troubles(told_by_topics(book)) == {"state-retention": "fail", "topic-retention": "warn"}
    forever = {"mail.dispatch.bulk": {"config": {"retention.ms": "-1"}}}
    assert "for ever" in next(c for c in told_by_topics(forever) if c.name == "state-retention").found


def test_partition_numbers_that_must_be_one() -> None:
    assert troubles(told_by_topics({"mail.events": {"partitions": 6}})) == {
        "topic-partitions": "fail",
        "topic-partition-numbers": "fail",
    }


def test_a_prefix_that_is_not_the_one_in_use() -> None:
    missing = ["prodution.mail.requests"]
    there = ["production.mail.requests", "production.mail.seen", "other"]
    assert "'production.'" in only(prefix_check("prodution.", missing, there), "topic-prefix", "fail").found
    assert troubles(prefix_check("prodution.", missing, ["other"])) == {}
    assert troubles(prefix_check("prodution.", [], there)) == {}


# -------------------------------------------------------------------------------------------------------------- fleet


def group(*members: tuple[str | None, str]) -> GroupState:
    return GroupState("g", "Stable", tuple(GroupMember("m", i, "client", host, frozenset()) for i, host in members))


def test_services_and_their_members() -> None:
    assert troubles([service_check("router", group(("a", "h1")), 2)]) == {}
    only([service_check("router", group(), 2)], "service-running", "warn")
    only([service_check("router", None, 2)], "service-running", "warn")
    only([service_check("router", group(("a", "h"), ("b", "h"), ("c", "h")), 2)], "service-idle", "warn")
    well = {"router": group(("a", "h1")), "sender of x": group(("a", "h2")), "sender of y": group(("a", "h2"))}
    assert troubles(identity_checks(well)) == {}
    only(identity_checks({"router": group((None, "h1"))}), "member-static", "warn")
    twice = {"sender of x": group(("a", "h1")), "sender of y": group(("a", "h2")), "ledger": None}
    assert only(identity_checks(twice), "member-shared", "fail").about == "a"


def positions(committed: dict[int, int], begins: int = 0, book_end: int = 0) -> list[Check]:
    partitions = [Partition("d", n) for n in range(3)]
    states = [Partition("s", n) for n in range(3)]
    low = dict.fromkeys(partitions, begins) | dict.fromkeys(states, 0)
    stood = {Partition("d", n): Committed(offset, "") for n, offset in committed.items()}
    return list(lane_positions("bulk", partitions, states, stood, low, dict.fromkeys(states, book_end)))


def test_positions_beside_the_books() -> None:
    everywhere = {0: 5, 1: 5, 2: 5}
    assert troubles(positions({})) == {}
    assert troubles(positions(everywhere, begins=5, book_end=9)) == {}
    assert "1, 2" in only(positions({0: 5}, book_end=9), "offsets-lost", "fail").found
    assert "0, 1, 2" in only(positions(everywhere, begins=6, book_end=9), "offsets-below-log", "fail").found


@pytest.mark.parametrize("identity", IDENTITIES)
def test_rights(identity: Any) -> None:
    needed = [acl for acl in acls(NAMES, ("bulk",), (identity,)) if acl.pattern == "literal"]
    held: dict[str, dict[str, frozenset[str]]] = {"topic": {}, "group": {}}
    for acl in needed:
        if acl.resource in held:
            held[acl.resource][acl.name] = frozenset(acl.operations)
    assert troubles([rights_check(identity, needed, held)]) == {}
    topic = next(acl.name for acl in needed if acl.resource == "topic")
    held["topic"][topic] = frozenset()
    assert f"topic {topic}" in only([rights_check(identity, needed, held)], "missing-acl", "fail").found
    held["topic"][topic] = frozenset({"All"})
    assert troubles([rights_check(identity, needed, held)]) == {}
    assert rights_check(identity, needed, {}).verdict == "skip"


def test_services_asked_over_http() -> None:
    well = Service("http://a", "", "router", "r1", "1.0.0", "", 0.4)
    assert troubles(service_checks([well], "1.0.0")) == {}
    assert troubles(service_checks([], "1.0.0")) == {}
    only(service_checks([well], "1.1.0"), "service-version", "warn")
    only(service_checks([Service("http://a", "refused")], "1.0.0"), "service-ready", "warn")
    unready = Service("http://a", "", "router", "r1", "1.0.0", "no broker", 0.0)
    only(service_checks([unready], "1.0.0"), "service-ready", "fail")
    late = Service("http://a", "", "router", "r1", "1.0.0", "", -90.0)
    assert "90 s behind" in only(service_checks([late], "1.0.0"), "service-clock", "fail").found


def test_a_real_answer_of_a_service() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = 200 if self.path == "/readyz" else 404
            body = orjson.dumps({"status": "ready", "service": "router", "instance": "r1", "version": "9"})
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        told = ask_service(f"http://127.0.0.1:{server.server_port}")
        assert (told.error, told.instance, told.version, told.unready) == ("", "r1", "9", "")
        assert told.clock_off_s is not None
        assert abs(told.clock_off_s) < 5
    finally:
        server.shutdown()
        server.server_close()
    for wrong in ("http://127.0.0.1:1", "ftp://x", "http://", "http://127.0.0.1:99999"):
        assert ask_service(wrong).error


# -------------------------------------------------------------------------------------------------------------- books


def test_the_ledgers_database(tmp_path: Path) -> None:
    from postlane.ops.doctor.books import ask_ledger

    cases = [
        ("mysql://db/x", "fail"),
        ("nonsense", "fail"),
        ("postgresql://127.0.0.1:1/x", "fail"),
        (f"sqlite:///{tmp_path}/no.db", "warn"),
    ]
    for url, verdict in cases:
        only(ledger_checks(ask_ledger(url, "mail.events"), config(), NOW), "ledger-database", verdict)


def test_a_real_ledger(tmp_path: Path) -> None:
    """One that a ledger made: every question has its answer, and the revision is the one of the migrations."""
    from postlane.ops.books_database import open_database
    from postlane.ops.books_schema import books
    from postlane.ops.doctor.books import ask_ledger
    from postlane_ledger.migrate import upgrade

    url = f"sqlite:///{tmp_path}/ledger.db"
    engine = open_database(url)
    made = books()
    assert upgrade(engine) == ask_ledger(url, "t").schema
    assert troubles(ledger_checks(ask_ledger(url, "t"), config(), NOW)) == {}
    old_ms = int((NOW - timedelta(days=3)).timestamp() * 1000)
    mail = {"message_id": "m", "tenant": "t", "lane": "bulk", "sender": "Shop <a@shop.tld>", "subject": "s"}
    row = {c.name: 0 for c in made.messages.columns if c.name not in mail and not c.nullable}
    with engine.begin() as connection:
        connection.execute(made.messages.insert().values({**row, **mail}))
        for number, state in enumerate(("dead_lettered", "uncertain", "pending")):
            given = {"delivery_id": f"m.{number}", "message_id": "m", "recipient": "x@y.tld", "lane": "bulk"}
            given |= {"state": state, "updated_at_ms": old_ms, "requested_at_ms": old_ms}
            blank = {c.name: 0 for c in made.deliveries.columns if c.name not in given and not c.nullable}
            connection.execute(made.deliveries.insert().values({**blank, **given}))
            tally = {"lane": "bulk", "state": state, "n": 1}
            blank = {c.name: "" for c in made.tallies.columns if c.name not in tally and not c.nullable}
            connection.execute(made.tallies.insert().values({**blank, **tally}))
        bad = {"partition_number": 0, "log_offset": 1, "at_ms": 0, "reason": "x"}
        blank = {c.name: b"" for c in made.unreadable.columns if c.name not in bad and not c.nullable}
        connection.execute(made.unreadable.insert().values({**blank, **bad}))
    engine.dispose()
    told = ask_ledger(url, "t")
    assert told.domains == ("shop.tld",)
    assert troubles(ledger_checks(told, config(), NOW)) == {
        "ledger-unreadable": "warn",
        "unsettled-age": "warn",
        "dead-letters-unattended": "warn",
        "uncertain-unattended": "warn",
    }


def test_schemas_of_the_ledger() -> None:
    assert troubles([schema_check("0001")]) == {}
    only([schema_check("9999")], "ledger-schema", "fail")
    only([schema_check(None)], "ledger-schema", "warn")


def test_a_ledger_that_is_behind() -> None:
    assert troubles([behind_check(0, 0), behind_check(500, 2)]) == {}
    only([behind_check(500, 70)], "ledger-behind", "warn")
    only([behind_check(20_000, 2)], "ledger-behind", "warn")
    only([behind_check(5, 1_000)], "ledger-behind", "fail")


def test_mails_that_wait_and_who_waits_for_a_person() -> None:
    def row(hours: float) -> dict[str, Any]:
        at = (NOW - timedelta(hours=hours)).isoformat().replace("+00:00", "Z")
        return {"lane": "bulk", "requested_at": at, "delivery_id": "m.x.0", "state": "pending"}

    assert troubles(unsettled_checks([row(0.5)], config(), NOW)) == {}
    only(unsettled_checks([row(3)], config(), NOW), "unsettled-age", "warn")
    only(unsettled_checks([row(121)], config(), NOW), "unsettled-age", "fail")
    day, hour = NOW - timedelta(days=2), NOW - timedelta(hours=1)
    assert troubles(unattended_checks({"dead_lettered": (5, hour), "uncertain": (0, None)}, NOW)) == {}
    only(unattended_checks({"dead_lettered": (5, day)}, NOW), "dead-letters-unattended", "warn")
    only(unattended_checks({"uncertain": (5, day)}, NOW), "uncertain-unattended", "warn")
    assert troubles(ledger_checks(Told(schema="0001"), config(), NOW)) == {}


def test_a_pause_that_was_forgotten() -> None:
    def order(action: Any, hours: float) -> Control:
        return Control(action=action, scope="campaign", name="spring", at=NOW - timedelta(hours=hours), reason="why")

    assert troubles(pause_checks([order("pause", 1), order("cancel", 100)], NOW)) == {}
    assert "resume --campaign spring" in only(pause_checks([order("pause", 49)], NOW), "pause-forgotten", "warn").do


def test_backups_that_are_old_or_not_there(tmp_path: Path) -> None:
    only([ask_backups(str(tmp_path))], "backup-age", "fail")
    only([ask_backups("ftp://x/y")], "backup-age", "fail")
    manifest = tmp_path / "manifests" / "0000003.json"
    manifest.parent.mkdir()
    manifest.write_text("{")
    assert "verify" in only([ask_backups(str(tmp_path))], "backup-age", "fail").do
    for hours, told in ((1, {}), (30, {"backup-age": "warn"}), (100, {"backup-age": "fail"})):
        point = datetime.now(UTC) - timedelta(hours=hours)
        manifest.write_bytes(orjson.dumps({"point": point}))
        (manifest.parent / "0000002.json").write_bytes(orjson.dumps({"point": NOW}))
        assert troubles([ask_backups(str(tmp_path))]) == told


# -------------------------------------------------------------------------------------------------------------- whole


async def test_nothing_holds_the_doctor_up() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await in_time(lambda: time.sleep(30), 0.05)
    assert time.monotonic() - began < 10
    assert await in_time(lambda: 5, 5) == 5
    with pytest.raises(KeyError):
        await in_time(lambda: {}["x"], 5)


async def test_a_whole_examination_without_kafka(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("postlane.ops.doctor.cluster.QUESTION_TIMEOUT_S", 1.0)
    environment = Environment(
        bootstrap_servers="127.0.0.1:1", data_dir=tmp_path, database_url=f"sqlite:///{tmp_path}/no.db"
    )
    report = await asyncio.wait_for(examine(environment, config(), {}, Wish(connect=False)), 60)
    assert report.unreachable
    assert [c.name for c in report.failed] == ["kafka-reachable"]
    BROKEN.add("kafka-reachable")


async def test_spoken_defaults_are_not_a_fault() -> None:
    assert troubles(session_checks(provider(), Spoken(greeting=(220, ""), offers={"PIPELINING": ""}), NOW)) == {}


def test_every_check_of_the_catalogue_was_broken_here() -> None:
    """Runs last in this file; alone it has nothing to say."""
    if len(BROKEN) < 10:
        pytest.skip("only with the whole file")
    assert sorted(set(WHY) - BROKEN) == []


def test_the_page_of_the_checks_is_current() -> None:
    from postlane.ops.doctor.__main__ import PAGE, page

    assert (Path(__file__).parents[2] / PAGE).read_text() == page(), "run `python -m postlane.ops.doctor`"


async def test_a_check_that_fails_itself_does_not_take_the_others_along(monkeypatch: pytest.MonkeyPatch) -> None:
    from postlane.eventlog.errors import Retriable, Unreachable
    from postlane.ops.doctor import cluster

    monkeypatch.setattr(cluster, "AGAIN_S", 0.001)
    asked = 0

    async def passing() -> list[Check]:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise Retriable("the coordinator has moved")
        return [service_check("router", group(("a", "h")), 2)]

    async def raises(error: Exception) -> list[Check]:
        raise error

    assert [c.verdict for c in await cluster._asked("service-running", passing)] == ["ok"]
    (bug,) = await cluster._asked("service-running", lambda: raises(ZeroDivisionError("x")))
    (away,) = await cluster._asked("service-running", lambda: raises(Unreachable("x")))
    assert (bug.verdict, away.verdict, away.name) == ("skip", "fail", "kafka-reachable")
