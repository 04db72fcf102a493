"""The file of API keys, written: an entry added, the rest left as people wrote it."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from postlane.config import ConfigurationError, load_yaml
from postlane.core.api_keys import ApiKey, read_api_keys

_HEAD = "# Keys of the HTTP API, by their SHA-256. `postlane gateway new-key NAME --file …` adds one.\nkeys:\n"
MODE = 0o600


def entry_text(entry: ApiKey) -> str:
    """An entry of the file, as YAML."""
    fields = entry.model_dump(mode="json", exclude_defaults=True)
    return "  - " + yaml.safe_dump(fields, default_flow_style=True, sort_keys=False, width=1_000).strip() + "\n"


def add_key(path: Path, entry: ApiKey) -> None:
    """Add an entry at the end; the file is the old or the new one, whatever happens, and keeps its mode.

    Raises ConfigurationError when the file is wrong, or has a key of that name already; it is then left as it is.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else _HEAD
    if path.exists():
        _check(path, path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    mode = path.stat().st_mode & 0o777 if path.exists() else MODE
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
            file.write(text + ("" if text.endswith("\n") else "\n") + entry_text(entry))
        _check(temporary, path, entry)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _check(written: Path, path: Path, entry: ApiKey | None = None) -> None:
    try:
        if entry not in (None, *read_api_keys(load_yaml(written)).keys):
            raise ConfigurationError("the entry would not be read back")
    except ConfigurationError as error:
        text = str(error).replace(f"{written}: ", "")
        raise ConfigurationError(
            f"{path}: not changed: {text} (entries are added at the end, so `keys` has to be its last part, "
            "a block list indented by two spaces)"
        ) from None
