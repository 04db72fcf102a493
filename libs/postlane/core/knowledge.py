"""What a router knows beside the record in hand: the compact topics, asked as questions."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class Knowledge(Protocol):
    """Suppressions, templates and orders, as current as the tables that hold them."""

    def suppressed(self, tenant: str, address: str) -> bool:
        """Whether the tenant never mails this address (in the normal form of `postlane.core.addresses`)."""

    def cancelled(self, message_id: str, campaign: str | None, requested_at: datetime) -> bool:
        """Whether the mail or its campaign was called off at or after `requested_at`."""

    def paused(self, tenant: str, campaign: str | None) -> bool:
        """Whether the tenant or the campaign waits. (A paused lane is the sender's affair.)"""

    def template_version(self, template: str, version: int | None) -> int | None:
        """The version to render: `version` if it exists, the latest for None; None when there is no such template."""
