"""Committed schemas are those of the models, every sample can be read, incompatible changes are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
import yaml

from postlane.core import events
from postlane.core.events import EVENT, Fact
from postlane.eventlog.codec import decode, decode_event, encode
from postlane.ops import schemas
from postlane.ops.schema_compat import changes
from postlane.ops.schema_samples import RECORDS, full

FOLDER = Path(__file__).parents[2] / "schemas"
SAMPLES = sorted((FOLDER / "samples").glob("*.json"))
BY_NAME = {schemas.name_of(model): model for model in RECORDS}


def model_of(sample: Path) -> type[Fact]:
    name, version, *_ = sample.name.split(".")
    return BY_NAME[f"{name}.{version}"]


def test_the_committed_files_are_current() -> None:
    stale = [name for name, body in schemas.documents().items() if (FOLDER / name).read_bytes() != body]
    assert stale == [], "run `python -m postlane.ops.schemas`"
    made = set(schemas.documents())
    there = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.suffix in (".json", ".yaml")}
    assert there == made


def test_no_model_has_changed_incompatibly() -> None:
    assert {name: [str(c) for c in found] for name, found in schemas.incompatible(FOLDER).items()} == {}


def test_every_event_of_the_union_has_a_schema_and_a_sample() -> None:
    names = set(EVENT.json_schema()["discriminator"]["mapping"])
    assert names <= {model.__name__ for model in RECORDS}
    assert {model_of(sample) for sample in SAMPLES} == set(RECORDS)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda p: p.name)
def test_every_golden_sample_can_be_read(sample: Path) -> None:
    body = sample.read_bytes()
    model = model_of(sample)
    fact = decode(model, body)
    assert orjson.loads(encode(fact)) == orjson.loads(body)
    if "type" in model.model_fields:
        assert decode_event(body) == fact
    jsonschema.validate(orjson.loads(body), orjson.loads((FOLDER / f"{schemas.name_of(model)}.json").read_bytes()))


def test_the_full_sample_uses_every_field() -> None:
    for model in RECORDS:
        sample = full(model)
        empty = [name for name in model.model_fields if getattr(sample, name) in (None, "", (), {})]  # add an example
        allowed = {"template"} if model is events.MailRequested else {"html"} if model is events.Template else set()
        assert set(empty) <= allowed, model.__name__


# ------------------------------------------------------------------------------------------------------------ changes

Mutation = Callable[[dict[str, Any]], object]


def schema_of(model: type[Fact]) -> dict[str, Any]:
    return copy.deepcopy(schemas.schema(model))


def drop(name: str) -> Mutation:
    return lambda s: s["properties"].pop(name)


def put(name: str, value: Any, *, required: bool = False) -> Mutation:
    def change(schema: dict[str, Any]) -> None:
        schema["properties"][name] = value
        if required:
            schema["required"].append(name)

    return change


@pytest.mark.parametrize(
    ("model", "mutation", "path", "kind"),
    [
        (events.MailRequested, drop("campaign"), "record.campaign", "removed"),
        (events.MailRequested, put("colour", {"type": "string"}, required=True), "record.colour", "required"),
        (events.MailRequested, lambda s: s["required"].append("subject"), "record.subject", "required"),
        (events.MailRequested, put("subject", {"type": "integer"}), "record.subject", "changed"),
        (events.MailRequested, put("subject", {"type": "string", "maxLength": 9}), "record.subject", "narrowed"),
        (events.MailRequested, put("key", {"type": "string"}), "record.key", "narrowed"),
        (events.MailRequested, put("generation", {"type": "integer", "minimum": 1}), "record.generation", "narrowed"),
        (events.MailRequested, put("to", {"type": "array", "items": {"type": "integer"}}), "record.to[]", "changed"),
        (
            events.MailRequested,
            put("headers", {"type": "object", "additionalProperties": {"type": "integer"}}),
            "record.headers.*",
            "changed",
        ),
        (events.MailRequested, lambda s: s.update(additionalProperties=False), "record", "narrowed"),
        (
            events.MailRequested,
            lambda s: s["$defs"]["Attachment"]["properties"].pop("filename"),
            "record.attachments[].filename",
            "removed",
        ),
        (
            events.MailRequested,
            lambda s: s["$defs"]["Attachment"]["properties"]["disposition"]["enum"].remove("inline"),
            "record.attachments[].disposition",
            "narrowed",
        ),
        (events.MailRequested, put("requested_at", {"type": "string"}), "record.requested_at", "widened"),
        (events.MailRequested, put("colour", {"type": "string"}), None, None),
        (events.MailRequested, lambda s: s.update(description="other words", title="X"), None, None),
        (events.MailRequested, lambda s: s["required"].remove("sender"), "record.sender", "widened"),
        (
            events.Resolved,
            put("state", {"type": "string", "enum": ["delivered", "bounced", "lost"]}),
            "record.state",
            "widened",
        ),
        (events.Resolved, put("state", {"type": "string", "enum": ["delivered"]}), "record.state", "narrowed"),
        (events.Resolved, put("type", {"type": "string", "const": "Settled"}), "record.type", "narrowed"),
        (events.Delivered, put("provider", {"type": "string"}), "record.provider", "narrowed"),
        (events.Delivered, put("provider", {"type": "integer"}), "record.provider", "changed"),
    ],
)
def test_a_made_up_change_is_told(model: type[Fact], mutation: Mutation, path: str | None, kind: str | None) -> None:
    changed = schema_of(model)
    mutation(changed)
    found = changes(schema_of(model), changed)
    if path is None:
        assert found == ()
    else:
        assert (path, kind) in {(c.path, c.kind) for c in found}, [str(c) for c in found]
        if kind != "widened":
            assert any(not c.compatible for c in found)
        else:
            assert all(c.compatible for c in found if c.path == path and c.kind == kind)


def test_a_schema_does_not_differ_from_itself() -> None:
    for model in RECORDS:
        assert changes(schema_of(model), schema_of(model)) == ()


def test_the_generator_refuses_to_overwrite_what_older_records_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert schemas.main([str(tmp_path)]) == 0
    capsys.readouterr()
    assert schemas.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""  # nothing had to be written
    path = tmp_path / "Held.v1.json"
    earlier = orjson.loads(path.read_bytes())
    earlier["properties"]["colour"] = {"type": "string"}
    path.write_bytes(orjson.dumps(earlier))
    (tmp_path / "Forgotten.v1.json").write_bytes(b"{}")
    assert schemas.main([str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "Held.v1.json: record.colour: removed" in said
    assert "Forgotten.v1.json" in said
    assert orjson.loads(path.read_bytes()) == earlier


# ----------------------------------------------------------------------------------------------------------- asyncapi


def test_the_asyncapi_document_holds_together() -> None:
    document = yaml.safe_load((FOLDER / "asyncapi.yaml").read_text())
    assert document["asyncapi"] == "3.0.0"
    messages = document["components"]["messages"]
    for channel in document["channels"].values():
        for reference in channel.get("messages", {}).values():
            assert reference["$ref"].rpartition("/")[2] in messages
    for operation in document["operations"].values():
        assert operation["action"] in ("send", "receive")
        assert operation["channel"]["$ref"].removeprefix("#/channels/") in document["channels"]
    for message in messages.values():
        assert (FOLDER / message["payload"]["$ref"]).is_file()
    assert {"mail.requests", "mail.state.bulk", "mail.delay.1d"} <= document["channels"].keys()
