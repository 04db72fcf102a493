"""What a caller must do when the log fails: the library's errors are translated once, in the adapters, into these."""

from __future__ import annotations


class LogError(Exception):
    """Base; the message says what happened and what to do."""


class Retriable(LogError):
    """Passing: try again, with a bound."""


class Unreachable(Retriable):
    """No broker answers."""


class EndNotReached(Retriable):
    """A range could not be read to its end in time, e.g. because a dead writer's transaction is still open."""


class Aborted(LogError):
    """The transaction was rolled back: nothing of it happened. Take a new snapshot and try again."""


class CommitUnknown(LogError):
    """The transaction may have been committed: rebuild the producer and re-read before saying anything again."""


class Fenced(LogError):
    """Another process is us (transactional id or instance id): exit."""


class Unfenced(LogError):
    """A transaction was refused before it began, because its offsets or its membership would not be checked by
    the broker (an offset below 0, a generation below 0, no member id): a bug, never sent."""


class OffsetGone(LogError):
    """The position asked for lies below the start of the log: retention took it. Fail closed."""


class UnknownTopic(LogError):
    """The topic does not exist: run `postlane topics apply`."""


class TooLarge(LogError):
    """The record exceeds what the broker takes."""


class Fatal(LogError):
    """Nothing that this process can mend: exit with the reason."""


class OptionRefused(LogError):
    """A client option is unknown or would break the protocol: a configuration error, exit code 2."""
