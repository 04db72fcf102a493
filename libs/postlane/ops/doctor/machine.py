"""Checks of the machine that this runs on: folders, space, limits, the flight recorder, who it says it is."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from postlane.config import Environment
from postlane.core.policy import Config
from postlane.ops.doctor.check import Check, fail, ok, warn

FREE_MIN_BYTES = 1 << 30
FREE_STOP_BYTES = 64 << 20
FILES_BESIDE_CONNECTIONS = 256  # Kafka's connections, the store's files, logs


def machine_checks(environment: Environment, config: Config) -> tuple[Check, ...]:
    """Every check of this machine."""
    return (
        *_folder(environment.data_dir),
        _open_files(config),
        *_recorders(environment, config),
        *_instance(environment),
    )


def _folder(folder: Path) -> Iterator[Check]:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        do = "set POSTLANE_DATA_DIR to a folder that this user owns"
        yield fail("data-folder", f"{existing} cannot be written", do)
    else:
        yield ok("data-folder", str(folder))
    yield space_check(existing, shutil.disk_usage(existing).free)


def space_check(folder: Path, free_bytes: int) -> Check:
    """What so many free bytes mean."""
    found = f"{free_bytes // (1 << 20)} MiB free at {folder}"
    do = "make room, or move POSTLANE_DATA_DIR to another disk (docs/runbooks/disk-full.md)"
    if free_bytes < FREE_STOP_BYTES:
        return fail("disk-space", found, do)
    if free_bytes < FREE_MIN_BYTES:
        return warn("disk-space", found, do)
    return ok("disk-space", found)


def _open_files(config: Config) -> Check:
    name = "open-files"
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = sum(provider.connections for provider in config.providers.values()) + FILES_BESIDE_CONNECTIONS
    if soft != resource.RLIM_INFINITY and soft < needed:
        do = f"raise it (ulimit -n {needed}), or lower the providers' connections"
        return fail(name, f"{soft} are allowed; the providers' connections and the rest need {needed}", do)
    return ok(name, f"{'unlimited' if soft == resource.RLIM_INFINITY else soft} allowed, {needed} needed at most")


def _recorders(environment: Environment, config: Config) -> Iterator[Check]:
    """Only beside a sender that runs here: its lock says so."""
    folders = (environment.data_dir, *environment.data_dir.glob("services/*"))  # the second of a local stack
    for lock in sorted(lock for folder in folders for lock in folder.glob("sender-*.lock")):
        instance = lock.name.removeprefix("sender-").removesuffix(".lock")
        if not _held(lock):
            continue
        served = environment.lanes or tuple(config.lanes)
        folder = lock.parent / f"sender-{instance}"
        lacking = [lane for lane in served if not (folder / f"flight-{lane}.bin").is_file()]
        if lacking:
            do = 'see the sender\'s log ("no flight recorder"); give it a volume that is kept and can be written'
            yield warn("flight-recorder", f"{folder} has none for {', '.join(lacking)}", do, instance)
        else:
            yield ok("flight-recorder", f"one for each of {', '.join(served)}", instance)


def _held(lock: Path) -> bool:
    """Whether a process holds the lock; asking takes it for an instant, as the kernel knows no other question."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True  # another user's: it may well run
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _instance(environment: Environment) -> Iterator[Check]:
    name = environment.instance_id
    if name.partition(".")[0] in ("localhost", "localhost6", ""):
        do = "set POSTLANE_INSTANCE_ID to a name of this process's own, e.g. that of its pod"
        yield warn("instance-id", f"POSTLANE_INSTANCE_ID is {name!a}: every machine has that name", do)
    else:
        yield ok("instance-id", name)
