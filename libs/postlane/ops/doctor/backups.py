"""The check of the backups: that there is one, and that it is not old. Whether it is whole, `postlane verify` tells."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import orjson

from postlane.core.errors import ConfigurationError
from postlane.ops.doctor.check import Check, fail, ok, skip, warn

OLD_HOURS = 26  # a daily one, with two hours to spare
LOST_HOURS = 72
NAME = "backup-age"


def ask_backups(place: str) -> Check:
    """Look at the newest finished backup in a folder or bucket. Blocking; never raises for what is there."""
    try:
        from postlane.ops.backup.errors import BackupError
        from postlane.ops.backup.manifest import sequence_of
        from postlane.ops.backup.store import open_store
    except ModuleNotFoundError as error:
        return skip(NAME, f"{error.name} is not installed", "pip install 'postlane[all]' to look at backups", place)
    try:
        store = open_store(place)
        numbered = {sequence_of(name): name for name in store.names("manifests/")}
        newest = max((number for number in numbered if number is not None), default=None)
        if newest is None:
            return fail(NAME, "there is no finished backup", f"run `postlane backup {place}`, then daily", place)
        point = datetime.fromisoformat(orjson.loads(store.get(numbered[newest]))["point"])
    except (BackupError, ConfigurationError, OSError) as error:
        return fail(NAME, str(error), "correct the place, or the rights to read it", place)
    except (ValueError, KeyError, TypeError):
        return fail(NAME, "the newest manifest cannot be read", f"run `postlane verify {place}`", place)
    return age_check(place, point, datetime.now(UTC))


def age_check(place: str, point: datetime, now: datetime) -> Check:
    """What the point of the newest backup means."""
    hours = (now - point).total_seconds() / 3600
    found = f"the newest is of {point:%Y-%m-%d %H:%M} UTC, {hours:.0f} hours ago"
    do = "see why the scheduled backup failed, then run `postlane backup`"
    if hours > LOST_HOURS:
        return fail(NAME, found, do, place)
    if hours > OLD_HOURS:
        return warn(NAME, found, do, place)
    return ok(NAME, found, place)


def no_place() -> Iterator[Check]:
    """Nobody said where the backups are."""
    do = "name the place with --backup or POSTLANE_BACKUP_PLACE to have its age checked"
    yield skip(NAME, "no place was named", do)
