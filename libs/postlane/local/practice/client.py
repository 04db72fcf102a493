"""The other end of the control interface, for tests, drills and the command line."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

TIMEOUT_S = 30.0
_PAGE = 10_000


class ControlError(RuntimeError):
    """The practice server refused a request; the message is its reason."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One mail as the witness saw it.

    `outcome` is `accepted` (taken, 250 sent), `accepted_dropped` (taken, the 250 withheld), or, only when the server
    records them, `rejected` and `dropped`. `at` is Unix time in seconds; `sha256` is of the unstuffed bytes.
    """

    seq: int
    at: float
    server: str
    peer: str
    mail_from: str
    rcpts: tuple[str, ...]
    message_id: str | None
    delivery: str | None
    sha256: str
    size: int
    outcome: str
    reply: str | None = None

    @property
    def accepted(self) -> bool:
        """Whether the server took responsibility."""
        return self.outcome in ("accepted", "accepted_dropped")


class PracticeControl:
    """Talks to one practice server. ControlError when it refuses; OSError when it does not answer."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url.rstrip("/")

    def health(self) -> dict[str, Any]:
        """Listeners, counters, number of records."""
        return dict(self._json("GET", "/health"))

    def faults(self) -> list[dict[str, Any]]:
        """The rules in force."""
        return list(self._json("GET", "/faults"))

    def set_faults(self, rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Put these rules in place of all."""
        return list(self._json("PUT", "/faults", rules))

    def add_fault(self, action: str, phase: str | None = None, **fields: Any) -> str:
        """Add one rule (see `postlane.local.practice.faults`); returns its id."""
        return str(self._json("POST", "/faults", {"action": action, "phase": phase, **fields})["id"])

    def remove_fault(self, rule_id: str) -> None:
        """Take one rule away."""
        self._json("DELETE", f"/faults/{quote(rule_id, safe='')}")

    def clear(self) -> None:
        """Take every rule away; an outage ends too."""
        self._json("DELETE", "/faults")

    def outage(self, server: str | None = None) -> None:
        """Nothing listens any more on this listener (or on all), and its connections are reset."""
        self._json("POST", "/faults", {"id": _outage_id(server), "action": "refuse", "server": server})

    def recover(self, server: str | None = None) -> None:
        """End the outage of this listener, or every outage."""
        for rule in self.faults():
            if rule["action"] == "refuse" and (server is None or rule["id"] == _outage_id(server)):
                self.remove_fault(rule["id"])

    def ledger(self, since: int = 0) -> list[LedgerEntry]:
        """Every record from number `since` on."""
        entries: list[LedgerEntry] = []
        while True:
            at = since + len(entries)
            lines = self._send("GET", f"/ledger?since={at}&limit={_PAGE}").splitlines()
            for line in lines:
                record = json.loads(line)
                entries.append(LedgerEntry(**{**record, "rcpts": tuple(record["rcpts"])}))
            if len(lines) < _PAGE:
                return entries

    def summary(self) -> dict[str, Any]:
        """Counts by outcome, deliveries, repeats."""
        return dict(self._json("GET", "/ledger/summary"))

    def _json(self, method: str, path: str, body: object = None) -> Any:
        return json.loads(self._send(method, path, body))

    def _send(self, method: str, path: str, body: object = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base_url + path, data=data, method=method)  # noqa: S310 our own URL, http
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode(errors="replace")
            try:
                reason = json.loads(text)["error"]
            except (ValueError, KeyError, TypeError):
                reason = text
            raise ControlError(str(reason)) from None


def _outage_id(server: str | None) -> str:
    return f"outage-{server}" if server else "outage"
