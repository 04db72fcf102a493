"""The system with identities and planted secrets, once for all tests that look at it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.world import World, made


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with made(tmp_path_factory.mktemp("secured")) as system:
        yield system
