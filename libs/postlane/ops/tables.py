"""The compact topics as operators use them: suppressions, templates, orders (pause, cancel).

The last record of a key is what holds; a tombstone takes it out. Addresses are kept in one form (domain in A-labels,
everything in lower case, as the router compares them), so that what was added can be found again and removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import islice
from typing import Literal, NamedTuple, TypeVar

from postlane.core.addresses import parse_mailbox
from postlane.core.events import Control, Fact, Suppression, Template
from postlane.eventlog.codec import Unreadable, decode, encode, headers
from postlane.eventlog.errors import Aborted, Fenced, Retriable
from postlane.eventlog.ports import Log, Outgoing, Partition, Transaction
from postlane.eventlog.tables import control_key, template_key
from postlane.eventlog.topics import TopicNames

SOURCE = "postlane/ops"
READ_DEADLINE_S = 60.0
APPEND_BATCH = 500
PUT_TRIES_MAX = 5
Scope = Literal["lane", "tenant", "campaign", "provider"]
F = TypeVar("F", bound=Fact)


class NotThere(Exception):
    """What was asked for does not exist."""

    exit_code = 1


class Put(NamedTuple):
    """A template as it stands, and whether this call wrote it."""

    template: Template
    created: bool


# ------------------------------------------------------------------------------------------------------ suppressions


def suppression_address(address: str) -> str:
    """The form in which an address is kept. Raises InvalidAddress."""
    return parse_mailbox(address).address.lower()


def suppression_key(tenant: str, address: str) -> bytes:
    """The key in `mail.suppressions`: `tenant/address`. Raises InvalidAddress."""
    return f"{tenant}/{suppression_address(address)}".encode()


async def add_suppressions(log: Log, names: TopicNames, entries: Iterable[Suppression]) -> int:
    """Never mail these again; how many. Raises what appending raises: run again, adding twice changes nothing."""

    def record(entry: Suppression) -> Outgoing:
        kept = entry.model_copy(update={"address": suppression_address(entry.address)})
        return _record(names.suppressions, suppression_key(kept.tenant, kept.address), kept, kept.at)

    return await _append_all(log, names.suppressions, (record(entry) for entry in entries))


async def remove_suppressions(log: Log, names: TopicNames, tenant: str, addresses: Iterable[str]) -> int:
    """Mail these again; how many."""
    keys = (suppression_key(tenant, address) for address in addresses)
    return await _append_all(log, names.suppressions, (Outgoing(names.suppressions, None, key, None) for key in keys))


async def suppressions(log: Log, names: TopicNames, tenant: str | None = None) -> list[Suppression]:
    """All that holds, by tenant and address."""
    found = await _facts(log, names.suppressions, Suppression)
    mine = (entry for entry in found if tenant is None or entry.tenant == tenant)
    return sorted(mine, key=lambda entry: (entry.tenant, entry.address))


# ---------------------------------------------------------------------------------------------------------- templates


async def put_template(
    log: Log, names: TopicNames, ident: str, subject: str, text: str | None, html: str | None, now: datetime
) -> Put:
    """The template under its next version; the newest as it is when it says the same already.

    Versions are never changed once written, so two writers must not take the same one: each writes in a transaction
    under one transactional id, whose start fences the other, and reads only then. Raises Retriable after several
    writers got into each other's way.
    """
    for _ in range(PUT_TRIES_MAX):
        transactor = await log.transactor(f"{names.templates}.writer")
        try:
            newest = _newest(await templates(log, names)).get(ident)
            if newest is not None and (newest.subject, newest.text, newest.html) == (subject, text, html):
                return Put(newest, created=False)
            version = 1 if newest is None else newest.version + 1
            template = Template(id=ident, version=version, subject=subject, text=text, html=html, at=now)
            record = _record(names.templates, template_key(ident, version), template, now)
            await transactor.commit(Transaction([_placed(record)], {}, None))
            return Put(template, created=True)
        except (Fenced, Aborted):
            continue
        finally:
            await transactor.close()
    raise Retriable(f"template {ident}: other writers got in the way {PUT_TRIES_MAX} times; try again")


async def templates(log: Log, names: TopicNames) -> list[Template]:
    """Every version of every template, by id and version."""
    found = await _facts(log, names.templates, Template)
    return sorted(found, key=lambda template: (template.id, template.version))


async def get_template(log: Log, names: TopicNames, ident: str, version: int | None = None) -> Template:
    """One version, the newest when none is named. Raises NotThere."""
    found = await templates(log, names)
    newest = _newest(found).get(ident)
    if newest is None:
        known = ", ".join(list(_newest(found))[:10]) or "none yet"
        raise NotThere(f"there is no template {ident!a}; known: {known}")
    for template in found:
        if template.id == ident and template.version == (newest.version if version is None else version):
            return template
    raise NotThere(f"template {ident} has no version {version}; its newest is {newest.version}")


def _newest(found: Sequence[Template]) -> dict[str, Template]:
    return {template.id: template for template in found}


# ------------------------------------------------------------------------------------------------------------- orders


async def pause(log: Log, names: TopicNames, scope: Scope, name: str, reason: str, now: datetime) -> Control:
    """Hold it back until `resume`."""
    return await _order(log, names, Control(action="pause", scope=scope, name=name, at=now, reason=reason))


async def resume(log: Log, names: TopicNames, scope: Scope, name: str) -> bool:
    """Let it go on; whether it was paused."""
    was_paused = any((o.action, o.scope, o.name) == ("pause", scope, name) for o in await orders(log, names))
    await _append_all(log, names.control, [Outgoing(names.control, None, control_key("pause", scope, name), None)])
    return was_paused


async def cancel(
    log: Log, names: TopicNames, scope: Literal["message", "campaign"], name: str, reason: str, now: datetime
) -> Control:
    """Call off what was requested until `now` and has not begun its body."""
    return await _order(log, names, Control(action="cancel", scope=scope, name=name, at=now, reason=reason))


async def orders(log: Log, names: TopicNames) -> list[Control]:
    """Every order that holds."""
    found = await _facts(log, names.control, Control)
    return sorted(found, key=lambda order: (order.action, order.scope, order.name))


async def _order(log: Log, names: TopicNames, order: Control) -> Control:
    key = control_key(order.action, order.scope, order.name)
    await _append_all(log, names.control, [_record(names.control, key, order, order.at)])
    return order


# ---------------------------------------------------------------------------------------------------- reading, writing


async def table(log: Log, topic: str, deadline_s: float = READ_DEADLINE_S) -> dict[bytes, bytes]:
    """What holds in a compact topic: key -> value. Raises UnknownTopic, Retriable."""
    partitions = [Partition(topic, number) for number in range(await log.partition_count(topic))]
    begins, ends = await log.low_watermarks(partitions), await log.high_watermarks(partitions)
    held: dict[bytes, bytes] = {}
    for partition in partitions:
        start, end = begins[partition], ends[partition]
        if start >= end:
            continue
        async for records in log.read(partition, start, end, deadline_s=deadline_s):
            for record in records:
                if record.key is None:
                    continue
                if record.value is None:
                    held.pop(record.key, None)
                else:
                    held[record.key] = record.value
    return held


async def _facts(log: Log, topic: str, model: type[F]) -> list[F]:
    found = []
    for value in (await table(log, topic)).values():
        try:
            found.append(decode(model, value))
        except Unreadable:
            continue  # the services count these; what is listed is what they go by
    return found


async def _append_all(log: Log, topic: str, records: Iterable[Outgoing]) -> int:
    """Append to `topic`, a batch at a time. Asks for the topic first: an append alone waits long for a broker that
    is not there, and cannot say that it is not."""
    await log.partition_count(topic)
    appender, waiting, count = log.appender(), iter(records), 0
    try:
        while batch := list(islice(waiting, APPEND_BATCH)):
            await asyncio.gather(*(appender.append(record) for record in batch))
            count += len(batch)
    finally:
        await appender.close()
    return count


def _record(topic: str, key: bytes, fact: Fact, at: datetime) -> Outgoing:
    ident = f"{key.decode()}@{at.isoformat()}"
    return Outgoing(topic, None, key, encode(fact), headers(type(fact), SOURCE, ident, at))


def _placed(record: Outgoing) -> Outgoing:
    """Templates have one partition, which makes their versions one sequence."""
    return Outgoing(record.topic, 0, record.key, record.value, record.headers)
