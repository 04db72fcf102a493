"""What is wrong with a backup, a place for backups, or a target; nothing was written when one of these is raised."""

from __future__ import annotations


class BackupError(Exception):
    """Base; the message says what is wrong and what to do."""

    exit_code = 1


class Damaged(BackupError):
    """Corrupt, truncated, reordered, or incomplete: these bytes are not what was backed up."""


class Foreign(BackupError):
    """It belongs to another installation (cluster, prefix, partitions, lanes) or to another chain."""


class TooNew(BackupError):
    """A later version of Postlane wrote it."""


class NothingHere(BackupError):
    """There is no finished backup (that fits what was asked for)."""


class WrongKey(BackupError):
    """It is encrypted, and the key is missing or another one."""


class Refused(BackupError):
    """A guard: doing it could lose or repeat something."""

    exit_code = 4


class StoreUnavailable(BackupError):
    """The place for backups does not answer."""

    exit_code = 3
