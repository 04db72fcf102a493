"""The effective configuration as every part would go by it, secrets masked."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from postlane.config import Environment
from postlane.core.policy import Config

MASK = "********"
_SECRET = re.compile(r"password|secret|key|jaas|token|credential|oauthbearer", re.IGNORECASE)


def effective(environment: Environment, config: Config) -> dict[str, Any]:
    """Environment and configuration: SecretStr masks itself, Kafka's options and URLs are masked here."""
    told = environment.model_dump(mode="json")
    told["kafka"] = {name: MASK if _SECRET.search(name) else value for name, value in environment.kafka.items()}
    told["database_url"] = masked_url(environment.database_url)
    return {"environment": told, "config": config.model_dump(mode="json", exclude_none=True)}


def masked_url(url: str) -> str:
    """A URL without its password; parameters are left out, as they may hold one too."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""  # raises for a password that stands where the port should
    except ValueError:
        return MASK
    if parts.password is None and not parts.query:
        return url
    user = f"{parts.username or ''}:{MASK}@" if parts.password is not None else ""
    if not user and parts.username:
        user = f"{parts.username}@"
    query = "?…" if parts.query else ""
    return f"{parts.scheme}://{user}{parts.hostname or ''}{port}{parts.path}{query}"
