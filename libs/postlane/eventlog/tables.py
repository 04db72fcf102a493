"""The compact topics as tables in memory: control orders and templates. `apply` is what a `Tail` calls.

A record that cannot be read leaves the table as it was and is counted; a tombstone takes its key out.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime

from postlane.core.events import Control, Template
from postlane.eventlog.codec import Unreadable, decode
from postlane.eventlog.ports import Received

_VERSION = re.compile(r"[0-9]{1,18}")  # of ASCII: str.isdigit also takes what int() does not


def control_key(action: str, scope: str, name: str) -> bytes:
    """The key of an order in `mail.control`."""
    return f"{action}/{scope}/{name}".encode()


def template_key(ident: str, version: int) -> bytes:
    """The key of a template version in `mail.templates`; versions are zero-padded, so that keys sort."""
    return f"{ident}/{version:06d}".encode()


def template_of(key: bytes | None) -> tuple[str, int] | None:
    """Id and version that a key of `mail.templates` names; None when it names none."""
    ident, slash, version = (key or b"").decode("utf-8", "replace").rpartition("/")
    return (ident, int(version)) if slash and _VERSION.fullmatch(version) else None


@dataclass(slots=True)
class ControlTable:
    """`mail.control`: what is paused, what is cancelled."""

    orders: dict[tuple[str, str, str], Control] = field(default_factory=dict)
    unreadable: int = 0
    changes: int = 0

    def apply(self, record: Received) -> None:
        """One record of the topic."""
        parts = tuple((record.key or b"").decode("utf-8", "replace").split("/", 2))
        if len(parts) != 3:
            self.unreadable += 1
            return
        key = (parts[0], parts[1], parts[2])
        self.changes += 1
        if record.value is None:
            self.orders.pop(key, None)
            return
        try:
            self.orders[key] = decode(Control, record.value)
        except Unreadable:
            self.unreadable += 1

    def paused(self, scope: str, name: str | None) -> bool:
        """Whether a lane, tenant, campaign or provider is paused."""
        return name is not None and ("pause", scope, name) in self.orders

    def cancelled(self, message_id: str, campaign: str | None, requested_at: datetime) -> bool:
        """Whether a mail was called off: by its id, or with its campaign as it stood at that time."""
        if not self.orders:
            return False
        if ("cancel", "message", message_id) in self.orders:
            return True
        order = None if campaign is None else self.orders.get(("cancel", "campaign", campaign))
        return order is not None and requested_at <= order.at


@dataclass(slots=True)
class TemplateTable:
    """`mail.templates`: every version that is there, and the newest of each id."""

    versions: OrderedDict[tuple[str, int], Template] = field(default_factory=OrderedDict)
    latest: dict[str, int] = field(default_factory=dict)
    unreadable: int = 0

    def apply(self, record: Received) -> None:
        """One record of the topic."""
        if record.value is None:
            named = template_of(record.key)
            if named is not None:
                self.versions.pop(named, None)
            return
        try:
            template = decode(Template, record.value)
        except Unreadable:
            self.unreadable += 1
            return
        self.versions[template.id, template.version] = template
        self.latest[template.id] = max(template.version, self.latest.get(template.id, 0))

    def get(self, ident: str, version: int) -> Template | None:
        """One version of a template."""
        return self.versions.get((ident, version))
