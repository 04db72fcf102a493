"""Checks of services that can be asked over HTTP: their version, whether they are ready, what time they have it."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from postlane.ops.doctor.check import Check, fail, ok, warn

ASK_TIMEOUT_S = 3.0
BODY_MAX_BYTES = 65_536
CLOCK_WARN_S = 3.0  # the Date header has no fractions


@dataclass(frozen=True, slots=True)
class Service:
    """What one service said at `url`; `error` is why it said nothing."""

    url: str
    error: str = ""
    service: str = ""
    instance: str = ""
    version: str = ""
    unready: str = ""
    clock_off_s: float | None = None

    @property
    def title(self) -> str:
        return self.instance or self.url


def ask_service(url: str) -> Service:
    """Ask /readyz. Blocking, for at most some seconds; never raises for what the service does."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return Service(url, f"{url!a} is no http address")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(parts.hostname, parts.port, timeout=ASK_TIMEOUT_S)
    except (http.client.HTTPException, ValueError) as error:
        return Service(url, str(error))
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        told = json.loads(answer.read(BODY_MAX_BYTES))
        date = parsedate_to_datetime(answer.headers["Date"])
        off_s = date.timestamp() + 0.5 - time.time()
        unready = "" if answer.status == 200 else str(told.get("reason", f"status {answer.status}"))
        names = {name: str(told.get(name, "")) for name in ("service", "instance", "version")}
        return Service(url, "", **names, unready=unready, clock_off_s=off_s)
    except (OSError, http.client.HTTPException, ValueError, TypeError, AttributeError) as error:
        return Service(url, str(error) or type(error).__name__)
    finally:
        connection.close()


def service_checks(asked: Sequence[Service], own_version: str) -> Iterator[Check]:
    """Each service alone, then all versions side by side, this command's own included."""
    for one in asked:
        if one.error:
            do = "is it running, and can it be reached from here? (POSTLANE_HTTP_HOST is 127.0.0.1 by default)"
            yield warn("service-ready", f"{one.url}: {one.error}", do, one.title)
            continue
        if one.unready:
            do = "its log says more; an operator's first steps: docs/runbooks/on-call-first-hour.md"
            yield fail("service-ready", one.unready, do, one.title)
        else:
            yield ok("service-ready", f"{one.service} {one.version}", one.title)
        if one.clock_off_s is not None and abs(one.clock_off_s) > CLOCK_WARN_S:
            found = f"{abs(one.clock_off_s):.0f} s {'ahead of' if one.clock_off_s > 0 else 'behind'} this machine's"
            yield fail("service-clock", found, "keep every machine's clock with NTP", one.title)
    yield from _versions(asked, own_version)


def _versions(asked: Sequence[Service], own_version: str) -> Iterator[Check]:
    versions: dict[str, list[str]] = {own_version: ["this command"]}
    for one in asked:
        if one.version:
            versions.setdefault(one.version, []).append(one.title)
    if len(versions) > 1:
        found = "; ".join(f"{version}: {', '.join(sorted(who)[:4])}" for version, who in sorted(versions.items()))
        yield warn("service-version", found, "finish the upgrade, router first (docs/upgrading.md)")
    elif len(asked) > 0:
        yield ok("service-version", own_version)
