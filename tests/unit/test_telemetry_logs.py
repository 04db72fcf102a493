"""Logs are one JSON document a line, and no secret gets into them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from postlane.config import ConfigurationError
from postlane.telemetry import logs


@pytest.fixture(autouse=True)
def root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_carries_service_instance_and_the_ids(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("sender", "s-1")
    logging.getLogger("x").info("sent %d", 3, extra={"delivery_id": "d", "hop": 2})
    (line,) = lines(capsys)
    assert line["message"] == "sent 3"
    assert (line["service"], line["instance"], line["level"], line["logger"]) == ("sender", "s-1", "info", "x")
    assert (line["delivery_id"], line["hop"]) == ("d", 2)
    assert str(line["at"]).endswith("Z")


def test_extra_cannot_forge_the_service(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("sender", "s-1")
    logging.getLogger("x").info("hello", extra={"service": "router"})
    assert lines(capsys)[0]["service"] == "sender"


def test_an_exception_is_one_field(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("router", "r")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("x").exception("it broke")
    (line,) = lines(capsys)
    assert "ValueError: two\nlines" in str(line["exception"])


@pytest.mark.parametrize(
    ("message", "extra"),
    [
        ("connecting to postgresql://u:hunter2@db/x", {}),
        ("m", {"url": "amqp://u:hunter2@h"}),
        ("m", {"password": "hunter2"}),
        ("m", {"kafka": {"sasl.password": "hunter2"}}),
        ("m", {"settings": [{"api_key": "hunter2"}]}),
        ("m", {"value": SecretStr("hunter2")}),
        ("m", {"urls": ("http://u:hunter2@h",)}),
    ],
)
def test_a_secret_is_masked(capsys: pytest.CaptureFixture[str], message: str, extra: dict[str, object]) -> None:
    logs.configure("router", "r")
    logging.getLogger("x").info(message, extra=extra)
    assert "hunter2" not in capsys.readouterr().err


def test_a_password_in_an_exception_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("router", "r")
    try:
        raise OSError("postgresql://u:hunter2@db refused")
    except OSError:
        logging.getLogger("x").exception("it broke")
    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.parametrize("value", ["\ud800", 1 << 80, {1: 2}, object(), "a\nb\x00", float("nan")])
def test_whatever_is_logged_is_one_line(capsys: pytest.CaptureFixture[str], value: object) -> None:
    logs.configure("router", "r")
    logging.getLogger("x").info("m", extra={"value": value})
    assert len(lines(capsys)) == 1


def test_a_huge_text_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("router", "r")
    logging.getLogger("x").info("x" * 1_000_000)
    assert len(capsys.readouterr().err) < 20_000


def test_the_level_comes_from_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTLANE_LOG_LEVEL", "warning")
    logs.configure("router", "r")
    logging.getLogger("x").info("no")
    logging.getLogger("x").warning("yes")
    assert [line["message"] for line in lines(capsys)] == ["yes"]


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTLANE_LOG_LEVEL", "loud")
    with pytest.raises(ConfigurationError, match="POSTLANE_LOG_LEVEL"):
        logs.configure("router", "r")
