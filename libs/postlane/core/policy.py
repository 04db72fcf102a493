"""What an operator decides: lanes, providers, retries, limits. Frozen models, unknown keys refused.

Every bound has its unit in its name (`_s` seconds, `_ms` milliseconds, `_bytes`) and a default.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from postlane.core.addresses import InvalidAddress, parse_address
from postlane.core.events import InDoubt
from postlane.core.return_path import DOMAIN_MAX_CHARS, LOCAL_MAX_CHARS


class Policy(BaseModel):
    """Base of all configuration: frozen; an unknown key is refused with the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for key in value:
                if key not in cls.model_fields:
                    near = get_close_matches(str(key), list(cls.model_fields), n=1)
                    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(cls.model_fields)}"
                    raise ValueError(f"unknown key {key!r}{hint}")
        return value


def mistakes(error: ValidationError, at_most: int | None = None) -> str:
    """What a model of configuration refused, each with its place, without the values: they may be secrets."""
    return "; ".join(
        f"{'.'.join(str(part) for part in e['loc']) or 'top level'}: {e['msg'].removeprefix('Value error, ')}"
        for e in error.errors(include_url=False, include_input=False)[:at_most]
    )


class Retry(Policy):
    """When an attempt that failed for now is tried again: exponential, jittered, bounded."""

    first_s: Annotated[float, Field(gt=0)] = 10
    factor: Annotated[float, Field(ge=1)] = 4
    max_s: Annotated[float, Field(gt=0)] = 21_600
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.2
    give_up_after: Annotated[int, Field(ge=1)] = 12  # attempts
    expire_after_s: Annotated[float, Field(gt=0)] = 432_000  # from the request


class Limit(Policy):
    """A fleet-wide ceiling; None is no ceiling. A partition of a lane spends share / P of it."""

    rate_per_s: Annotated[float, Field(gt=0)] | None = None
    connections: Annotated[int, Field(ge=1)] | None = None


class Provider(Policy):
    """An SMTP endpoint (smarthost or ESP)."""

    name: str = ""
    host: str
    port: Annotated[int, Field(ge=1, le=65535)] = 587
    tls: Literal["none", "starttls", "implicit"] = "starttls"
    tls_ca_file: PurePath | None = None
    username: str | None = None
    password_file: PurePath | None = None
    password: SecretStr | None = None
    connections: Annotated[int, Field(ge=1, le=4096)] = 32  # of one sender process
    rate_per_s: Annotated[float, Field(gt=0)] | None = None
    idempotency_header: str | None = None  # e.g. Resend-Idempotency-Key; gets the delivery id
    pipelining: bool = True
    connect_timeout_s: Annotated[float, Field(gt=0)] = 10
    command_timeout_s: Annotated[float, Field(gt=0)] = 300  # RFC 5321 4.5.3.2
    data_timeout_s: Annotated[float, Field(gt=0)] = 120
    dot_timeout_s: Annotated[float, Field(gt=0)] = 600
    idle_close_s: Annotated[float, Field(gt=0)] = 30
    mails_per_connection_max: Annotated[int, Field(ge=1)] = 10_000
    breaker_failures: Annotated[int, Field(ge=1)] = 5  # in a row, to open
    breaker_probe_first_s: Annotated[float, Field(gt=0)] = 1
    breaker_probe_max_s: Annotated[float, Field(gt=0)] = 30
    domains: dict[str, Limit] = Field(default_factory=dict)


class Lane(Policy):
    """One kind of traffic with its own topics, consumer group, books and pool of providers."""

    in_doubt: InDoubt = "resend"
    providers: Annotated[tuple[str, ...], Field(min_length=1)]
    max_span: Annotated[int, Field(ge=16)] = 8192  # dispatch records between O and the newest admitted one
    tick_records_max: Annotated[int, Field(ge=1)] = 4096
    # At most so many wait ahead of each conversation: one, and more only where the server takes more within two ticks.
    ahead_per_connection: Annotated[int, Field(ge=1, le=64)] = 16
    intent_ttl_s: Annotated[float, Field(gt=0)] = 7  # below the session timeout: see docs/adr
    drain_timeout_s: Annotated[float, Field(gt=0)] = 20
    takeover_timeout_s: Annotated[float, Field(gt=0)] = 60
    hold_max_s: Annotated[float, Field(gt=0)] = 3600


