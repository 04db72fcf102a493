"""The compact topics as the router needs them: suppressions, template versions, orders. Bodies are not kept.

A record whose value cannot be read still counts for what its key says: a suppression suppresses, a pause pauses.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from hashlib import blake2b

from postlane.core.addresses import InvalidAddress, parse_mailbox
from postlane.core.events import EVERY_TENANT, Control, Template
from postlane.eventlog.codec import Unreadable, decode, time_of
from postlane.eventlog.ports import Log, Partition, Received, Tail
from postlane.eventlog.tables import template_of
from postlane.eventlog.topics import TopicNames

log = logging.getLogger("postlane.router.tables")

_DIGEST_BYTES = 16
_PAUSABLE = frozenset({"tenant", "campaign"})
_CANCELLABLE = frozenset({"message", "campaign"})


class RouterTables:
    """Knowledge (postlane.core.knowledge) out of three compact topics; 16 bytes are kept of each suppression."""

    def __init__(self) -> None:
        self._suppressed: set[bytes] = set()
        self._suppressed_for_all: set[bytes] = set()
        self._versions: defaultdict[str, set[int]] = defaultdict(set)
        self._paused: set[tuple[str, str]] = set()
        self._cancelled: dict[tuple[str, str], datetime] = {}
        self._templates_applied: dict[int, int] = {}
        self._tails: list[Tail] = []

    # ------------------------------------------------------------------------------------------------ Knowledge

    def suppressed(self, tenant: str, address: str) -> bool:
        """Whether this tenant, or every tenant, never mails this address; the case of its local part makes no
        difference."""
        if self._suppressed and _digest(tenant, address) in self._suppressed:
            return True
        return bool(self._suppressed_for_all) and _digest(EVERY_TENANT, address) in self._suppressed_for_all

    def cancelled(self, message_id: str, campaign: str | None, requested_at: datetime) -> bool:
        """Whether the mail or its campaign was called off at or after `requested_at`."""
        if not self._cancelled:
            return False
        at = self._cancelled.get(("message", message_id))
        if at is not None and at >= requested_at:
            return True
        at = None if campaign is None else self._cancelled.get(("campaign", campaign))
        return at is not None and at >= requested_at

    def paused(self, tenant: str, campaign: str | None) -> bool:
        """Whether the tenant or the campaign waits."""
        if not self._paused:
            return False
        return ("tenant", tenant) in self._paused or (campaign is not None and ("campaign", campaign) in self._paused)

    def template_version(self, template: str, version: int | None) -> int | None:
        """The version to render, None when there is no such template."""
        versions = self._versions.get(template)
        if not versions:
            return None
        if version is None:
            return max(versions)
        return version if version in versions else None

    # ------------------------------------------------------------------------------------------------- following

    async def open(self, cluster: Log, names: TopicNames, timeout_s: float) -> None:
        """Follow the topics; returns once all that is in them has been applied. Raises Retriable, UnknownTopic."""
        await self.close()
        tables: tuple[tuple[str, Callable[[Received], None]], ...] = (
            (names.suppressions, self.apply_suppression),
            (names.templates, self.apply_template),
            (names.control, self.apply_control),
        )
        for topic, _ in tables:
            await cluster.partition_count(topic)
        self._tails = [cluster.tail(topic, apply) for topic, apply in tables]
        for tail in self._tails:
            await tail.ready(timeout_s)

    async def close(self) -> None:
        """Stop following."""
        tails, self._tails = self._tails, []
        for tail in tails:
            await tail.close()

    def check(self) -> None:
        """Raises what ended one of the tails: the tables would go stale without a word."""
        for tail in self._tails:
            _ = tail.lag

    async def freshen_templates(self, cluster: Log, names: TopicNames, timeout_s: float) -> None:
        """Apply what is in the topic by now: a template is put right before the first mail that names it."""
        count = await cluster.partition_count(names.templates)
        ends = await cluster.high_watermarks([Partition(names.templates, number) for number in range(count)])
        begins = await cluster.low_watermarks(list(ends))
        for partition, end in ends.items():
            start = max(self._templates_applied.get(partition.number, 0), begins[partition])
            async for records in cluster.read(partition, start, end, deadline_s=timeout_s):
                for record in records:
                    self.apply_template(record)
            self._templates_applied[partition.number] = max(end, self._templates_applied.get(partition.number, 0))

    def apply_suppression(self, record: Received) -> None:
        """Key `tenant/address`, tenant `*` for every one; a tombstone lifts it."""
        tenant, slash, address = (record.key or b"").decode("utf-8", "replace").partition("/")
        if not slash:
            _skip(record, "its key is not tenant/address")
            return
        try:
            address = parse_mailbox(address).address
        except InvalidAddress:
            pass  # no mail can be meant by it, but a tombstone must still find it
        digest = _digest(tenant, address)
        held = self._suppressed_for_all if tenant == EVERY_TENANT else self._suppressed
        if record.value is None:
            held.discard(digest)
        else:
            held.add(digest)

    def apply_template(self, record: Received) -> None:
        """Key `id/version`; a version that cannot be read does not exist."""
        if record.offset >= self._templates_applied.get(record.partition, 0):
            self._templates_applied[record.partition] = record.offset + 1
        named = template_of(record.key)
        if named is None:
            _skip(record, "its key is not id/version")
        elif record.value is None:
            self._versions[named[0]].discard(named[1])
        else:
            try:
                template = decode(Template, record.value)
            except Unreadable as error:
                _skip(record, error.reason)
                return
            self._versions[template.id].add(template.version)

    def apply_control(self, record: Received) -> None:
        """Key `action/scope/name`; a tombstone ends the order."""
        parts = (record.key or b"").decode("utf-8", "replace").split("/", 2)
        if len(parts) != 3:
            _skip(record, "its key is not action/scope/name")
            return
        action, scope, name = parts
        if action == "pause" and scope in _PAUSABLE:
            if record.value is None:
                self._paused.discard((scope, name))
            else:
                self._paused.add((scope, name))
        elif action == "cancel" and scope in _CANCELLABLE:
            if record.value is None:
                self._cancelled.pop((scope, name), None)
            else:
                self._cancelled[scope, name] = _order_time(record)


def _order_time(record: Received) -> datetime:
    try:
        return decode(Control, record.value).at
    except Unreadable as error:
        _skip(record, f"{error.reason}; the order counts from when it was written")
        return time_of(record.timestamp_ms)


def _digest(tenant: str, address: str) -> bytes:
    return blake2b(f"{tenant}\x00{address.lower()}".encode(), digest_size=_DIGEST_BYTES).digest()


def _skip(record: Received, reason: str) -> None:
    log.warning(
        "a record of a table cannot be used",
        extra={"topic": record.topic, "partition": record.partition, "offset": record.offset, "reason": reason},
    )
