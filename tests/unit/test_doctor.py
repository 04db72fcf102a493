"""The doctor: each misconfiguration is found and said with what to do; secrets are never shown."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from postlane.cli.output import document
from postlane.config import Environment
from postlane.core.policy import Config, Provider
from postlane.eventlog.admin import GroupMember, GroupState, TopicState
from postlane.eventlog.topics import TopicNames
from postlane.ops.checks import Check
from postlane.ops.doctor import effective, masked_url
from postlane.ops.doctor_kafka import _one_number, _replicas, _service, declaration_checks, option_checks
from postlane.ops.doctor_local import VARIABLES, local_checks
from postlane.ops.doctor_providers import provider_checks, settings_checks
from postlane.ops.topics import Difference, declared

SECRET = "correct-horse-battery"


def check(found: Any, name: str) -> Check:
    (only,) = [c for c in found if c.name == name]
    return only


def config(**changed: Any) -> Config:
    lanes = {"bulk": {"providers": ["primary", "backup"]}}
    providers = {"primary": {"host": "127.0.0.1"}, "backup": {"host": "127.0.0.1"}}
    return Config.model_validate({"lanes": lanes, "providers": providers, **changed})


def local(tmp_path: Path, policy: Config | None = None, variables: dict[str, str] | None = None, **env: Any) -> Any:
    settings = {"data_dir": tmp_path, "database_url": f"sqlite:///{tmp_path}/no.db", **env}
    return local_checks(Environment(**settings), policy or config(), variables or {})


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


# -------------------------------------------------------------------------------------------------------------- local


def test_variables_are_those_that_are_read() -> None:
    import inspect

    from postlane import config as reader

    source = inspect.getsource(reader.read_environment)
    assert VARIABLES - {name for name in VARIABLES if name in source} == {"POSTLANE_CACHE_DIR"}  # the local broker's


def test_a_misspelt_variable(tmp_path: Path) -> None:
    found = check(
        local(tmp_path, variables={"POSTLANE_BOOTSTRAP_SERVER": "x", "POSTLANE_KAFKA_ACKS": "x"}), "variables"
    )
    assert (found.verdict, found.do) == ("warn", "did you mean POSTLANE_BOOTSTRAP_SERVERS?")


def test_a_test_setting_in_force(tmp_path: Path) -> None:
    found = check(local(tmp_path, variables={"POSTLANE_TEST_RULES_OFF": "dedup"}), "variables")
    assert (found.verdict, "POSTLANE_TEST_RULES_OFF" in found.found) == ("fail", True)


def test_a_healthy_installation(tmp_path: Path) -> None:
    file = tmp_path / "postlane.yaml"
    file.write_text("{}")
    found = local(tmp_path, config_file=file)
    assert {c.name for c in found if c.verdict != "ok"} == {"ledger database"}


@pytest.mark.parametrize(
    ("env", "policy", "name", "verdict", "says"),
    [
        ({}, {}, "configuration", "warn", "no postlane.yaml"),
        ({"kafka": {"acks": "1"}}, {}, "kafka options", "fail", "acks"),
        ({"kafka": {"no.such": "1"}}, {}, "kafka options", "fail", "no.such"),
        ({"bootstrap_servers": "k1.example.net:9092"}, {}, "kafka options", "warn", "without TLS"),
        ({"lanes": ("blk",)}, {}, "lanes", "fail", "blk"),
        ({}, {"lanes": {"bulk": {"providers": ["primary"]}}}, "lanes", "warn", "backup"),
        (
            {},
            {"lanes": {"bulk": {"providers": ["primary"]}}, "providers": {"primary": {"host": "h"}}},
            "lanes",
            "warn",
            "one provider",
        ),
        ({}, {"retry": {"expire_after_s": 864_000}}, "retention", "fail", "10 days"),
        ({}, {"topics": {"dedup_days": 40}}, "retention", "fail", "40 days"),
        ({}, {"topics": {"events_days": 3}}, "retention", "warn", "3 days"),
        ({"data_dir": Path(__file__) / "x"}, {}, "data folder", "fail", "cannot be written"),
        ({"database_url": "mysql://db/x"}, {}, "ledger database", "fail", "not supported"),
        ({"database_url": "nonsense"}, {}, "ledger database", "fail", "not a database URL"),
        ({"database_url": "postgresql://127.0.0.1:1/x"}, {}, "ledger database", "fail", "refused"),
        ({}, {}, "ledger database", "warn", "no ledger"),
    ],
)
def test_what_is_wrong_here(
    tmp_path: Path, env: dict[str, Any], policy: dict[str, Any], name: str, verdict: str, says: str
) -> None:
    found = check(local(tmp_path, config(**policy), **env), name)
    assert (found.verdict, says in found.found) == (verdict, True), found
    assert found.do


def test_too_few_open_files(tmp_path: Path) -> None:
    providers = {f"p{i}": {"host": "h", "connections": 4096} for i in range(300)}
    policy = config(providers=providers, lanes={"bulk": {"providers": list(providers)}})
    found = check(local(tmp_path, policy), "open files")
    assert found.verdict == "fail" or "unlimited" in found.found


# ---------------------------------------------------------------------------------------------------------- providers


def provider(**fields: Any) -> Provider:
    return Provider.model_validate({"name": "p", "host": "127.0.0.1", "tls": "none", **fields})


def test_password_files(tmp_path: Path) -> None:
    good, empty, open_to_all = tmp_path / "good", tmp_path / "empty", tmp_path / "open"
    for path, text, mode in ((good, SECRET, 0o600), (empty, " \n", 0o600), (open_to_all, SECRET, 0o644)):
        path.write_text(text)
        path.chmod(mode)
    cases = [
        ({"username": "u", "password_file": str(good)}, "ok"),
        ({"username": "u", "password_file": str(empty)}, "fail"),
        ({"username": "u", "password_file": str(open_to_all)}, "warn"),
        ({"username": "u", "password_file": str(tmp_path / "none")}, "fail"),
        ({"username": "u", "password_file": str(tmp_path)}, "fail"),
        ({"password_file": str(good)}, "fail"),
        ({"username": "u"}, "fail"),
        ({"username": "u", "password": SECRET}, "warn"),
        ({}, "ok"),
    ]
    for fields, verdict in cases:
        found = check(settings_checks(provider(**fields)), "provider p: password")
        assert found.verdict == verdict, (fields, found)
        assert SECRET not in found.found + found.do


def test_tls_of_providers(tmp_path: Path) -> None:
    far = {"host": "smtp.example.net"}
    plain = check(settings_checks(provider(**far)), "provider p: TLS")
    login = check(settings_checks(provider(**far, username="u", password="x")), "provider p: TLS")
    authority = check(settings_checks(provider(tls_ca_file=str(tmp_path / "none"))), "provider p: TLS")
    assert (plain.verdict, login.verdict, authority.verdict) == ("warn", "fail", "fail")
    assert not [c for c in settings_checks(provider(**far, tls="starttls")) if "TLS" in c.name]


async def test_whether_providers_answer() -> None:
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    there = {"host": "127.0.0.1", "port": port}
    gone = {"host": "127.0.0.1", "port": 1}
    nameless = {"host": "no.such.host.invalid"}
    policy = Config.model_validate(
        {"lanes": {"l": {"providers": ["there"]}}, "providers": {"there": there, "gone": gone, "nameless": nameless}}
    )
    found = await provider_checks(policy, connect=True)
    verdicts = {c.name: c.verdict for c in found if "reachable" in c.name}
    assert verdicts == {
        "provider there: reachable": "ok",
        "provider gone: reachable": "warn",
        "provider nameless: reachable": "warn",
    }
    assert not [c for c in await provider_checks(policy, connect=False) if "reachable" in c.name]
    server.close()


# -------------------------------------------------------------------------------------------------------------- Kafka


@pytest.mark.parametrize(
    ("told", "name", "verdict"),
    [
        ({"offsets.retention.minutes": "10080"}, "offsets.retention.minutes", "fail"),
        ({"offsets.retention.minutes": "10081"}, "offsets.retention.minutes", "ok"),
        ({"transaction.max.timeout.ms": "1000"}, "transaction.max.timeout.ms", "fail"),
        ({}, "transaction.max.timeout.ms", "ok"),
        ({"auto.create.topics.enable": "true"}, "auto.create.topics.enable", "warn"),
        ({"unclean.leader.election.enable": "true"}, "unclean.leader.election.enable", "fail"),
        ({"log.cleaner.enable": "false"}, "log.cleaner.enable", "fail"),
    ],
)
def test_broker_options(told: dict[str, str], name: str, verdict: str) -> None:
    assert check(option_checks(told, 7), name).verdict == verdict


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (Difference("t", "topic", "12", None, "create"), "fail"),
        (Difference("t", "partitions", "12", "6", "refuse", "why"), "fail"),
        (Difference("t", "replication", "3", "1", "by_hand", "why"), "warn"),
        (Difference("t", "cleanup.policy", "compact", "delete", "alter"), "fail"),
        (Difference("t", "min.insync.replicas", "2", None, "alter"), "fail"),
        (Difference("t", "retention.ms", "2", "1", "alter"), "warn"),
    ],
)
def test_topics_that_differ(difference: Difference, verdict: str) -> None:
    want = declared(TopicNames(), config(), 3)
    (found,) = declaration_checks(want, [difference])
    assert (found.verdict, bool(found.do)) == (verdict, True)
    assert declaration_checks(want, [])[0].verdict == "ok"


def test_replicas_and_partition_numbers() -> None:
    states = {"a": TopicState("a", 12, 3, {}), "mail.requests": TopicState("mail.requests", 12, 3, {})}
    assert [c.verdict for c in _replicas(states)] == ["ok"]
    assert [c.verdict for c in _replicas({"a": TopicState("a", 12, 3, {}, under_replicated=1)})] == ["warn"]
    assert [c.verdict for c in _replicas({"a": TopicState("a", 12, 3, {}, 1, 1)})] == ["fail"]
    odd = {**states, "mail.events": TopicState("mail.events", 6, 3, {})}
    assert list(_one_number(Environment(), config(), states)) == []
    (found,) = _one_number(Environment(), config(), odd)
    assert (found.verdict, "mail.events has 6" in found.found) == ("fail", True)


@pytest.mark.parametrize(("members", "verdict"), [(0, "warn"), (1, "ok"), (3, "warn")])
def test_services(members: int, verdict: str) -> None:
    group = GroupState("g", "Stable", tuple(GroupMember(str(i), None, "c", "h", frozenset()) for i in range(members)))
    assert _service("router", group, 2).verdict == verdict
    assert _service("router", None, 2).verdict == "warn"
