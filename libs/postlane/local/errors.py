"""What goes wrong on this machine, in one sentence that says what to do."""

from __future__ import annotations


class LocalError(Exception):
    """The local stack cannot do what was asked.

    `message` is one sentence for a person: what is wrong, and what to do about it. The command line prints it
    without a traceback and ends with exit code 1.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
