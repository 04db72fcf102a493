"""A provider's password rotated while the sender runs: its file is read with each session (found by `make chaos`)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from postlane.config import ConfigurationError
from postlane.core.policy import Provider
from postlane.telemetry.tracing import OFF
from postlane_sender import bootstrap
from postlane_sender.session import ProviderDown


async def test_each_session_has_the_password_that_the_file_holds_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[SecretStr | None] = []

    async def opened(provider: Provider, password: SecretStr | None, listener: Any, **more: Any) -> None:
        used.append(password)

    monkeypatch.setattr(bootstrap, "open_session", opened)
    path = tmp_path / "password"
    path.write_text("first\n")
    provider = Provider(name="primary", host="127.0.0.1", tls="none", username="shop", password_file=path)
    link: Any = SimpleNamespace(name="primary", provider=provider)
    open_one = bootstrap._sessions([provider], OFF)
    await open_one(link)
    path.write_text("second\n")
    await open_one(link)
    assert [password.get_secret_value() for password in used if password] == ["first", "second"]

    path.unlink()  # as while a secret is being swapped: no session now, and no end of the process
    with pytest.raises(ProviderDown, match="cannot be read"):
        await open_one(link)
    path.write_text("third\n")
    await open_one(link)
    assert used[-1] == SecretStr("third")


def test_a_password_file_that_is_missing_at_the_start_is_a_configuration_error(tmp_path: Path) -> None:
    provider = Provider(name="p", host="127.0.0.1", tls="none", username="shop", password_file=tmp_path / "none")
    with pytest.raises(ConfigurationError, match="password_file"):
        bootstrap._sessions([provider], OFF)
