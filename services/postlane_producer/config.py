"""What the gateway is told by its variables, read once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from postlane.config import ConfigurationError

LISTEN = "127.0.0.1:8080"
LINGER_MAX_S = 5  # with the longest drain it fits a stop
_PLACE = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")


class Place(NamedTuple):
    """An address to listen at; port 0 is any free one."""

    host: str
    port: int


class TlsFiles(NamedTuple):
    """PEM files: the certificate with its chain, and its key; `variable` is what named the first."""

    variable: str
    certificate: Path
    key: Path


class GatewaySettings(BaseModel):
    """Where the API listens, who may use it, and with which certificate (None: plain HTTP); where bounces are taken
    by SMTP (None: nowhere), and the certificate of its STARTTLS.

    `linger_s`: how long a stop goes on taking connections, while load balancers hear of it.
    """

    model_config = ConfigDict(frozen=True)

    listen: Place
    keys_file: Path
    tls: TlsFiles | None = None
    linger_s: float = 0.0
    bounces: Place | None = None
    bounces_tls: TlsFiles | None = None


def read_settings(env: Mapping[str, str]) -> GatewaySettings:
    """The POSTLANE_GATEWAY_* and POSTLANE_BOUNCES_* variables. Raises ConfigurationError."""
    keys_file = env.get("POSTLANE_GATEWAY_KEYS_FILE", "")
    if not keys_file:
        raise ConfigurationError(
            "POSTLANE_GATEWAY_KEYS_FILE: name the file of API keys; `postlane gateway new-key NAME` makes one"
        )
    bounces = env.get("POSTLANE_BOUNCES_LISTEN", "")
    return GatewaySettings(
        listen=place_of("POSTLANE_GATEWAY_LISTEN", env.get("POSTLANE_GATEWAY_LISTEN") or LISTEN),
        keys_file=Path(keys_file),
        tls=_tls(env, "POSTLANE_GATEWAY_TLS_CERT", "POSTLANE_GATEWAY_TLS_KEY"),
        linger_s=_linger(env.get("POSTLANE_GATEWAY_LINGER_S") or "0"),
        bounces=place_of("POSTLANE_BOUNCES_LISTEN", bounces) if bounces else None,
        bounces_tls=_tls(env, "POSTLANE_BOUNCES_TLS_CERT", "POSTLANE_BOUNCES_TLS_KEY"),
    )


def _tls(env: Mapping[str, str], *names: str) -> TlsFiles | None:
    certificate, key = (env.get(name, "") for name in names)
    if bool(certificate) != bool(key):
        raise ConfigurationError(f"{' and '.join(names)}: give both, or neither")
    return TlsFiles(names[0], Path(certificate), Path(key)) if certificate else None


def _linger(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,2}", text) or int(text) > LINGER_MAX_S:
        raise ConfigurationError(
            f"POSTLANE_GATEWAY_LINGER_S: {text[:20]!r}: give whole seconds, at most {LINGER_MAX_S}"
        )
    return float(text)


def cannot_listen(name: str, place: Place, error: OSError | UnicodeError) -> ConfigurationError:
    """What to raise when `place`, which variable `name` says, cannot be had."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ConfigurationError(f"{name}: cannot listen on {place.host}:{place.port}: {reason}; give another port")


def place_of(name: str, text: str) -> Place:
    """`host:port` or `[IPv6]:port`, as variable `name` has it. Raises ConfigurationError."""
    found = _PLACE.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise ConfigurationError(f"{name}: {text[:100]!r} is no place to listen at; write host:port, e.g. {LISTEN}")
    return Place(found["host"].strip("[]"), int(found["port"]))
