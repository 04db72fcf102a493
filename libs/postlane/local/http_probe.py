"""Asking a child process over HTTP how it is."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass

PROBE_TIMEOUT_S = 2.0
_TEXT_MAX_CHARS = 300


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """The status code (0: nobody answered) and the beginning of what was said."""

    status: int
    text: str


READY = ProbeAnswer(200, "")


def get(url: str) -> ProbeAnswer:
    """One GET, without proxies, bounded by PROBE_TIMEOUT_S."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=PROBE_TIMEOUT_S) as answer:
            return ProbeAnswer(answer.status, _text(answer.read(4096)))
    except urllib.error.HTTPError as error:
        with error:
            return ProbeAnswer(error.code, _text(error.read(4096)))
    except (OSError, ValueError):
        return ProbeAnswer(0, "")


def _text(body: bytes) -> str:
    return " ".join(body.decode(errors="replace").split())[:_TEXT_MAX_CHARS]
