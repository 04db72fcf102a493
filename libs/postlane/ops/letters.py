"""Dead letters as operators see them: what each one holds, by what it can be found, which kind of thing it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from postlane.core.addresses import InvalidAddress, normalise_domain
from postlane.core.events import DispatchReady, MailRequested
from postlane.core.identity import split_delivery_id
from postlane.core.route import recipients
from postlane.core.where import Expression, Kind
from postlane.eventlog.codec import Unreadable, decode_record, time_of
from postlane.eventlog.dead_letters import Origin, origin_of
from postlane.eventlog.ports import Received
from postlane.eventlog.topics import TopicNames

_ID = re.compile(r"(\d{1,6})-(\d{1,18})")
_CODE = re.compile(r"[2-5]\d\d(?= |$)")

# The fields of --where, with the kinds of their values.
FIELDS: dict[str, Kind] = {
    "id": "text",
    "partition": "number",
    "offset": "number",
    "at": "text",
    "reason": "text",
    "message": "text",
    "topic": "text",
    "lane": "text",
    "tenant": "text",
    "campaign": "text",
    "recipient": "text",
    "domain": "text",
    "provider": "text",
    "attempts": "number",
    "generation": "number",
    "reply": "text",
    "reply_code": "number",
    "sender": "text",
    "subject": "text",
    "template": "text",
    "template_version": "number",
    "message_id": "text",
    "delivery_id": "text",
}


@dataclass(frozen=True, slots=True)
class Filters:
    """Which ones an operator means; None and empty are no filter. Times are those of the records."""

    reason: str | None = None
    lane: str | None = None
    tenant: str | None = None
    campaign: str | None = None
    domain: str | None = None
    provider: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    where: Expression | None = None
    letters: frozenset[tuple[int, int]] = frozenset()  # (partition, offset)
    deliveries: frozenset[str] = frozenset()

    def within(self, timestamp_ms: int) -> bool:
        """Whether a record of this time is meant."""
        if self.since is not None and timestamp_ms < self.since.timestamp() * 1000:
            return False
        return self.until is None or timestamp_ms < self.until.timestamp() * 1000

    def names_one(self, partition: int, offset: int, delivery: str | None) -> bool:
        """Whether no dead letter was named, or this one."""
        if not self.letters and not self.deliveries:
            return True
        return (partition, offset) in self.letters or delivery in self.deliveries

    def hold(self, fields: Mapping[str, Any], *, history_later: bool = False) -> bool:
        """Whether these fields are meant; `history_later`: reason and provider come from its events, not known yet."""
        wanted = [(self.lane, "lane"), (self.tenant, "tenant"), (self.campaign, "campaign"), (self.domain, "domain")]
        if not history_later:
            wanted += [(self.reason, "reason"), (self.provider, "provider")]
        if any(value is not None and fields.get(name) != value for value, name in wanted):
            return False
        return self.where is None or self.where.holds(fields)


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter, read as far as it can be read. `source` as in `postlane.core.replay.Candidate`."""

    record: Received
    origin: Origin | None
    source: Literal["letter", "poison", "conflict"]
    mail: DispatchReady | None = None
    request: MailRequested | None = None
    redrivable: bool = False  # its bytes may be written to where they came from

    @property
    def id(self) -> str:
        """`<partition>-<offset>` in the dead letters."""
        return f"{self.record.partition}-{self.record.offset}"

    @property
    def reason(self) -> str:
        return "" if self.origin is None else self.origin.reason

    @property
    def delivery_id(self) -> str | None:
        return None if self.mail is None else self.mail.delivery_id

    def fields(self) -> dict[str, Any]:
        """What it can be found by (FIELDS), without what is not known."""
        origin, record, mail = self.origin, self.record, self.mail
        said: dict[str, Any] = {
            "id": self.id,
            "partition": record.partition,
            "offset": record.offset,
            "at": time_text(record.timestamp_ms),
        }
        if origin is not None:
            code = _CODE.match(origin.smtp_reply or "")
            said |= {
                "reason": origin.reason,
                "message": origin.message,
                "topic": origin.topic,
                "provider": origin.provider,
                "attempts": origin.attempts,
                "reply": origin.smtp_reply,
                "reply_code": int(code[0]) if code else None,
            }
        if mail is not None:
            if said.get("provider") is None and mail.failed_providers:
                said["provider"] = mail.failed_providers[
                    -1
                ]  # given up when the last one had refused it, at an earlier hop
            said |= mail_fields(mail, mail.recipient) | {"delivery_id": mail.delivery_id}
        elif self.request is not None:
            people = recipients(self.request)
            said |= mail_fields(self.request, people[0].address if people else "")
        return {name: value for name, value in said.items() if value is not None}


def letter_id(text: str) -> tuple[int, int]:
    """(partition, offset) of `<partition>-<offset>`. Raises ValueError."""
    found = _ID.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:60]!a} is no id of a dead letter (as `postlane dead-letters list` shows them)")
    return int(found[1]), int(found[2])


def domain_of(recipient: str) -> str:
    """The domain by which a recipient is found; "" where there is none."""
    return recipient.rpartition("@")[2].lower()


def domain_filter(text: str) -> str:
    """A domain as an operator writes it, in the form that recipients have. Raises InvalidAddress."""
    try:
        return normalise_domain(text.removeprefix("@"))
    except InvalidAddress:
        if text.isascii():
            return text.lower()
        raise


def mail_fields(mail: DispatchReady | MailRequested, recipient: str) -> dict[str, Any]:
    """The fields that a mail itself has."""
    content = mail.content if isinstance(mail, DispatchReady) else mail
    template = content.template
    return {
        "lane": mail.lane,
        "tenant": mail.tenant,
        "campaign": mail.campaign,
        "recipient": recipient,
        "domain": domain_of(recipient),
        "generation": mail.generation,
        "sender": content.sender,
        "subject": content.subject,
        "template": None if template is None else template.id,
        "template_version": None if template is None else template.version,
        "message_id": mail.message_id,
    }


def time_text(unix_ms: int) -> str:
    """RFC 3339 in UTC, milliseconds; texts of this form sort by time."""
    return time_of(unix_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_letter(record: Received, names: TopicNames) -> Letter:
    """Never raises: what cannot be read is a letter too."""
    try:
        origin = origin_of(record.headers)
    except ValueError:
        return Letter(record, None, "poison")
    if origin.topic == names.requests:
        return _of_request(record, origin)
    if origin.topic not in names.delays and not origin.topic.startswith(names.dispatch("")):
        return Letter(record, origin, "poison")
    if origin.omitted_bytes is None:
        try:
            mail = decode_record(DispatchReady, record)
            message, _, generation = split_delivery_id(mail.delivery_id)
            if (message, generation) == (mail.message_id, mail.generation):
                return Letter(record, origin, "letter", mail=mail)
        except (Unreadable, ValueError):
            pass
    return Letter(record, origin, "poison")


def _of_request(record: Received, origin: Origin) -> Letter:
    source: Literal["poison", "conflict"] = "conflict" if origin.reason == "key_conflict" else "poison"
    whole = origin.omitted_bytes is None and origin.partition == record.partition
    try:
        request = decode_record(MailRequested, record) if origin.omitted_bytes is None else None
    except Unreadable:
        request = None
    return Letter(record, origin, source, request=request, redrivable=whole and record.value is not None)
