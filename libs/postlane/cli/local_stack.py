"""What a command need not be told while `postlane up` runs here: where that stack's Kafka, settings and books are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

DATA_DIR = "./.postlane"
_TOLD = ("POSTLANE_CONFIG", "POSTLANE_DATABASE_URL")
_WHERE = "POSTLANE_BOOTSTRAP_SERVERS"


def with_local_stack(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ`, and beneath it the variables of the stack that is up in POSTLANE_DATA_DIR, if one is.

    What is set is never changed, and who names another Kafka than the stack's gets nothing of it.
    """
    stack = _of_stack(Path(environ.get("POSTLANE_DATA_DIR") or DATA_DIR) / "stack.json")
    if _WHERE not in stack or (environ.get(_WHERE) or stack[_WHERE]) != stack[_WHERE]:
        return dict(environ)
    own = {name: value for name, value in environ.items() if value or name not in stack}
    if not own.get("POSTLANE_CONFIG") and Path("postlane.yaml").is_file():
        stack.pop("POSTLANE_CONFIG", None)  # the nearer file, as for every other command
    return {**stack, **own}


def services_of_stack(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Where the services of that stack answer over HTTP, as far as it is the Kafka that is asked for."""
    state = Path(environ.get("POSTLANE_DATA_DIR") or DATA_DIR) / "stack.json"
    where = _of_stack(state).get(_WHERE)
    if where is None or (environ.get(_WHERE) or where) != where:
        return ()
    children = json.loads(state.read_text(encoding="utf-8"))["children"].values()
    return tuple(str(c["spec"]["url"]) for c in children if c["spec"]["env"].get(_WHERE) and c["spec"].get("url"))


def _of_stack(state: Path) -> dict[str, str]:
    """Empty where there is none, or nothing that can be read."""
    try:
        children = json.loads(state.read_text(encoding="utf-8"))["children"].values()
        for child in children:
            env = child["spec"]["env"]
            if env.get(_WHERE):
                told = {name: str(env[name]) for name in (_WHERE, *_TOLD) if env.get(name)}
                if not Path(told.get("POSTLANE_CONFIG", state)).is_file():
                    told.pop("POSTLANE_CONFIG", None)
                return told
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}
