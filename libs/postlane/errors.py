"""What can go wrong for a publisher, by what to do about it."""

from __future__ import annotations

from collections.abc import Sequence


class PublishError(Exception):
    """Base of everything that publishing raises; the message says what happened and what to do."""


class InvalidMail(PublishError):
    """The mail cannot be sent as it stands; nothing was published. Mend it: publishing it again changes nothing.

    `field` and `problem` are the first mistake, `problems` all of them as (field, what to do).
    """

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {problem}" for field, problem in problems))
        self.problems = tuple(problems)
        self.field, self.problem = self.problems[0]

    def within(self, place: str) -> InvalidMail:
        """The same mistakes, of something that stands at `place` of the mail."""
        return InvalidMail([(f"{place}.{field}", problem) for field, problem in self.problems])

    def __reduce__(self) -> tuple[type[InvalidMail], tuple[tuple[tuple[str, str], ...]]]:
        return type(self), (self.problems,)


class MailTooLarge(PublishError):
    """The mail, or the mail times its recipients, exceeds the bound; nothing was published.

    `size_bytes` is what it would take, `max_bytes` what is allowed; larger bodies go by reference (a link).
    """

    def __init__(self, size_bytes: int, max_bytes: int, what: str = "the mail") -> None:
        super().__init__(
            f"{what} takes {size_bytes} bytes, at most {max_bytes} are allowed; "
            "leave attachments out and link to them, or publish to fewer recipients at a time"
        )
        self.size_bytes = size_bytes
        self.max_bytes = max_bytes
        self.what = what

    def __reduce__(self) -> tuple[type[MailTooLarge], tuple[int, int, str]]:
        return type(self), (self.size_bytes, self.max_bytes, self.what)


class BrokerUnavailable(PublishError):
    """No broker takes the mail, and it was certainly not published: try again later."""


class PublishTimeout(PublishError):
    """No acknowledgement in time, so whether the mail was published is unknown: publish it again with the same key,
    and it is sent once either way. `message_id` is who the mail is; `key` is None when none was given, and then
    publishing again may send it twice."""

    def __init__(self, message: str, message_id: str = "", key: str | None = None) -> None:
        super().__init__(message)
        self.message_id = message_id
        self.key = key


class PublishRefused(PublishError):
    """The broker refused the record for a reason that time does not mend: a missing topic, a missing right."""
