"""A list of recipients becomes mails: one row, one mail, each with a key, so that a second run sends nothing twice.

The verbs: `mail_of` decides what a row asks for (pure); `Import.run` publishes with a bounded number in flight and
keeps what it could not publish, with reasons, beside how far everything before is on record.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import datetime
from difflib import get_close_matches
from hashlib import blake2b
from typing import Any, Protocol

import orjson

from postlane.core.addresses import InvalidAddress, parse_mailbox
from postlane.errors import InvalidMail, MailTooLarge
from postlane.mail import KEY_MAX_CHARS, Mail
from postlane.ops.import_files import RAW_KEPT_BYTES, Progress, Rejected
from postlane.ops.rows import CsvRows, ImportRefused, Position, Row
from postlane.publisher import Receipt

IN_FLIGHT_MAX = 1000
CHECKPOINT_S = 1.0
PACE_BURST_S = 0.05  # how much of a second may be caught up at once
RECIPIENT_COLUMNS = ("email", "to", "e-mail")
CONTENT_COLUMNS = ("subject", "text", "html")
_OWN_CONTENT = frozenset({"subject", "text", "html", "attachments", "template"})
_CONTENT = frozenset({"text", "html", "template"})


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What all rows have in common. `template` is `id` or (id, version); `key_column` names where a row's key is."""

    sender: str | None = None
    template: tuple[str, int | None] | None = None
    campaign: str | None = None
    key_column: str | None = None
    lane: str = "bulk"
    tenant: str = "default"
    send_at: datetime | None = None
    expires_at: datetime | None = None

    def digest(self) -> str:
        """Tells whether two runs ask for the same."""
        parts = [self.sender, self.template, self.campaign, self.key_column, self.lane, self.tenant]
        return _digest([*parts, self.send_at, self.expires_at])


class PublisherLike(Protocol):
    """What an import asks of a Publisher."""

    def publish_soon(self, mail: Mail, key: str | None = None) -> Future[Receipt]: ...


def check_columns(rows: CsvRows, options: ImportOptions) -> None:
    """Raises ImportRefused when no row of the file could become a mail."""
    columns = {name.lower(): name for name in rows.columns}
    if not any(name in columns for name in RECIPIENT_COLUMNS):
        raise ImportRefused(f"no column 'email' or 'to'; the file has {_shown(rows.columns)}")
    if options.sender is None and "sender" not in columns:
        raise ImportRefused("who sends it? give --from, or a column 'sender'")
    if options.template is None and not any(name in columns for name in ("text", "html")):
        raise ImportRefused("nothing to say: give --template, or columns 'subject' and 'text' or 'html'")
    if options.key_column is not None and options.key_column not in rows.columns:
        near = get_close_matches(options.key_column, rows.columns, n=1)
        hint = f"did you mean {near[0]!a}?" if near else f"the file has {_shown(rows.columns)}"
        raise ImportRefused(f"no column {options.key_column[:80]!a} for the key; {hint}")


def mail_of(values: Mapping[str, Any], options: ImportOptions, *, csv: bool) -> tuple[Mail, str]:
    """The mail that a row asks for, and its key. Raises InvalidMail."""
    fields, own_key, own_content = _cells(values, options) if csv else _object(values, options)
    if options.sender is not None:
        fields.setdefault("sender", options.sender)
    common = {"lane": options.lane, "tenant": options.tenant, "campaign": options.campaign}
    times = {"send_at": options.send_at, "expires_at": options.expires_at}
    for name, value in {**common, **times}.items():
        if value is not None:
            fields.setdefault(name, value)
    mail = Mail(**fields)
    return mail, _key(values, options, mail, own_key, own_content)


def _cells(values: Mapping[str, Any], options: ImportOptions) -> tuple[dict[str, Any], str | None, bool]:
    named = {name.lower(): value for name, value in values.items()}
    recipient = next((named[name].strip() for name in RECIPIENT_COLUMNS if name in named), "")
    if not recipient:
        raise InvalidMail([("email", "is empty")])
    fields: dict[str, Any] = {"to": (recipient,)}
    if options.sender is None:
        fields["sender"] = named.get("sender", "").strip()
    if options.template is not None:
        ident, version = options.template
        fields["template"] = {"id": ident, "version": version, "data": dict(values)}
    else:
        fields.update({name: named[name] for name in CONTENT_COLUMNS if named.get(name)})
    own_key = None if options.key_column is None else str(values.get(options.key_column, "")).strip()
    return fields, own_key, options.template is None


def _object(values: Mapping[str, Any], options: ImportOptions) -> tuple[dict[str, Any], str | None, bool]:
    fields = dict(values)
    own_key = fields.pop("key", None)
    if "email" in fields and "to" not in fields:
        fields["to"] = fields.pop("email")
    data = fields.pop("data", None)
    if options.key_column is not None:
        inside = data if isinstance(data, dict) else {}
        own_key = fields.pop(options.key_column, None) if options.key_column not in Mail.model_fields else None
        own_key = inside.get(options.key_column, "") if own_key is None else own_key
    if isinstance(own_key, int) and not isinstance(own_key, bool):
        own_key = str(own_key)
    if own_key is not None and not isinstance(own_key, str):
        raise InvalidMail([("key", "must be a text or a whole number")])
    own_content = bool(_OWN_CONTENT & fields.keys())
    if data is not None and not isinstance(data, dict):
        raise InvalidMail([("data", "a JSON object is expected")])
    if options.template is not None and not _CONTENT & fields.keys():
        ident, version = options.template
        fields["template"] = {"id": ident, "version": version, "data": data or {}}
    elif data is not None:
        raise InvalidMail([("data", "belongs to a template; give --template, or template: {id, data} in the row")])
    return fields, own_key, own_content


