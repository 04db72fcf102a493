"""`Mail`: what a publisher hands in, checked before it leaves the process.

Everything that can be known to be wrong without asking anybody is said here, all at once, as `InvalidMail`. A
misspelt field is refused: it would be a mail that goes out wrong.
"""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)

from postlane.core import events
from postlane.core.addresses import InvalidAddress, parse_mailbox
from postlane.core.events import RECIPIENTS_MAX, InDoubt
from postlane.core.identity import LANE_FORM, NAME_FORM, NAME_MAX_CHARS
from postlane.errors import InvalidMail
from postlane.mime.compose import ATTACHMENTS_MAX, check_content
from postlane.mime.content import InvalidContent

KEY_MAX_CHARS = 512
PROBLEMS_MAX = 20
_NAME = re.compile(NAME_FORM)
_LANE = re.compile(LANE_FORM)


class _Given(BaseModel):
    """Base of what a publisher writes: unknown fields are refused with the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    @model_validator(mode="wrap")
    @classmethod
    def _say_it_plainly(cls, value: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        if isinstance(value, Mapping):
            unknown = [str(name) for name in value if name not in cls.model_fields]
            if unknown:
                raise InvalidMail([_unknown(name, list(cls.model_fields)) for name in unknown[:PROBLEMS_MAX]])
        try:
            return handler(value)
        except ValidationError as error:
            raise InvalidMail(_problems(error)) from None


class Attachment(_Given, events.Attachment):
    """A file that travels with a mail. `content` is its bytes, or a str that holds them in base64 (RFC 4648 4).

    `content_id` (without <>) makes an inline file addressable as cid: in the HTML.
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            filename: str,
            content: bytes | str,
            content_type: str = "application/octet-stream",
            content_id: str | None = None,
            disposition: Literal["attachment", "inline"] = "attachment",
        ) -> None: ...

    @field_validator("content", mode="before")
    @classmethod
    def _bytes_to_base64(cls, value: object) -> object:
        if isinstance(value, bytes | bytearray | memoryview):
            return base64.b64encode(value).decode("ascii")
        return value

    @classmethod
    def from_file(cls, path: Path | str, content_type: str | None = None) -> Attachment:
        """The file at `path` under its own name; the type is guessed from the name unless given. Raises OSError."""
        path = Path(path)
        guessed = content_type or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return cls(filename=path.name, content=path.read_bytes(), content_type=guessed)


