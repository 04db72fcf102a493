"""`python -m postlane.ops.schemas [FOLDER]`: JSON Schemas, the AsyncAPI document and golden samples, from the models.

An incompatible change of a schema that is there already is refused: give the record a new version instead.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson
import yaml
from pydantic.json_schema import GenerateJsonSchema

from postlane.core import events
from postlane.core.events import VERSION, Fact, ce_type
from postlane.core.health_facts import Observed, ProviderHealth
from postlane.core.policy import Config
from postlane.eventlog.codec import encode
from postlane.eventlog.topics import TopicNames, TopicSpec, declare
from postlane.ops.schema_compat import Change, changes
from postlane.ops.schema_samples import EVENTS, RECORDS, full, minimal, templated

FOLDER = Path("schemas")
_BOOKS = "One of the books; the key is delivery_id#hop."


def documents() -> dict[str, bytes]:
    """Every file of `schemas/`, by its path within."""
    made = {f"{name_of(model)}.json": _json(schema(model)) for model in RECORDS}
    made["asyncapi.yaml"] = yaml.safe_dump(asyncapi(), sort_keys=False, allow_unicode=True, width=110).encode()
    for model in RECORDS:
        made[f"samples/{name_of(model)}.json"] = _pretty(encode(full(model)))
        made[f"samples/{name_of(model)}.minimal.json"] = _pretty(encode(minimal(model)))
    made[f"samples/{name_of(events.MailRequested)}.template.json"] = _pretty(encode(templated()))
    return made


def name_of(model: type[Fact]) -> str:
    """`MailRequested.v1`."""
    return f"{model.__name__}.v{VERSION}"


def schema(model: type[Fact]) -> dict[str, Any]:
    """The JSON Schema (2020-12) of what a reader accepts as this record."""
    told = model.model_json_schema(mode="validation")
    return {"$schema": GenerateJsonSchema.schema_dialect, "$id": f"urn:postlane:{name_of(model)}", **told}


def incompatible(folder: Path) -> dict[str, tuple[Change, ...]]:
    """By file name, the changes of the models that the schemas in `folder` do not allow."""
    found = {}
    for model in RECORDS:
        path = folder / f"{name_of(model)}.json"
        if path.exists():
            refused = tuple(c for c in changes(orjson.loads(path.read_bytes()), schema(model)) if not c.compatible)
            if refused:
                found[path.name] = refused
    known = {f"{name_of(model)}.json" for model in RECORDS}
    for path in sorted(folder.glob("*.v*.json")):
        if path.name not in known:
            found[path.name] = (Change("removed", "record", "no model makes it any more"),)
    return found


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3.0 document: a channel for each topic, an operation for each service that writes or reads it."""
    specs = declare(TopicNames(), tuple(Config().lanes), Config().topics)
    about = _about()
    channels = {spec.name: _channel(spec, *about[_kind(spec.name)]) for spec in specs}
    operations: dict[str, Any] = {}
    for spec in specs:
        for action, services in (("send", spec.writers), ("receive", spec.readers)):
            for service in services:
                name = f"{service}.{action}.{spec.name}"
                operations[name] = {"action": action, "channel": {"$ref": f"#/channels/{_escaped(spec.name)}"}}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Postlane",
            "version": f"{VERSION}.0.0",
            "description": "The topics of Postlane. Every name may carry the prefix of an installation.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": {model.__name__: _message(model) for model in RECORDS}},
    }


def _about() -> dict[str, tuple[str, tuple[type[Fact], ...]]]:
    """By kind of topic: what it is for, and which records it carries."""
    ready = (events.DispatchReady,)
    return {
        "requests": ("Mails that publishers asked for; the key is the message id.", (events.MailRequested,)),
        "dispatch": ("Deliveries that may go now.", ready),
        "delay": ("Deliveries that wait, by how long.", ready),
        "state": (_BOOKS, (events.Intent, events.Outcome)),
        "seen": ("The router's memory of idempotency keys; the key is the message id.", (events.Seen,)),
        "events": ("What became of every mail; the key is the message id.", EVENTS),
        "dead-letters": ("Records that could not go on, untouched, with headers that say why.", ()),
        "observations": ("What each sender saw of each provider, once a second; the key is the provider.", (Observed,)),
        "health": ("The fleet's view of each provider, which is the key.", (ProviderHealth,)),
        "suppressions": ("Addresses that are never mailed; the key is tenant/address.", (events.Suppression,)),
        "templates": ("Template versions; the key is id/version.", (events.Template,)),
        "control": ("Pauses and cancellations; the key is action/scope/name.", (events.Control,)),
    }


def _channel(spec: TopicSpec, description: str, models: tuple[type[Fact], ...]) -> dict[str, Any]:
    channel: dict[str, Any] = {"address": spec.name, "description": description}
    if models:
        channel["messages"] = {m.__name__: {"$ref": f"#/components/messages/{m.__name__}"} for m in models}
    channel["bindings"] = {
        "kafka": {
            "topic": spec.name,
            "partitions": spec.partitions,
            "topicConfiguration": {name: _option(name, value) for name, value in sorted(spec.config.items())},
            "bindingVersion": "0.5.0",
        }
    }
    return channel


def _option(name: str, value: str) -> Any:
    if name == "cleanup.policy":
        return value.split(",")
    return int(value) if value.isdigit() else value


def _message(model: type[Fact]) -> dict[str, Any]:
    constant = {"type": "string"}
    return {
        "name": ce_type(model),
        "summary": (model.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " "),
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "required": ["ce_specversion", "ce_type", "ce_source", "ce_id", "ce_time"],
            "properties": {
                "ce_specversion": {"const": "1.0"},
                "ce_type": {"const": ce_type(model)},
                "ce_source": constant,
                "ce_id": constant,
                "ce_time": {"type": "string", "format": "date-time"},
                "traceparent": constant,
            },
        },
        "payload": {"$ref": f"./{name_of(model)}.json"},
        "bindings": {"kafka": {"key": {"type": "string"}, "bindingVersion": "0.5.0"}},
    }


def _kind(topic: str) -> str:
    return topic.split(".")[1]


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _pretty(encoded: bytes) -> bytes:
    return _json(orjson.loads(encoded))


def write(folder: Path) -> list[str]:
    """Write what has changed; the paths written. Call `incompatible` first."""
    changed = []
    for name, body in documents().items():
        path = folder / name
        if not path.exists() or path.read_bytes() != body:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
            changed.append(name)
    return changed


def main(arguments: list[str]) -> int:
    """0 written (or already current), 1 refused."""
    folder = Path(arguments[0]) if arguments else FOLDER
    refused = incompatible(folder)
    for name, found in refused.items():
        for change in found:
            print(f"{name}: {change}", file=sys.stderr)
    if refused:
        print("refused: records that exist could not be read any more; add a new version instead", file=sys.stderr)
        return 1
    for name in write(folder):
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
