"""Writing: decisions -> records, each to the partition number that the mail has everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import orjson

from postlane.core.delay import Step
from postlane.core.events import DispatchReady, Fact, MailContent, Seen, ce_type
from postlane.eventlog.codec import encode
from postlane.eventlog.ports import Headers, Outgoing
from postlane.eventlog.topics import TopicNames

Trace = Sequence[tuple[str, bytes]]
SOURCE = b"postlane/router"
_SEEN_HEADERS: Headers = [("ce_type", ce_type(Seen).encode())]  # the router's own changelog: no more is read there


class Writer:
    """Makes the records of one moment: `at` is the time of all of them."""

    def __init__(self, names: TopicNames) -> None:
        self._names = names
        self._seen = names.seen
        self._events = names.events
        self._lanes: dict[str, str] = {}
        self._fixed: dict[type[Fact], Headers] = {}
        self.now(datetime.min.replace(tzinfo=UTC))

    def now(self, at: datetime) -> None:
        """The time that the following records carry."""
        self.at = at
        self._fixed.clear()
        self._seen_end = b',"at":%b}' % orjson.dumps(at, option=orjson.OPT_UTC_Z)

    def seen(self, partition: int, key: bytes, digest: str) -> Outgoing:
        """The entry of the changelog: this key was accepted with this content."""
        return Outgoing(
            self._seen, partition, key, b'{"digest":"%b"%b' % (digest.encode(), self._seen_end), _SEEN_HEADERS
        )

    def event(self, partition: int, key: bytes | None, event: Fact, ident: bytes, trace: Trace) -> Outgoing:
        """An event; `ident` is unique among those of the router."""
        return Outgoing(self._events, partition, key, encode(event), self._headers(type(event), ident, trace))

    def dispatch(
        self, partition: int, key: bytes, ready: DispatchReady, content: bytes, step: Step | None, trace: Trace
    ) -> Outgoing:
        """A dispatch record, for its lane or a step of the delay stage; `content` is its content's JSON."""
        topic = self.lane(ready.lane) if step is None else self._names.delay(step.name)
        ident = f"{ready.delivery_id}#{ready.hop}".encode()
        headers = self._headers(DispatchReady, ident, trace)
        return Outgoing(topic, partition, key, encode_ready(ready, content), headers)

    def lane(self, lane: str) -> str:
        """The dispatch topic of a lane."""
        topic = self._lanes.get(lane)
        if topic is None:
            topic = self._lanes[lane] = self._names.dispatch(lane)
        return topic

    def _headers(self, model: type[Fact], ident: bytes, trace: Trace = ()) -> Headers:
        fixed = self._fixed.get(model)
        if fixed is None:
            time = self.at.isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()
            fixed = self._fixed[model] = [
                ("ce_specversion", b"1.0"),
                ("ce_type", ce_type(model).encode()),
                ("ce_source", SOURCE),
                ("content-type", b"application/json"),
                ("ce_time", time),
            ]
        return [*fixed, ("ce_id", ident), *trace]


def encode_content(content: MailContent) -> bytes:
    """The JSON of a content, made once for all deliveries of a mail."""
    return encode(content)


def encode_ready(ready: DispatchReady, content: bytes) -> bytes:
    """The JSON of a dispatch record around the JSON of its content, without what is empty."""
    body = {name: value for name, value in ready.__dict__.items() if value or type(value) is int}
    body["content"] = orjson.Fragment(content)
    return orjson.dumps(body, option=orjson.OPT_UTC_Z)
