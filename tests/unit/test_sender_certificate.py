"""A provider without a certificate has no time at which one ends (a drill found an alert that said it had ended)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from postlane.core.policy import Provider
from postlane.telemetry.metrics import Metrics
from postlane.telemetry.tracing import OFF
from postlane_sender import bootstrap

NAME = "postlane_sender_certificate_expiry_timestamp_seconds"


@pytest.mark.parametrize(("ends_at", "series"), [(None, None), (1_900_000_000.0, 1_900_000_000.0)])
async def test_the_series_begins_with_a_certificate(
    monkeypatch: pytest.MonkeyPatch, ends_at: float | None, series: float | None
) -> None:
    async def open_session(*_: Any, certificate_ends: Any, **__: Any) -> None:
        if ends_at is not None:
            certificate_ends(ends_at)

    monkeypatch.setattr(bootstrap, "open_session", open_session)
    provider = Provider(name="p", host="127.0.0.1", port=2525, tls="none")
    metrics = Metrics("sender")
    lane = SimpleNamespace(metrics=metrics.sender)
    link: Any = SimpleNamespace(name="p", provider=provider, pool=SimpleNamespace(lane=lane))
    await bootstrap._sessions([provider], OFF)(link)
    assert metrics.registry.get_sample_value(NAME, {"provider": "p"}) == series
