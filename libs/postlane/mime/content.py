"""What a mail says: the shape that composing reads, and the refusals that say which field is wrong.

`MailContent` of postlane.core.events fits the protocol `ContentLike`; so does the plain `Content` here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol


class InvalidContent(ValueError):
    """This content cannot be a mail. `field` names the part of the request, `problem` says what to do."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class AttachmentLike(Protocol):
    """A file; `content` is base64 (RFC 4648 4), `content_id` (without <>) makes it addressable as cid: in HTML."""

    @property
    def filename(self) -> str: ...
    @property
    def content_type(self) -> str: ...
    @property
    def content(self) -> str: ...
    @property
    def content_id(self) -> str | None: ...
    @property
    def disposition(self) -> str: ...


class ContentLike(Protocol):
    """The content of one mail as requested. `text` None: derived from `html`; `text` "": no text part."""

    @property
    def sender(self) -> str: ...
    @property
    def to(self) -> Sequence[str]: ...
    @property
    def cc(self) -> Sequence[str]: ...
    @property
    def reply_to(self) -> str | Sequence[str] | None: ...
    @property
    def subject(self) -> str: ...
    @property
    def text(self) -> str | None: ...
    @property
    def html(self) -> str | None: ...
    @property
    def attachments(self) -> Sequence[AttachmentLike]: ...
    @property
    def template(self) -> Any: ...
    @property
    def headers(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class AttachedFile:
    """A plain AttachmentLike."""

    filename: str
    content: str
    content_type: str = "application/octet-stream"
    content_id: str | None = None
    disposition: str = "attachment"


@dataclass(frozen=True, slots=True)
class Content:
    """A plain ContentLike."""

    sender: str
    to: Sequence[str] = ()
    cc: Sequence[str] = ()
    reply_to: str | Sequence[str] | None = None
    subject: str = ""
    text: str | None = None
    html: str | None = None
    attachments: Sequence[AttachedFile] = ()
    template: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Rendered(NamedTuple):
    """What a template made of its data; takes the place of subject, text and html."""

    subject: str
    text: str | None
    html: str | None
