"""What a check of `postlane doctor` finds: a verdict, what was seen, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer. `fail` needs doing before mails are safe, `warn` is worth knowing, `skip` could
    not be asked. `do` is empty where there is nothing to do."""

    name: str
    verdict: Verdict
    found: str
    do: str = ""


def ok(name: str, found: str) -> Check:
    return Check(name, "ok", found)


def warn(name: str, found: str, do: str) -> Check:
    return Check(name, "warn", found, do)


def fail(name: str, found: str, do: str) -> Check:
    return Check(name, "fail", found, do)


def skip(name: str, found: str, do: str = "") -> Check:
    return Check(name, "skip", found, do)
