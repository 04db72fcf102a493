"""The file of API keys, written: an entry added, the rest left as people wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from postlane.config import ConfigurationError, parse_yaml
from postlane.core.api_keys import ApiKey, read_api_keys
from postlane.local.processes import write_whole

HEAD = "# Keys of the HTTP API, by their SHA-256. `postlane gateway new-key NAME --file …` adds one.\nkeys:\n"
MODE = 0o600


def fields(entry: ApiKey) -> dict[str, Any]:
    """What an entry says, as plain JSON values."""
    return entry.model_dump(mode="json", exclude_defaults=True)


def entry_text(entry: ApiKey) -> str:
    """An entry of the file, as YAML."""
    text: str = yaml.safe_dump(fields(entry), default_flow_style=True, sort_keys=False, width=1_000)
    return f"  - {text.strip()}\n"


def add_key(path: Path, entry: ApiKey) -> None:
    """Add an entry at the end; the file is the old or the new one, whatever happens, and keeps its mode.

    Raises ConfigurationError when the file is wrong, or has a key of that name already; it is then left as it is.
    """
    text, mode = HEAD, MODE
    if path.exists():
        text, mode = path.read_text(encoding="utf-8"), path.stat().st_mode & 0o777
        _check(path, text)
    text += ("" if text.endswith("\n") else "\n") + entry_text(entry)
    _check(path, text, entry)
    write_whole(path, text, mode)


def _check(path: Path, text: str, entry: ApiKey | None = None) -> None:
    try:
        if entry not in (None, *read_api_keys(parse_yaml(text.encode())).keys):
            raise ConfigurationError("the entry would not be read back")
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{path}: not changed: {error} (entries are added at the end, so `keys` has to be its last part, "
            "a block list indented by two spaces)"
        ) from None