def _key(values: Mapping[str, Any], options: ImportOptions, mail: Mail, own_key: str | None, own_content: bool) -> str:
    """The row's own key; else campaign and recipient; else, and where rows bring their own content, a digest of
    what the row says: two runs of one file come to the same keys."""
    if options.key_column is not None or own_key is not None:
        if not own_key:
            raise InvalidMail([(options.key_column or "key", "is empty, and it is the key of the row")])
        return own_key
    if mail.campaign is not None and not own_content and len(mail.recipients) == 1:
        key = f"{mail.campaign}/{_address(mail.recipients[0])}"
        if len(key) <= KEY_MAX_CHARS:
            return key
    what = [mail.sender, options.template, mail.lane, dict(values)]
    return f"{mail.campaign or 'row'}/{_digest(what)}"


def _address(text: str) -> str:
    try:
        return parse_mailbox(text).address
    except InvalidAddress:  # Mail has looked at it; kept for callers that build one without
        return text


def _digest(value: Any) -> str:
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    return blake2b(orjson.dumps(value, option=options, default=str), digest_size=16).hexdigest()


def _shown(names: Iterable[str]) -> str:
    return ", ".join(ascii(name[:40]) for name in list(names)[:12])


# ------------------------------------------------------------------------------------------------------ the run


@dataclass(slots=True)
class Summary:
    """What came of a run. `published` counts acknowledged mails of this run, `before` those of the runs it resumed."""

    published: int = 0
    rejected: int = 0
    before: int = 0
    at: Position = field(default_factory=Position)


@dataclass(slots=True)
class Pace:
    """At most `rate` a second, evenly; None is as fast as it goes."""

    rate: float | None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    due: float | None = None

    def wait(self) -> None:
        if self.rate is None:
            return
        now = self.clock()
        self.due = now if self.due is None else max(self.due, now - PACE_BURST_S)
        if self.due > now:
            self.sleep(self.due - now)
        self.due += 1 / self.rate


@dataclass(slots=True)
class _InFlight:
    """A row whose turn has not come yet, without its content; `reason` instead of a receipt: it is refused."""

    row: Row
    receipt: Future[Receipt] | None
    reason: str = ""


@dataclass(slots=True)
class Import:
    """One run over a file. `told` is called with the summary after each row that is settled."""

    options: ImportOptions
    publisher: PublisherLike
    rejected: Rejected
    progress: Progress | None
    pace: Pace
    csv: bool
    told: Callable[[Summary], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    summary: Summary = field(default_factory=Summary)
    _waiting: deque[_InFlight] = field(default_factory=deque)
    _saved_at: float = 0.0

    def run(self, rows: Iterable[Row]) -> Summary:
        """Publish every row. Raises what publishing raises, with the progress saved: run again to go on."""
        self._saved_at = self.clock()
        try:
            for row in rows:
                while self._waiting and (len(self._waiting) >= IN_FLIGHT_MAX or _answered(self._waiting[0])):
                    self._settle()
                self._waiting.append(self._begin(row))
            while self._waiting:
                self._settle()
        finally:
            self._keep_what_is_settled()
        if self.progress is not None:
            self.progress.clear()
        return self.summary

    def _begin(self, row: Row) -> _InFlight:
        place = replace(row, raw=row.raw[:RAW_KEPT_BYTES], values=None)
        if row.values is None:
            return _InFlight(place, None, row.problem or "cannot be read")
        try:
            mail, key = mail_of(row.values, self.options, csv=self.csv)
            self.pace.wait()
            return _InFlight(place, self.publisher.publish_soon(mail, key))
        except (InvalidMail, MailTooLarge) as error:
            return _InFlight(place, None, str(error))

    def _settle(self) -> None:
        """The oldest row: on record, or kept as rejected; in the order of the file, so that a position says all."""
        first = self._waiting[0]
        reason = first.reason
        if first.receipt is not None:
            try:
                first.receipt.result()
                self.summary.published += 1
            except MailTooLarge as error:  # only the broker knew
                reason = str(error)
        if reason:
            self.rejected.keep(first.row, reason)
            self.summary.rejected += 1
        self._waiting.popleft()
        self.summary.at = Position(first.row.end, first.row.end_line)
        self.told(self.summary)
        now = self.clock()
        if now - self._saved_at >= CHECKPOINT_S:
            self._saved_at = now
            self._save()

    def _keep_what_is_settled(self) -> None:
        """After a failure: what is acknowledged in an unbroken row from the start need not be sent again."""
        while self._waiting and _succeeded(self._waiting[0]):
            self._settle()
        self._save()

    def _save(self) -> None:
        if self.progress is not None:
            self.progress.save(self.summary.at, self.summary.published + self.summary.before, self.rejected)


def _answered(waiting: _InFlight) -> bool:
    return waiting.receipt is None or waiting.receipt.done()


def _succeeded(waiting: _InFlight) -> bool:
    return waiting.receipt is None or (waiting.receipt.done() and waiting.receipt.exception() is None)
