"""The OpenAPI 3.1 document of the gateway's HTTP API, made from the model that the SDK itself uses."""

from __future__ import annotations

from typing import Any

from postlane.mail import KEY_MAX_CHARS, Mail

VERSION = "1"
_REFERENCE = "#/components/schemas/{model}"
_KEY = {
    "type": "string",
    "minLength": 1,
    "maxLength": KEY_MAX_CHARS,
    "description": "Idempotency key: publishing one key again, from anywhere, sends nothing new.",
}
_STATUSES = {
    "400": "the body is no JSON",
    "401": "no API key, or one that is not known",
    "403": "the API key may not do that",
    "408": "the body came too slowly",
    "413": "too large, or too many",
    "415": "another media type or a Content-Encoding",
    "422": "the mail cannot be sent as it stands; `errors` names every mistake",
    "429": "faster than the API key may; see Retry-After",
    "500": "something broke; whether it was published is unknown: send it again with the same key",
    "503": "nothing was published; see Retry-After",
    "504": "whether it was published is unknown: send it again with the same key",
}


def document() -> dict[str, Any]:
    """The document, as plain JSON values."""
    schema = Mail.model_json_schema(ref_template=_REFERENCE)
    components: dict[str, Any] = dict(schema.pop("$defs", {}))
    for name in ("to", "cc", "bcc"):
        many = schema["properties"][name]
        schema["properties"][name] = {"anyOf": [{"type": "string"}, many], "title": many.get("title", name)}
    schema["properties"]["key"] = _KEY
    schema["description"] = "One mail to 1 to 100 recipients, each of whom gets a delivery of their own."
    components |= {"Mail": schema, "Receipt": _RECEIPT, "Problem": _PROBLEM}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Postlane",
            "version": VERSION,
            "summary": "Publish mails that are kept, sent once and accounted for.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"apiKey": []}],
        "paths": {
            "/v1/mails": {"post": _mail()},
            "/v1/mails/batch": {"post": _batch()},
            "/v1/bounces": {"post": _bounce()},
        },
        "components": {
            "schemas": components,
            "securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer", "description": "plk_…"}},
        },
    }


def _mail() -> dict[str, Any]:
    return {
        "operationId": "publishMail",
        "summary": "Publish one mail.",
        "parameters": [{"name": "Idempotency-Key", "in": "header", "schema": _KEY}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("Mail")}}},
        "responses": {
            "202": {
                "description": "Every in-sync replica of Kafka has it.",
                "content": {"application/json": {"schema": _ref("Receipt")}},
            },
            **{status: _problem(says) for status, says in _STATUSES.items()},
        },
    }


def _batch() -> dict[str, Any]:
    return {
        "operationId": "publishMails",
        "summary": "Publish up to 1,000 mails, one in a line.",
        "requestBody": {
            "required": True,
            "content": {"application/x-ndjson": {"schema": {"type": "string", "description": "A Mail in each line."}}},
        },
        "responses": {
            "200": {
                "description": "For each line, in order, a Receipt with `status` 202, or a Problem.",
                "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
            },
            **{status: _problem(says) for status, says in _STATUSES.items() if status not in ("422", "504")},
        },
    }


def _bounce() -> dict[str, Any]:
    about = "The address that it was sent to; where it is a return path of ours, it says of which delivery it is."
    taken = {
        "type": "object",
        "required": ["outcomes"],
        "properties": {
            "delivery_id": {"type": "string"},
            "outcomes": {"type": "array", "items": {"type": "string"}, "description": "One for each recipient."},
            "reason": {"type": "string"},
        },
    }
    return {
        "operationId": "bringBounce",
        "summary": "Bring a delivery status notification (RFC 3464) as it came.",
        "parameters": [{"name": "to", "in": "query", "schema": {"type": "string"}, "description": about}],
        "requestBody": {"required": True, "content": {"message/rfc822": {"schema": {"type": "string"}}}},
        "responses": {
            "200": {"description": "What came of it is on record.", "content": {"application/json": {"schema": taken}}},
            **{status: _problem(_STATUSES[status]) for status in ("401", "403", "408", "413", "415", "503")},
        },
    }


def _problem(says: str) -> dict[str, Any]:
    return {"description": says, "content": {"application/problem+json": {"schema": _ref("Problem")}}}


def _ref(model: str) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model)}


_RECEIPT: dict[str, Any] = {
    "type": "object",
    "description": "Where the mail is on record; `message_id` is what `postlane status` asks for.",
    "required": ["message_id", "partition", "offset"],
    "properties": {
        "message_id": {"type": "string", "format": "uuid"},
        "partition": {"type": "integer", "minimum": 0},
        "offset": {"type": "integer", "minimum": 0},
    },
}
_PROBLEM: dict[str, Any] = {
    "type": "object",
    "description": "RFC 9457. `type` is urn:postlane:problem: and a name that does not change.",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "message_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "problem"],
                "properties": {"field": {"type": "string"}, "problem": {"type": "string"}},
            },
        },
    },
}
