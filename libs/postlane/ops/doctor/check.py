"""What one check of `postlane doctor` finds: a verdict, what was seen, why it matters, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from postlane.ops.doctor.catalogue import WHY

Verdict = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer. `fail` needs doing before mails are safe, `warn` is worth knowing, `skip` could
    not be asked. `about` names which of several (a topic, a provider, a lane); `do` is empty where there is nothing
    to do."""

    name: str
    verdict: Verdict
    found: str
    do: str = ""
    about: str = ""
    why: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} ({self.about})" if self.about else self.name


def ok(name: str, found: str, about: str = "") -> Check:
    return Check(name, "ok", found, "", about, WHY[name])


def warn(name: str, found: str, do: str, about: str = "") -> Check:
    return Check(name, "warn", found, do, about, WHY[name])


def fail(name: str, found: str, do: str, about: str = "") -> Check:
    return Check(name, "fail", found, do, about, WHY[name])


def skip(name: str, found: str, do: str = "", about: str = "") -> Check:
    return Check(name, "skip", found, do, about, WHY[name])
