"""Checks that need nothing but the variables and postlane.yaml."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from postlane.bounce_keys import ReturnPaths
from postlane.clock import SystemClock
from postlane.config import SECRETS, ConfigurationError, Environment
from postlane.core.policy import Config, Lane, Provider
from postlane.eventlog.errors import OptionRefused
from postlane.eventlog.kafka_config import MAX_POLL_INTERVAL_MS, SESSION_TIMEOUT_MS, check_options
from postlane.eventlog.topics import RECORD_MAX_BYTES
from postlane.ops.doctor.check import Check, fail, ok, warn
from postlane.ops.topics import REPLICATION_WANTED

DAY_S = 86_400
STOP_TIMEOUT_S = 45.0  # postlane.service: a longer drain is cut short
SIZE_OPTIONS = ("message.max.bytes", "fetch.max.bytes", "receive.message.max.bytes")
VARIABLES = frozenset(
    {
        "POSTLANE_BACKUP_KEY_FILE",
        "POSTLANE_BACKUP_PLACE",
        "POSTLANE_BOOTSTRAP_SERVERS",
        "POSTLANE_CACHE_DIR",
        "POSTLANE_TOPIC_PREFIX",
        "POSTLANE_CONFIG",
        "POSTLANE_HTTP_HOST",
        "POSTLANE_HTTP_PORT",
        "POSTLANE_LANES",
        "POSTLANE_LOG_LEVEL",
        "POSTLANE_DATA_DIR",
        "POSTLANE_INSTANCE_ID",
        "POSTLANE_DATABASE_URL",
        "POSTLANE_BOUNCES_LISTEN",
        "POSTLANE_BOUNCES_TLS_CERT",
        "POSTLANE_BOUNCES_TLS_KEY",
        "POSTLANE_GATEWAY_KEYS_FILE",
        "POSTLANE_GATEWAY_LINGER_S",
        "POSTLANE_GATEWAY_LISTEN",
        "POSTLANE_GATEWAY_TLS_CERT",
        "POSTLANE_GATEWAY_TLS_KEY",
        "POSTLANE_TRACE_ADDRESSES",
        "POSTLANE_TRACE_HASH_KEY",
        *(f"{name}_FILE" for name in SECRETS),
    }
)
FAMILIES = ("POSTLANE_KAFKA_",)  # the Kafka library knows their names: `kafka-option`


def configuration_checks(environment: Environment, config: Config, variables: Mapping[str, str]) -> tuple[Check, ...]:
    """Every check of the configuration, in the order in which an operator would mend things."""
    return (
        _file(environment),
        *_variables(variables),
        *_kafka(environment),
        _served(environment, config),
        *_pools(config),
        *_duplicates(config),
        *(check for name, lane in config.lanes.items() for check in _times(name, lane)),
        *_retention(config),
        *_replication(config),
        *_bounces(config),
    )


def _bounces(config: Config) -> Iterator[Check]:
    if config.bounces is None:
        return
    path = Path(config.bounces.key_file)
    try:
        ReturnPaths(config.bounces, SystemClock())
        mode = path.stat().st_mode
    except (ConfigurationError, OSError) as error:
        do = "write the same key for all senders and gateways: docs/bounces.md"
        yield fail("bounce-key", str(error).removeprefix("bounces.key_file: "), do)
        return
    if stat.S_IMODE(mode) & stat.S_IROTH:
        yield warn("bounce-key", f"{path} can be read by everybody", f"chmod o-rwx {path}")
    else:
        yield ok("bounce-key", f"{path} is readable")


def _file(environment: Environment) -> Check:
    name = "configuration-file"
    if environment.config_file is None:
        found = "no postlane.yaml: the built-in lanes and one provider at 127.0.0.1:2525"
        return warn(name, found, "write a postlane.yaml, or name one in POSTLANE_CONFIG")
    return ok(name, f"{environment.config_file} is valid")


def _variables(variables: Mapping[str, str]) -> Iterator[Check]:
    known = sorted(VARIABLES)
    for variable in sorted(variables):
        if variable.startswith("POSTLANE_TEST_"):
            yield fail("test-setting", f"{variable} is set", f"unset {variable}", variable)
        elif variable.startswith("POSTLANE_") and variable not in VARIABLES and not variable.startswith(FAMILIES):
            near = get_close_matches(variable, known, n=1)
            do = f"did you mean {near[0]}?" if near else "remove it, or see the table of variables in the README"
            yield warn("unknown-variable", f"{variable} means nothing to Postlane", do, variable)


def _kafka(environment: Environment) -> Iterator[Check]:
    try:
        check_options(environment.kafka)
        yield ok("kafka-option", f"{len(environment.kafka)} options given, all known")
    except OptionRefused as error:
        yield fail("kafka-option", str(error), "take the POSTLANE_KAFKA_ variable away or correct it")
    plain = environment.kafka.get("security.protocol", "plaintext").lower() in ("plaintext", "sasl_plaintext")
    servers = [server.strip() for server in environment.bootstrap_servers.split(",")]
    outside = [server for server in servers if not server.startswith(("127.", "localhost", "[::1]"))]
    if plain and outside:
        do = "set POSTLANE_KAFKA_SECURITY_PROTOCOL=SASL_SSL (or SSL) and its credentials"
        yield warn("kafka-encryption", f"{outside[0]} is spoken to without TLS", do)
    for option in SIZE_OPTIONS:
        told = environment.kafka.get(option, "")
        if told.isdigit() and int(told) < RECORD_MAX_BYTES:
            variable = f"POSTLANE_KAFKA_{option.upper().replace('.', '_')}"
            found = f"{option} is {told}, a record may have {RECORD_MAX_BYTES} bytes"
            yield fail("client-message-size", found, f"remove {variable}, or set it to {RECORD_MAX_BYTES}", option)


def _served(environment: Environment, config: Config) -> Check:
    name = "served-lanes"
    for lane in environment.lanes or ():
        if lane not in config.lanes:
            near = get_close_matches(lane, list(config.lanes), n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(config.lanes)}"
            return fail(name, f"POSTLANE_LANES names {lane!a}, which does not exist", hint)
    return ok(name, ", ".join(environment.lanes or config.lanes))


def _pools(config: Config) -> Iterator[Check]:
    used = {provider for lane in config.lanes.values() for provider in lane.providers}
    for provider in config.providers:
        if provider not in used:
            do = "name it in a lane's providers, or remove it"
            yield warn("idle-provider", f"no lane uses the provider {provider}", do, provider)
    for lane, policy in config.lanes.items():
        if len(set(policy.providers)) == 1:
            found = f"lane {lane} has one provider and nowhere to go when it fails"
            yield warn("single-provider", found, "add a second provider", lane)


def _duplicates(config: Config) -> Iterator[Check]:
    known: dict[tuple[str, int, str | None], Provider] = {}
    for provider in config.providers.values():
        where = (provider.host.lower().rstrip("."), provider.port, provider.username)
        first = known.setdefault(where, provider)
        if first is not provider:
            found = f"{first.name} and {provider.name} are both {provider.host}:{provider.port}"
            yield warn("duplicate-provider", found, "give the second another host, or remove it", provider.name)


def _times(lane: str, policy: Lane) -> Iterator[Check]:
    session_s = SESSION_TIMEOUT_MS / 1000
    if policy.intent_ttl_s >= session_s:
        found = f"intent_ttl_s is {policy.intent_ttl_s:g}, a session lasts {session_s:g} s"
        yield fail("intent-lifetime", found, f"set lanes.{lane}.intent_ttl_s below {session_s:g} (default 7)", lane)
    longest_s = min(STOP_TIMEOUT_S, MAX_POLL_INTERVAL_MS / 1000)
    if policy.drain_timeout_s >= longest_s:
        found = f"drain_timeout_s is {policy.drain_timeout_s:g}, a service stops within {longest_s:g} s"
        yield fail("drain-time", found, f"set lanes.{lane}.drain_timeout_s below {longest_s:g} (default 20)", lane)


def _retention(config: Config) -> Iterator[Check]:
    topics, retry = config.topics, config.retry
    if retry.expire_after_s > topics.dispatch_days * DAY_S:
        found = f"mails live {retry.expire_after_s / DAY_S:g} days, dispatch records {topics.dispatch_days:g}"
        yield fail("expiry-retention", found, "lower retry.expire_after_s or raise topics.dispatch_days")
    else:
        yield ok("expiry-retention", f"mails live {retry.expire_after_s / DAY_S:g} d of {topics.dispatch_days:g} d")
    if topics.dedup_days > topics.requests_days:
        found = f"keys are remembered {topics.dedup_days:g} days, requests kept {topics.requests_days:g}"
        yield fail("dedup-retention", found, "raise topics.requests_days: it must not be below topics.dedup_days")
    else:
        yield ok("dedup-retention", f"keys {topics.dedup_days:g} d, requests {topics.requests_days:g} d")
    if topics.events_days < topics.requests_days:
        found = f"events are kept {topics.events_days:g} days, requests {topics.requests_days:g}"
        yield warn("events-retention", found, "raise topics.events_days to topics.requests_days or more")


def _replication(config: Config) -> Iterator[Check]:
    told = config.topics.replication
    if told is not None and told < REPLICATION_WANTED:
        do = f"remove topics.replication, or set it to {REPLICATION_WANTED}"
        yield warn("replication-setting", f"topics.replication is {told}", do)
