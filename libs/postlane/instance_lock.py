"""One process per instance id on one machine: a lock file beside the data, so that the newcomer is told clearly.

Kafka would fence the older process of two with one id; that protects the books but reads like a riddle. The lock is
the kernel's (flock), so it goes with the process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from postlane.config import ConfigurationError


@contextmanager
def instance_lock(data_dir: Path, service: str, instance: str) -> Iterator[Path]:
    """Hold `<data_dir>/<service>-<instance>.lock` while the block runs.

    Raises ConfigurationError when another process holds it, or when `data_dir` cannot be written.
    """
    path = data_dir / f"{service}-{re.sub(r'[^A-Za-z0-9._-]', '_', instance)}.lock"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigurationError(
            f"POSTLANE_DATA_DIR: {path} cannot be written: {error.strerror}; give a folder that this user may write"
        ) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise ConfigurationError(
                f"instance id {instance} is already running here as {service} (pid {holder}); "
                "give this one another POSTLANE_INSTANCE_ID"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield path
    finally:
        os.close(handle)
