"""Checks that ask this machine only: variables, configuration, folders, limits, the ledger's database."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from postlane.config import ConfigurationError, Environment
from postlane.core.policy import Config
from postlane.eventlog.errors import OptionRefused
from postlane.eventlog.kafka_config import check_options
from postlane.ops.checks import Check, fail, ok, skip, warn

FREE_MIN_BYTES = 1 << 30
FILES_BESIDE_CONNECTIONS = 256  # Kafka's connections, the store's files, logs
DAY_S = 86_400
VARIABLES = frozenset(
    {
        "POSTLANE_BOOTSTRAP_SERVERS",
        "POSTLANE_CACHE_DIR",
        "POSTLANE_TOPIC_PREFIX",
        "POSTLANE_CONFIG",
        "POSTLANE_HTTP_HOST",
        "POSTLANE_HTTP_PORT",
        "POSTLANE_LANES",
        "POSTLANE_DATA_DIR",
        "POSTLANE_INSTANCE_ID",
        "POSTLANE_DATABASE_URL",
    }
)


def local_checks(environment: Environment, config: Config, variables: Mapping[str, str]) -> tuple[Check, ...]:
    """Every local check, in the order in which an operator would mend things."""
    return (
        _configuration(environment),
        *_variables(variables),
        _kafka_options(environment),
        _lanes(environment, config),
        *_retention(config),
        _data_dir(environment.data_dir),
        _open_files(config),
        _database(environment),
    )


def _configuration(environment: Environment) -> Check:
    if environment.config_file is None:
        found = "no postlane.yaml: the built-in lanes and one provider at 127.0.0.1:2525"
        return warn("configuration", found, "write a postlane.yaml, or name one in POSTLANE_CONFIG")
    return ok("configuration", f"{environment.config_file} is valid")


def _variables(variables: Mapping[str, str]) -> Iterator[Check]:
    known = sorted(VARIABLES)
    for name in sorted(variables):
        if name.startswith("POSTLANE_TEST_"):
            yield fail("variables", f"{name} is for tests: it breaks or switches off what keeps the books", "unset it")
            continue
        if name.startswith("POSTLANE_") and name not in VARIABLES and not name.startswith("POSTLANE_KAFKA_"):
            near = get_close_matches(name, known, n=1)
            do = f"did you mean {near[0]}?" if near else "remove it, or see the table of variables"
            yield warn("variables", f"{name} means nothing to Postlane", do)


def _kafka_options(environment: Environment) -> Check:
    name = "kafka options"
    try:
        check_options(environment.kafka)
    except OptionRefused as error:
        return fail(name, str(error), "take the POSTLANE_KAFKA_ variable away or correct it")
    plain = environment.kafka.get("security.protocol", "plaintext").lower() == "plaintext"
    outside = [
        s for s in environment.bootstrap_servers.split(",") if not s.strip().startswith(("127.", "localhost", "["))
    ]
    if plain and outside:
        do = "set POSTLANE_KAFKA_SECURITY_PROTOCOL=SASL_SSL (or SSL) and its credentials"
        return warn(name, f"{outside[0].strip()} is spoken to without TLS", do)
    return ok(name, f"{len(environment.kafka)} options given, all known")


def _lanes(environment: Environment, config: Config) -> Check:
    name = "lanes"
    for lane in environment.lanes or ():
        if lane not in config.lanes:
            near = get_close_matches(lane, list(config.lanes), n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(config.lanes)}"
            return fail(name, f"POSTLANE_LANES names {lane!a}, which does not exist", hint)
    used = {provider for lane in config.lanes.values() for provider in lane.providers}
    idle = [provider for provider in config.providers if provider not in used]
    if idle:
        return warn(name, f"no lane uses the provider {idle[0]}", "name it in a lane's providers, or remove it")
    alone = [lane for lane, policy in config.lanes.items() if len(policy.providers) == 1]
    if alone:
        return warn(name, f"lane {alone[0]} has one provider and nowhere to go when it fails", "add a second provider")
    return ok(name, f"{', '.join(config.lanes)}; each with a provider to fail over to")


def _retention(config: Config) -> Iterator[Check]:
    topics, retry = config.topics, config.retry
    name = "retention"
    if retry.expire_after_s > topics.dispatch_days * DAY_S:
        found = f"mails live {retry.expire_after_s / DAY_S:g} days, dispatch records {topics.dispatch_days:g}"
        yield fail(name, found, "lower retry.expire_after_s or raise topics.dispatch_days: Kafka would drop open mails")
    elif topics.dedup_days > topics.requests_days:
        found = f"keys are remembered {topics.dedup_days:g} days, requests kept {topics.requests_days:g}"
        yield fail(name, found, "raise topics.requests_days: it must not be below topics.dedup_days")
    elif topics.events_days < topics.requests_days:
        found = f"events are kept {topics.events_days:g} days, requests {topics.requests_days:g}"
        yield warn(name, found, "raise topics.events_days: a replay asks the events what was delivered")
    else:
        yield ok(
            name,
            f"requests {topics.requests_days:g} d, dispatch {topics.dispatch_days:g} d, keys {topics.dedup_days:g} d",
        )


def _data_dir(folder: Path) -> Check:
    name = "data folder"
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return fail(name, f"{existing} cannot be written", "set POSTLANE_DATA_DIR to a folder that this user owns")
    free = shutil.disk_usage(existing).free
    if free < FREE_MIN_BYTES:
        do = "make room: the router's store and the flight recorder live there"
        return warn(name, f"{free // (1 << 20)} MiB free at {existing}", do)
    return ok(name, f"{folder} ({free // (1 << 30)} GiB free)")


def _open_files(config: Config) -> Check:
    name = "open files"
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = sum(provider.connections for provider in config.providers.values()) + FILES_BESIDE_CONNECTIONS
    if soft != resource.RLIM_INFINITY and soft < needed:
        do = f"raise it (ulimit -n {needed}), or lower the providers' connections"
        return fail(name, f"{soft} are allowed; the providers' connections and the rest need {needed}", do)
    return ok(name, f"{'unlimited' if soft == resource.RLIM_INFINITY else soft} allowed, {needed} needed at most")


def _database(environment: Environment) -> Check:
    name = "ledger database"
    try:
        from postlane.ops import books
        from postlane.ops.books_database import DatabaseRefused, DatabaseUnavailable, database_url
    except ModuleNotFoundError as error:
        return skip(name, f"{error.name} is not installed", "pip install 'postlane[ledger]' to read the ledger here")
    try:
        database_url(environment.database_url)
    except ConfigurationError as error:
        return fail(name, str(error), "correct POSTLANE_DATABASE_URL")
    try:
        known = books.offsets(environment.database_url, environment.names.events)
    except ConfigurationError as error:
        return warn(name, str(error), "start postlane_ledger with the same POSTLANE_DATABASE_URL")
    except (DatabaseUnavailable, DatabaseRefused) as error:
        return fail(name, str(error), "start the database, or correct POSTLANE_DATABASE_URL")
    return ok(name, f"answers; {sum(known.values())} events folded over {len(known)} partitions")
