"""A staging stack as its owners describe it in a file, and the little that a drill may do to it.

Nothing is touched that is not marked `drillable: true`: the stack as a whole, and each service by itself. Only faults
that can be undone are offered; what has not been undone by a drill that was killed is undone by `undo`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError

from postlane.config import read_config, read_environment
from postlane.core.policy import Config, Policy
from postlane.eventlog.topics import TopicNames
from postlane.local import http_probe
from postlane.local.errors import LocalError
from postlane.local.practice.client import ControlError, PracticeControl
from postlane.local.stack import Stack
from postlane.ops.drill.prometheus import Prometheus
from postlane.ops.drill.site import FAULT_ID, Refused, Unusable

_COMMAND_TIMEOUT_S = 60.0


class Budget(Policy):
    """What a drill may cost; it is abandoned beyond any of these."""

    seconds: Annotated[float, Field(gt=0)] = 600
    mails: Annotated[int, Field(gt=0)] = 2_000  # published by the drill
    affected: Annotated[int, Field(ge=0)] = 0  # mails of others that are deferred, held or doubted meanwhile


class WitnessAt(Policy):
    """The practice SMTP server that this stack's providers are; `listeners` in the order of the lanes' providers."""

    url: str
    listeners: Annotated[tuple[str, ...], Field(min_length=1)] = ("primary",)
    drillable: bool = False


class ServiceAt(Policy):
    """A process that may be killed: by commands, or as a child of the stack of `postlane up` in `stack`."""

    name: str
    service: Literal["sender", "router", "ledger"]
    drillable: bool = False
    kill: tuple[str, ...] | None = None
    start: tuple[str, ...] | None = None
    ready_url: str | None = None


class Staging(Policy):
    """The file of `--against`."""

    name: str
    drillable: bool = False
    bootstrap_servers: str
    topic_prefix: str = ""
    config: PurePath | None = None
    stack: PurePath | None = None
    witness: WitnessAt
    prometheus: str | None = None
    services: tuple[ServiceAt, ...] = ()
    recipients_domain: str = "example.com"
    sender: str = "drill@example.org"
    mails_per_s: Annotated[float, Field(gt=0, le=200)] = 5
    budget: Budget = Budget()


def read_staging(path: Path) -> Staging:
    """Raises Unusable with the place of each mistake; Refused when the stack is not marked as drillable."""
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Unusable(f"{path} cannot be read: {type(error).__name__}") from None
    try:
        found = Staging.model_validate(body)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'top level'}: {e['msg']}" for e in error.errors(include_url=False)]
        raise Unusable(f"{path}: " + "; ".join(lines)) from None
    if not found.drillable:
        raise Refused(f"{path}: {found.name} is not marked `drillable: true`; nothing was touched")
    if not found.witness.drillable:
        raise Refused(f"{path}: its witness is not marked `drillable: true`, and without it nobody counts copies")
    return found


class StagingSite:
    """The stack behind a description. Kafka's options and the database come from the POSTLANE_* variables."""

    def __init__(self, described: Staging, config_folder: Path, environ: Mapping[str, str] | None = None) -> None:
        env = dict(os.environ if environ is None else environ)
        self.described = described
        self._folder = config_folder
        self._config = self._read_config()
        environment = read_environment({k: v for k, v in env.items() if k != "POSTLANE_CONFIG"})
        self.name = described.name
        self.bootstrap = described.bootstrap_servers
        self.names = TopicNames(described.topic_prefix)
        self.lanes = tuple(self._config.lanes)
        self.options: Mapping[str, str] = environment.kafka
        self.witness = PracticeControl(described.witness.url)
        self.listeners = described.witness.listeners
        self.database_url = environment.database_url if env.get("POSTLANE_DATABASE_URL") else None
        self.prometheus = Prometheus(described.prometheus) if described.prometheus else None
        self.recipients_domain, self.sender = described.recipients_domain, described.sender
        self._stack = None if described.stack is None else Stack(self._folder / described.stack)
        self._touched: list[str] = []

    @property
    def abilities(self) -> frozenset[str]:
        """What is marked: the witness, and the services of each kind."""
        marked = {f"kill:{service.service}" for service in self._services().values()}
        return frozenset({"witness", *marked})

    def of(self, service: str) -> list[str]:
        """The processes of a service that are marked as drillable."""
        return [name for name, at in self._services().items() if at.service == service]

    @property
    def restarts(self) -> int:
        return 0

    def kill(self, name: str) -> None:
        """As the file says."""
        at = self._services()[name]
        self._touched.append(name)
        if at.kill is not None:
            _run(at.kill)
        elif self._stack is not None:
            self._stack.kill(name)

    def launch(self, name: str) -> None:
        """As the file says."""
        at = self._services()[name]
        if at.start is not None:
            _run(at.start)
        elif self._stack is not None:
            self._stack.launch(name)

    def is_ready(self, name: str) -> bool:
        """By its /readyz; without one, as soon as it was started."""
        url = self._services()[name].ready_url
        if url is None and self._stack is not None and name in self._stack.names():
            url = self._stack.spec(name).ready_url
        return url is None or http_probe.get(url).status == 200

    def check(self) -> None:
        """Raises Refused when the providers of the lanes are not the witness: faults would hit somebody else."""
        try:
            smtp = self.witness.health()["smtp"]
        except (OSError, ControlError, ValueError, KeyError):
            raise Refused(f"the witness of {self.name} does not answer at {self.described.witness.url}") from None
        ports = {int(at["port"]) for at in smtp.values()}
        missing = [name for name in self.listeners if name not in smtp]
        if missing:
            raise Refused(f"the witness has no listener {', '.join(missing)} (it has {', '.join(smtp)})")
        foreign = [name for name, provider in self._config.providers.items() if provider.port not in ports]
        if foreign:
            raise Refused(f"provider {', '.join(foreign)} of {self.name} is not the witness: its mails would be real")

    def undo(self, tell: Callable[[str], None]) -> list[str]:
        """Take away every fault that a drill put there, and start what is not ready; returns what was done."""
        done = []
        for rule in self.witness.faults():
            if str(rule["id"]).startswith(FAULT_ID):
                self.witness.remove_fault(rule["id"])
                done.append(f"fault {rule['id']} is taken away")
        for name in self._services():
            if not self.is_ready(name):
                with contextlib.suppress(LocalError):
                    self.launch(name)
                    done.append(f"{name} is started")
        for line in done:
            tell(line)
        return done

    def _services(self) -> dict[str, ServiceAt]:
        usable = {}
        for at in self.described.services:
            by_command = at.kill is not None and at.start is not None
            by_stack = self._stack is not None and at.kill is None
            if at.drillable and (by_command or by_stack):
                usable[at.name] = at
        return usable

    def _read_config(self) -> Config:
        return read_config(None if self.described.config is None else self._folder / self.described.config)


def _run(argv: tuple[str, ...]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LocalError(f"{argv[0]} could not be run: {error}") from None
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise LocalError(f"{argv[0]} ended with {done.returncode}: {said}")
