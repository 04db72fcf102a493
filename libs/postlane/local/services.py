"""What a Postlane stack on one machine consists of: the practice SMTP server and the services, with their settings."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from postlane.core.api_keys import KEY_BYTES, digest, new_key
from postlane.local import ports, processes
from postlane.local.errors import LocalError
from postlane.local.practice import process as practice_process
from postlane.local.stack import ChildSpec

PRACTICE = "practice"
GATEWAY = "gateway"
_LISTEN, _KEYS_FILE = "POSTLANE_GATEWAY_LISTEN", "POSTLANE_GATEWAY_KEYS_FILE"
PROVIDERS = ("primary", "backup")
# Beside the router, senders and ledger that every stack has; each is started when it is there to be started.
OPTIONAL = {"producer": ("aiohttp",), "health": ("faust",)}
_PRACTICE_TIER, _SERVICE_TIER = 0, 1
# The broker is ours and speaks plaintext: what the user has set for another cluster must not reach it.
_FOREIGN_KAFKA = ("POSTLANE_KAFKA_SASL_", "POSTLANE_KAFKA_SSL_", "POSTLANE_KAFKA_SECURITY_")


@dataclass(frozen=True, slots=True)
class StackPlan:
    """What was asked for."""

    data_dir: Path
    routers: int = 1
    senders: int = 1
    practice_smtp: bool = True
    optional: tuple[str, ...] = tuple(OPTIONAL)


def inherited(env: Mapping[str, str]) -> dict[str, str]:
    """The environment that the children may have of the caller's."""
    return {key: value for key, value in env.items() if not key.startswith(_FOREIGN_KAFKA)}


def children(plan: StackPlan, bootstrap: str, env: Mapping[str, str]) -> list[ChildSpec]:
    """The practice server, routers, senders, ledger, and the optional services that are installed.

    Without a configuration of the user's (POSTLANE_CONFIG, or ./postlane.yaml), one is written into the data folder
    whose providers `primary` and `backup` are the practice server's two ports. LocalError when there is neither.
    """
    data = plan.data_dir.absolute()
    kept = _Ports(data / "ports.json")
    specs = []
    config = user_config(env)
    if plan.practice_smtp:
        smtp = {name: kept.of(f"{PRACTICE}-{name}") for name in PROVIDERS}
        specs.append(_practice(data, smtp, kept.of(PRACTICE)))
        if config is None:
            config = data / "postlane.yaml"
            processes.write_whole(config, config_text(smtp))
    if config is None:
        raise LocalError(
            "There is no mail server to send to: write a postlane.yaml (or set POSTLANE_CONFIG), or leave out "
            "--no-practice-smtp."
        )
    shared = {
        "POSTLANE_BOOTSTRAP_SERVERS": bootstrap,
        "POSTLANE_CONFIG": str(config.absolute()),
        "POSTLANE_HTTP_HOST": ports.HOST,
        "PYTHONUNBUFFERED": "1",
    }
    if not env.get("POSTLANE_DATABASE_URL"):
        shared["POSTLANE_DATABASE_URL"] = database_url(data)
    for service, name in _instances(plan):
        own = _gateway(data, kept.of(GATEWAY)) if service == "producer" else {}
        specs.append(_service(service, name, data, kept.of(name), {**shared, **own}))
    kept.write()
    return specs


def user_config(env: Mapping[str, str]) -> Path | None:
    """The configuration that the user has, if any."""
    named = env.get("POSTLANE_CONFIG")
    if named:
        return Path(named)
    here = Path("postlane.yaml")
    return here if here.exists() else None


def database_url(data_dir: Path) -> str:
    """Where the ledger of a stack keeps its database unless POSTLANE_DATABASE_URL says otherwise."""
    return f"sqlite:///{data_dir.absolute() / 'postlane.db'}"


def config_text(smtp: Mapping[str, int]) -> str:
    """A postlane.yaml whose providers are ports of this machine."""
    names = ", ".join(smtp)
    lines = [
        "# Written by `postlane up` at every start. To change something, copy it and set POSTLANE_CONFIG.",
        "lanes:",
        f"  transactional: {{in_doubt: resend, providers: [{names}]}}",
        f"  bulk:          {{in_doubt: park,   providers: [{names}]}}",
        "providers:",
        *(f"  {name}: {{host: {ports.HOST}, port: {port}, tls: none}}" for name, port in smtp.items()),
    ]
    return "\n".join(lines) + "\n"


def _instances(plan: StackPlan) -> list[tuple[str, str]]:
    found = [("router", f"router-{i + 1}") for i in range(plan.routers)]
    found += [("sender", f"sender-{i + 1}") for i in range(plan.senders)]
    found.append(("ledger", "ledger"))
    found += [(name, name) for name in plan.optional if _can_run(name)]
    return found


def _can_run(service: str) -> bool:
    needed = (f"postlane_{service}.__main__", *OPTIONAL[service])
    try:
        return all(importlib.util.find_spec(module) is not None for module in needed)
    except ModuleNotFoundError:
        return False


def _practice(data: Path, smtp: Mapping[str, int], http_port: int) -> ChildSpec:
    url = f"http://{ports.HOST}:{http_port}"
    command = practice_process.argv(smtp, http_port, data / PRACTICE / "ledger.ndjson")
    return ChildSpec(PRACTICE, tuple(command), {}, f"{url}/health", url, _PRACTICE_TIER)


def _service(service: str, name: str, data: Path, port: int, shared: Mapping[str, str]) -> ChildSpec:
    url = f"http://{ports.HOST}:{port}"
    own = {
        "POSTLANE_INSTANCE_ID": name,
        "POSTLANE_HTTP_PORT": str(port),
        "POSTLANE_DATA_DIR": str(data / "services" / name),
    }
    command = (sys.executable, "-m", f"postlane_{service}")
    return ChildSpec(name, command, {**shared, **own}, f"{url}/readyz", url, _SERVICE_TIER)


def gateway_of(spec: ChildSpec) -> tuple[str, Path] | None:
    """(URL of the HTTP API, file with a key for it) of the child that offers it."""
    listen = spec.env.get(_LISTEN)
    return None if listen is None else (f"http://{listen}", Path(spec.env[_KEYS_FILE]).with_name("gateway.key"))


def _gateway(data: Path, port: int) -> dict[str, str]:
    """What the gateway is told. A key for the person at this machine is made once, in a file that is theirs alone."""
    keys, key_file = data / "gateway-keys.yaml", data / "gateway.key"
    if not (keys.exists() and key_file.exists()):
        key = new_key(os.urandom(KEY_BYTES))
        processes.write_whole(key_file, key + "\n", mode=0o600)
        entry = f"{{name: local, sha256: {digest(key)}, may: [publish, bounces]}}"
        processes.write_whole(keys, f"keys:\n  - {entry}\n", mode=0o600)
    return {_LISTEN: f"{ports.HOST}:{port}", _KEYS_FILE: str(keys)}


class _Ports:
    """Which port each child had last time: it gets it again if it is free."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            kept = json.loads(path.read_text())
            self._last = {str(name): int(port) for name, port in kept.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            self._last = {}
        self._now: dict[str, int] = {}

    def of(self, name: str) -> int:
        """The port of a child."""
        port = self._last.get(name, 0)
        while not port or port in self._now.values() or not ports.is_free(port):
            port = ports.free_port()
        self._now[name] = port
        return port

    def write(self) -> None:
        """Remember."""
        processes.write_whole(self._path, json.dumps({**self._last, **self._now}) + "\n")