class Template(_Given, events.TemplateRef):
    """Which template renders the mail, with which data (JSON values); `version` None: the newest when it is routed."""

    if TYPE_CHECKING:

        def __init__(self, *, id: str, version: int | None = None, data: Mapping[str, Any] | None = None) -> None: ...

    @field_validator("id")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        return _name(value)

    @field_validator("version")
    @classmethod
    def _counts_from_one(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError("versions count from 1")
        return value


class Mail(_Given):
    """One mail to 1 to 100 recipients, each of whom gets a delivery of their own.

    `to`, `cc`, `bcc` take one address or several (`ada@example.com`, `Ada <ada@example.com>`). Content is `text`,
    `html` or both, or a `template`. `send_at` and `expires_at` are aware datetimes. `in_doubt` says what happens
    when it is unknown whether a server took the mail: `resend` or `park`; None leaves it to the lane. Raises
    InvalidMail with every mistake.
    """

    sender: str
    to: tuple[str, ...] = ()
    cc: tuple[str, ...] = ()
    bcc: tuple[str, ...] = ()
    reply_to: str | None = None
    subject: str = ""
    text: str | None = None
    html: str | None = None
    attachments: tuple[Attachment, ...] = ()
    template: Template | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    lane: Annotated[str, Field(max_length=NAME_MAX_CHARS)] = "transactional"
    tenant: str = "default"
    campaign: str | None = None
    send_at: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None
    in_doubt: InDoubt | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            sender: str,
            to: str | Iterable[str] = (),
            cc: str | Iterable[str] = (),
            bcc: str | Iterable[str] = (),
            reply_to: str | None = None,
            subject: str = "",
            text: str | None = None,
            html: str | None = None,
            attachments: Iterable[Attachment] = (),
            template: Template | Mapping[str, Any] | None = None,
            headers: Mapping[str, str] | None = None,
            lane: str = "transactional",
            tenant: str = "default",
            campaign: str | None = None,
            send_at: datetime | None = None,
            expires_at: datetime | None = None,
            in_doubt: InDoubt | None = None,
        ) -> None: ...

    @field_validator("to", "cc", "bcc", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        if isinstance(value, str):
            return (value,)
        if isinstance(value, Iterator):  # a generator: pydantic takes sequences only
            return tuple(value)
        return value

    @field_validator("attachments", mode="before")
    @classmethod
    def _each_file(cls, value: object) -> object:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            return value
        if isinstance(value, Sequence) and len(value) > ATTACHMENTS_MAX:
            raise ValueError(f"more than {ATTACHMENTS_MAX}")
        return tuple(_part(Attachment, item, f"attachments[{index}]") for index, item in enumerate(value))

    @field_validator("template", mode="before")
    @classmethod
    def _its_template(cls, value: object) -> object:
        return _part(Template, value, "template")

    @field_validator("headers", mode="before")
    @classmethod
    def _none_is_empty(cls, value: object) -> object:
        return {} if value is None else value

    @field_validator("lane")
    @classmethod
    def _is_a_lane(cls, value: str) -> str:
        if not _LANE.fullmatch(value):
            raise ValueError("a lane's name is lower-case letters, digits, _ and -")
        return value

    @field_validator("tenant", "campaign")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        return None if value is None else _name(value)

    @property
    def recipients(self) -> tuple[str, ...]:
        """Everybody who gets it."""
        return self.to + self.cc + self.bcc

    @model_validator(mode="after")
    def _can_be_sent(self) -> Mail:
        problems = [*self._address_problems(), *self._content_problems(), *self._time_problems()]
        if problems:
            raise InvalidMail(problems[:PROBLEMS_MAX])
        return self

    def _address_problems(self) -> Iterator[tuple[str, str]]:
        count = len(self.to) + len(self.cc) + len(self.bcc)
        if count == 0:
            yield "to", "nobody to send to; give at least one address in to, cc or bcc"
        if count > RECIPIENTS_MAX:
            yield "to", f"{count} recipients; at most {RECIPIENTS_MAX} a mail, publish several"
            return
        for field in ("to", "cc", "bcc"):
            for index, address in enumerate(getattr(self, field)):
                try:
                    parse_mailbox(address)
                except InvalidAddress as error:
                    yield f"{field}[{index}]", str(error)

    def _content_problems(self) -> Iterator[tuple[str, str]]:
        try:
            check_content(self)
        except InvalidContent as error:
            if error.field.startswith(("to", "cc")):
                # Recipients were looked at one by one already, which names more than the first; now the rest.
                yield from self.model_copy(update={"to": (), "cc": ()})._content_problems()
            else:
                yield error.field, error.problem

    def _time_problems(self) -> Iterator[tuple[str, str]]:
        if self.expires_at is not None and self.send_at is not None and self.expires_at <= self.send_at:
            yield "expires_at", "lies before send_at, so it could never be sent"


def check_key(key: str) -> str:
    """`key` when it can be an idempotency key. Raises InvalidMail."""
    if not isinstance(key, str) or not key:
        raise InvalidMail([("key", "must be a text that is not empty; leave it out to send without one")])
    if len(key) > KEY_MAX_CHARS:
        raise InvalidMail([("key", f"longer than {KEY_MAX_CHARS} characters; hash what you make it from")])
    if "\x00" in key or not _is_unicode(key):
        raise InvalidMail([("key", "holds NUL or half a surrogate pair; use plain text")])
    return key


def check_name(field: str, value: str) -> str:
    """`value` when it can name a tenant or a campaign. Raises InvalidMail naming `field`."""
    try:
        return _name(value)
    except ValueError as error:
        raise InvalidMail([(field, str(error))]) from None


def _name(value: str) -> str:
    if len(value) > NAME_MAX_CHARS or not _NAME.fullmatch(value):
        raise ValueError(
            f"a name of letters, digits and . _ : @ + - is expected, beginning with a letter or digit, at most "
            f"{NAME_MAX_CHARS} characters"
        )
    return value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _part(model: type[_Given], value: object, place: str) -> object:
    """A part of the mail given as a mapping; its mistakes name where it stands. Raises InvalidMail."""
    if not isinstance(value, Mapping):
        return value
    try:
        return model.model_validate(value)
    except InvalidMail as error:
        raise error.within(place) from None


def _unknown(name: str, known: list[str]) -> tuple[str, str]:
    near = get_close_matches(name[:80], known, n=1)
    shown = ascii(name[:80])
    return shown, f"unknown field; did you mean {near[0]!r}?" if near else f"unknown field; known: {', '.join(known)}"


def _problems(error: ValidationError) -> Sequence[tuple[str, str]]:
    """Each mistake as (field, what to do), without repeating what was given."""
    return [
        (_place(e["loc"]), _plain(e["type"], e["msg"]))
        for e in error.errors(include_url=False, include_context=False, include_input=False)[:PROBLEMS_MAX]
    ]


def _place(loc: tuple[int | str, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")[:200] or "mail"


def _plain(kind: str, message: str) -> str:
    if kind == "missing":
        return "must be given"
    if kind == "timezone_aware":
        return "has no time zone; give an aware datetime, e.g. datetime.now(UTC)"
    return message.removeprefix("Value error, ")
