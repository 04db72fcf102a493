"""Who may publish over HTTP: keys by their digest, and what each may do. Pure.

A key is 32 random bytes, so its SHA-256 can neither be guessed nor turned back (a slow hash is for passwords that
people think up). The file holds digests only; whoever reads it cannot publish.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from postlane.core.addresses import InvalidAddress, parse_mailbox
from postlane.core.errors import ConfigurationError
from postlane.core.identity import LANE_FORM, NAME_FORM, NAME_MAX_CHARS
from postlane.core.policy import Policy, mistakes

PREFIX = "plk_"  # lets scanners of secrets find a key that was pasted somewhere
KEY_BYTES = 32
KEY_CHARS = len(PREFIX) + 43
KEYS_MAX = 1_000
Right = Literal["publish", "bounces"]


class ApiKey(Policy):
    """One caller. None and empty lists do not restrict.

    `tenant`: its mails are this tenant's, whatever they say. `lanes`: the lanes that it may use. `senders`: whole
    addresses, or `@domain` for all of a domain, that may stand in `sender`. `rate_per_s`: mails a second of each
    gateway process, with a second's worth at once; a batch goes whole, and is waited for afterwards.
    """

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    may: tuple[Right, ...] = ("publish",)
    tenant: Annotated[str, Field(max_length=NAME_MAX_CHARS, pattern=f"^{NAME_FORM}$")] | None = None
    lanes: tuple[Annotated[str, Field(pattern=f"^{LANE_FORM}$")], ...] = ()
    senders: tuple[str, ...] = ()
    rate_per_s: Annotated[float, Field(ge=0.001, le=1_000_000, allow_inf_nan=False)] | None = None

    @field_validator("senders")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_allowed(one) for one in value)

    @model_validator(mode="after")
    def _bounces_concern_every_tenant(self) -> ApiKey:
        if "bounces" in self.may and self.tenant is not None:
            raise ValueError("a key with the right `bounces` has no tenant: what it brings is kept from every tenant")
        return self

    def sends_as(self, address: str) -> bool:
        """Whether `address` (local@domain, as `parse_mailbox` gives it) may stand in `sender`."""
        low = address.lower()
        return not self.senders or low in self.senders or f"@{low.rpartition('@')[2]}" in self.senders


class ApiKeys(Policy):
    """The whole of the key file."""

    keys: Annotated[tuple[ApiKey, ...], Field(max_length=KEYS_MAX)]

    @model_validator(mode="after")
    def _each_once(self) -> ApiKeys:
        for what in ("name", "sha256"):
            seen: set[str] = set()
            for key in self.keys:
                value = getattr(key, what)
                if value in seen:
                    raise ValueError(f"two keys have the same {what} ({key.name})")
                seen.add(value)
        return self

    def by_digest(self) -> dict[str, ApiKey]:
        """SHA-256 in hex -> key."""
        return {key.sha256: key for key in self.keys}


def _allowed(text: str) -> str:
    """An entry of `senders` in the form that addresses are compared in: domain in A-labels, lower case."""
    try:
        address = parse_mailbox(f"x{text}" if text.startswith("@") else text).address.lower()
    except InvalidAddress:
        raise ValueError(f"{text[:100]!a}: give a whole address, or @domain for all of a domain") from None
    return address[1:] if text.startswith("@") else address


def read_api_keys(body: Any) -> ApiKeys:
    """What a key file, parsed as YAML or JSON, says. Raises ConfigurationError with the place of each mistake."""
    if not isinstance(body, dict):
        raise ConfigurationError("a mapping with `keys` is expected; `postlane gateway new-key` writes an entry")
    try:
        return ApiKeys.model_validate(body)
    except ValidationError as error:
        raise ConfigurationError(mistakes(error, at_most=20)) from None


def new_key(random_bytes: bytes) -> str:
    """A key of `KEY_BYTES` random bytes: `plk_` and 43 characters of base64url (RFC 4648 5)."""
    if len(random_bytes) != KEY_BYTES:
        raise ValueError(f"a key is made of {KEY_BYTES} random bytes")
    return PREFIX + urlsafe_b64encode(random_bytes).rstrip(b"=").decode()


def digest(key: str) -> str:
    """What the key file keeps of a key: its SHA-256 in hex."""
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
