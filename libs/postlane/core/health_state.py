"""The four things that can be said of a provider's health."""

from __future__ import annotations

from enum import StrEnum


class HealthState(StrEnum):
    """`unknown` is no verdict: nothing is held against a provider that nobody has used of late."""

    UNKNOWN = "unknown"
    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"
