"""What the API answers when it does not do what was asked: problem documents (RFC 9457), by what the caller must do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from postlane.errors import BrokerUnavailable, InvalidMail, MailTooLarge, PublishError, PublishTimeout

URN = "urn:postlane:problem:"
RETRY_AFTER_S = 5
OURS = ("unavailable", "unknown", "refused", "busy", "failed")  # no mistake of the caller's: these wake somebody


class Problem(Exception):
    """An answer other than the one asked for. `reason` is its bounded name, in `type` and in the metrics."""

    def __init__(
        self, status: int, reason: str, title: str, detail: str = "", *, wait_s: float | None = None, **more: Any
    ) -> None:
        super().__init__(title)
        self.status = status
        self.reason = reason
        self.wait_s = wait_s
        self.body: dict[str, Any] = {"type": f"{URN}{reason}", "title": title, "status": status}
        if detail:
            self.body["detail"] = detail
        self.body |= {name: value for name, value in more.items() if value}

    @property
    def headers(self) -> Mapping[str, str]:
        """Retry-After in whole seconds (RFC 9110 10.2.3), and how to authenticate."""
        if self.status == 401:
            return {"WWW-Authenticate": 'Bearer realm="postlane"'}
        return {} if self.wait_s is None else {"Retry-After": str(max(1, math.ceil(self.wait_s)))}


def of(error: PublishError) -> Problem:
    """The answer to what publishing raised."""
    match error:
        case InvalidMail():
            mistakes = [{"field": field, "problem": problem} for field, problem in error.problems]
            return Problem(422, "invalid-mail", "the mail cannot be sent as it stands", str(error), errors=mistakes)
        case MailTooLarge():
            return Problem(413, "too-large", "the mail is too large", str(error))
        case PublishTimeout():
            return Problem(
                504,
                "unknown",
                "whether the mail was published is unknown; publish it again with the same key",
                "" if error.key else "no key was given, so publishing it again may send it twice",
                wait_s=RETRY_AFTER_S,
                message_id=error.message_id,
            )
        case BrokerUnavailable():
            title = "nothing was published: no broker takes it now; try again"
            return Problem(503, "unavailable", title, wait_s=RETRY_AFTER_S)
        case _:
            return Problem(503, "refused", "nothing was published: the broker refused it; tell the operator")
