"""Structured logs: one JSON document a line on stderr, with the ids that the caller passes as `extra`.

A secret never gets there: values of fields whose name says that they are secret are masked, and so is the password
of every URL, also in exception texts.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from typing import Any

import orjson

from postlane.core.errors import ConfigurationError

LEVEL_VARIABLE = "POSTLANE_LOG_LEVEL"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
MASK = "***"
_TEXT_MAX_CHARS = 16_000
_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}
_SECRET_NAME = re.compile(r"passw|secret|token|authorization|api_?key|credential", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@\s/]+@")


def configure(service: str, instance: str, level: str | None = None) -> None:
    """Send every log of this process to stderr as JSON; called once, at the edge.

    `level` is one of LEVELS, by default what POSTLANE_LOG_LEVEL says, else INFO. Raises ConfigurationError.
    """
    chosen = (level or os.environ.get(LEVEL_VARIABLE) or "INFO").upper()
    if chosen not in LEVELS:
        raise ConfigurationError(f"{LEVEL_VARIABLE}: {chosen!r} is not a level; give one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service, instance))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(chosen)
    logging.captureWarnings(True)


class JsonFormatter(logging.Formatter):
    """One record, one line: time, level, logger, message, service, instance, the ids, the trace, the exception."""

    def __init__(self, service: str, instance: str) -> None:
        super().__init__()
        self._service = service
        self._instance = instance

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _masked(record.getMessage()),
            "service": self._service,
            "instance": self._instance,
            **_trace_ids(),
        }
        for name, value in record.__dict__.items():
            if name not in _STANDARD and name not in line:
                line[name] = _clean(name, value)
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = _masked(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = _masked(record.stack_info)
        try:
            return orjson.dumps(line, default=str, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS).decode()
        except (TypeError, ValueError):  # lone surrogates, integers over 64 bits
            return json.dumps(line, default=str)


def _clean(name: str, value: Any) -> Any:
    if _SECRET_NAME.search(name):
        return MASK
    if isinstance(value, str):
        return _masked(value)
    if isinstance(value, dict):
        return {key: _clean(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean("", inner) for inner in value]
    if isinstance(value, bool | int | float | None | datetime):
        return value
    return _masked(str(value))


def _masked(text: str) -> str:
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1{MASK}@", text)
    if len(text) > _TEXT_MAX_CHARS:
        half = _TEXT_MAX_CHARS // 2
        return f"{text[:half]} … {len(text) - 2 * half} characters left out … {text[-half:]}"
    return text


def _trace_ids() -> dict[str, str]:
    """The ids of the active span; costs one dictionary look-up while tracing is off."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
