"""The fleet's view of its providers, as operators read it: the last words of `mail.health`, with their age."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from postlane.core.health_facts import ProviderHealth
from postlane.core.health_state import HealthState
from postlane.eventlog.codec import Unreadable, decode
from postlane.eventlog.ports import Log
from postlane.eventlog.topics import TopicNames
from postlane.ops.tables import table

READ_DEADLINE_S = 10.0
Document = dict[str, Any]


async def fleet_health(
    log: Log, names: TopicNames, configured: Iterable[str], now: datetime, believed_s: float
) -> list[Document]:
    """One document for each provider that is configured or was spoken of, by name. Raises UnknownTopic, Retriable.

    A word that is older than `believed_s` seconds is told with its age and counts as `unknown`, as it does for senders.
    """
    said: dict[str, ProviderHealth] = {}
    for value in (await table(log, names.health, READ_DEADLINE_S)).values():
        try:
            health = decode(ProviderHealth, value)
        except Unreadable:
            continue
        said[health.provider] = health
    return [_told(name, said.get(name), now, believed_s) for name in sorted({*configured, *said})]


def _told(name: str, health: ProviderHealth | None, now: datetime, believed_s: float) -> Document:
    if health is None:
        return {"provider": name, "state": HealthState.UNKNOWN.value, "reason": "nothing was ever said", "age_s": None}
    age_s = round((now - health.at).total_seconds(), 1)
    told: Document = {"provider": name, "age_s": age_s, **health.model_dump(mode="json", exclude={"provider"})}
    if age_s > believed_s:
        told["state"] = HealthState.UNKNOWN.value
        told["reason"] = f"the last word is {age_s:.0f} s old: it was {health.state}"
    return told
