"""Everything that is asked of the Kafka cluster, question by question, each with a bound of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from postlane.config import Environment
from postlane.core.policy import Config
from postlane.eventlog.admin import ClusterState
from postlane.eventlog.errors import LogError, OptionRefused, Retriable, UnknownTopic, Unreachable
from postlane.eventlog.kafka import KafkaLog
from postlane.eventlog.ports import Partition
from postlane.ops import tables
from postlane.ops.acls import Identity
from postlane.ops.doctor.books import Told, behind_checks, pause_checks, utc_now
from postlane.ops.doctor.brokers import (
    broker_clock_check,
    broker_now_ms,
    count_checks,
    option_checks,
    record_clock_check,
)
from postlane.ops.doctor.check import Check, fail, ok, skip
from postlane.ops.doctor.fleet import member_checks, position_checks, right_checks
from postlane.ops.doctor.topics import prefix_check, topic_checks
from postlane.ops.topics import plan

QUESTION_TIMEOUT_S = 15.0
AGAIN_S = 0.5
REACHABLE = "kafka-reachable"
_Ask = Callable[[], Awaitable[Sequence[Check]]]


async def cluster_checks(
    environment: Environment, config: Config, identity: Identity, ledger: Callable[[], Awaitable[Told]]
) -> tuple[Check, ...]:
    """Every check of the cluster; one that cannot be asked says so and does not hide the others."""
    try:
        log = KafkaLog(environment.bootstrap_servers, environment.kafka, "postlane-doctor")
    except OptionRefused as error:
        return (skip(REACHABLE, f"not tried: {error}"),)
    try:
        try:
            async with asyncio.timeout(QUESTION_TIMEOUT_S):
                cluster = await log.admin.cluster()
        except (LogError, TimeoutError) as error:
            do = "start Kafka, or correct POSTLANE_BOOTSTRAP_SERVERS and the POSTLANE_KAFKA_ credentials"
            said = str(error) or f"no answer within {QUESTION_TIMEOUT_S:g} s"
            return (fail(REACHABLE, f"{environment.bootstrap_servers}: {said}", do),)
        found = count_checks(environment.bootstrap_servers, cluster)
        questions = _questions(log, environment, config, cluster, identity, ledger)
        for checks in await asyncio.gather(*(_asked(name, ask) for name, ask in questions)):
            found += checks
        return tuple(found)
    finally:
        await log.close()


def _questions(
    log: KafkaLog,
    environment: Environment,
    config: Config,
    cluster: ClusterState,
    identity: Identity,
    ledger: Callable[[], Awaitable[Told]],
) -> Iterator[tuple[str, _Ask]]:
    """Each by the name of a check that is told as skipped when it cannot be asked."""
    yield "offsets-retention", lambda: option_checks(log.admin, cluster, config.topics.dispatch_days)
    yield "topic-missing", lambda: _topics(log, environment, config)
    yield "offsets-lost", lambda: position_checks(log, log.admin, environment, config)
    yield "service-running", lambda: member_checks(log.admin, environment, config)
    yield "missing-acl", lambda: right_checks(log.admin, environment.names, config, identity)
    yield "broker-clock", lambda: _broker_clock(log, environment)
    yield "record-clock", lambda: _record_clock(log, environment)
    yield "pause-forgotten", lambda: _pauses(log, environment)
    yield "ledger-behind", lambda: _behind(log, environment, ledger)


async def _asked(name: str, ask: _Ask) -> Sequence[Check]:
    try:
        async with asyncio.timeout(QUESTION_TIMEOUT_S):
            return await _again(ask)
    except TimeoutError:
        return [skip(name, f"no answer within {QUESTION_TIMEOUT_S:g} s", "see whether the brokers are overloaded")]
    except Unreachable as error:
        return [fail(REACHABLE, f"while asking for {name}: {error}", "see whether the brokers stay up")]
    except UnknownTopic as error:
        return [skip(name, str(error))]  # topic-missing says so
    except LogError as error:
        return [skip(name, str(error), "grant this user what `postlane topics plan --acls` shows for the operator")]
    except Exception as error:  # a fault of one check must not take the others' answers along
        return [skip(name, f"the check itself failed: {type(error).__name__}: {error}", "please report it")]


async def _again(ask: _Ask) -> Sequence[Check]:
    """A passing refusal (a coordinator that has just moved) is asked again, for as long as there is time."""
    while True:
        try:
            return await ask()
        except Unreachable:
            raise
        except Retriable:
            await asyncio.sleep(AGAIN_S)


async def _topics(log: KafkaLog, environment: Environment, config: Config) -> Sequence[Check]:
    want, found = await plan(log.admin, environment.names, config)
    actual = await log.admin.topics([spec.name for spec in want.specs])
    checks = topic_checks(environment, config, want, found, actual)
    missing = [d.topic for d in found if d.action == "create"]
    if environment.names.requests in missing:
        checks += prefix_check(environment.topic_prefix, missing, await log.admin.topics())
    return checks


async def _broker_clock(log: KafkaLog, environment: Environment) -> Sequence[Check]:
    names = environment.names
    before_ms = int(time.time() * 1000)
    broker_ms = await broker_now_ms(log.admin, f"{names.prefix}doctor", Partition(names.control, 0))
    return [broker_clock_check(broker_ms, before_ms, int(time.time() * 1000))]


async def _record_clock(log: KafkaLog, environment: Environment) -> Sequence[Check]:
    newest: Mapping[Partition, int] = {}
    for topic in (environment.names.requests, environment.names.events):
        partitions = [Partition(topic, number) for number in range(await log.partition_count(topic))]
        newest = {**newest, **await log.admin.newest_timestamps(partitions)}
    return [record_clock_check(newest, int(time.time() * 1000))]


async def _pauses(log: KafkaLog, environment: Environment) -> Sequence[Check]:
    found = list(pause_checks(await tables.orders(log, environment.names), utc_now()))
    return found or [ok("pause-forgotten", "nothing is paused for long")]


async def _behind(log: KafkaLog, environment: Environment, ledger: Callable[[], Awaitable[Told]]) -> Sequence[Check]:
    return await behind_checks(log, environment.names.events, await ledger(), utc_now())