class Limits(Policy):
    """Ceilings that hold over all providers."""

    domains: dict[str, Limit] = Field(default_factory=dict)
    tenants: dict[str, Limit] = Field(default_factory=dict)


class Topics(Policy):
    """Partitions, replication and how long each topic keeps what it has."""

    partitions: Annotated[int, Field(ge=1, le=1024)] = 12
    replication: Annotated[int, Field(ge=1)] | None = None  # None: 3, or as many as there are brokers
    requests_days: Annotated[float, Field(gt=0)] = 30
    dispatch_days: Annotated[float, Field(gt=0)] = 7
    events_days: Annotated[float, Field(gt=0)] = 90
    dedup_days: Annotated[float, Field(gt=0)] = 7


class Health(Policy):
    """When the fleet's results make a provider degraded or down, and how far senders listen (docs/health.md)."""

    window_s: Annotated[float, Field(gt=0, le=3600)] = 30
    recent_s: Annotated[float, Field(gt=0)] = 10  # what "down" is told by; at most window_s
    results_min: Annotated[int, Field(ge=1)] = 20  # in the window, to say anything but "unknown"
    failures_min: Annotated[int, Field(ge=1)] = 3  # within recent_s, to say "down"
    down_share: Annotated[float, Field(gt=0, le=1)] = 0.9  # of what came within recent_s
    degraded_share: Annotated[float, Field(gt=0, le=1)] = 0.25  # of the window
    slow_s: Annotated[float, Field(gt=0)] = 10  # 95 % of the answers
    stuck_s: Annotated[float, Field(gt=0)] = 60  # one answer
    hint_s: Annotated[float, Field(ge=0)] = 15  # how long a sender believes what it was told; 0: it does not listen

    @model_validator(mode="after")
    def _recent_is_within_the_window(self) -> Health:
        if self.recent_s > self.window_s:
            raise ValueError(f"recent_s ({self.recent_s:g}) is longer than window_s ({self.window_s:g})")
        return self


class Bounces(Policy):
    """Where bounces come back to: each mail leaves with a return path of its own under `address` (docs/bounces.md)."""

    address: str
    key_file: PurePath
    suppress: bool = True  # an address that does not exist is never mailed again, by any tenant

    @model_validator(mode="after")
    def _address_leaves_room(self) -> Bounces:
        try:
            normal = parse_address(self.address)
        except InvalidAddress as error:
            raise ValueError(f"address: {error}") from None
        local, _, domain = normal.rpartition("@")
        if len(local) > LOCAL_MAX_CHARS or not (local.isascii() and local.isalnum()):
            raise ValueError(
                f"address: before the @ there must be 1 to {LOCAL_MAX_CHARS} letters or digits, since what is added to "
                "them takes 57 of the 64 that RFC 5321 allows; write bounces@ and your domain"
            )
        if len(domain) > DOMAIN_MAX_CHARS:
            raise ValueError(f"address: the domain is longer than {DOMAIN_MAX_CHARS} characters")
        object.__setattr__(self, "address", normal)
        return self


class Config(Policy):
    """The whole of postlane.yaml."""

    lanes: dict[str, Lane] = Field(
        default_factory=lambda: {
            "transactional": Lane(in_doubt="resend", providers=("local",)),
            "bulk": Lane(in_doubt="park", providers=("local",)),
        }
    )
    providers: dict[str, Provider] = Field(
        default_factory=lambda: {"local": Provider(name="local", host="127.0.0.1", port=2525, tls="none")}
    )
    retry: Retry = Field(default_factory=Retry)
    limits: Limits = Field(default_factory=Limits)
    topics: Topics = Field(default_factory=Topics)
    health: Health = Field(default_factory=Health)
    bounces: Bounces | None = None  # None: bounces go to each mail's sender

    @model_validator(mode="before")
    @classmethod
    def _name_the_providers(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("providers"), dict):
            named = {k: {**v, "name": k} if isinstance(v, dict) else v for k, v in value["providers"].items()}
            return {**value, "providers": named}
        return value

    @model_validator(mode="after")
    def _lanes_name_known_providers(self) -> Config:
        for lane, policy in self.lanes.items():
            for provider in policy.providers:
                if provider not in self.providers:
                    near = get_close_matches(provider, list(self.providers), n=1)
                    hint = f"; did you mean {near[0]!r}?" if near else ""
                    raise ValueError(f"lane {lane!r} names the unknown provider {provider!r}{hint}")
        return self
