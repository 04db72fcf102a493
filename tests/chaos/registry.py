"""The faults by name. A fault is a context manager: before its `yield` it injects, after it it heals."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import isolation
from tests.chaos.town import Town

MEMORY_CGROUPS = Path("/sys/fs/cgroup/memory")  # version 1
Injected = Callable[[Town, random.Random], Iterator[str]]


class NotFelt(RuntimeError):
    """What the fault was to touch did not notice: a failed row where it stands alone, chance where it is mixed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`hold_s`: how long it lasts between injection and healing. `touches`: what no other fault may touch at the same
    time (two brokers of three lost at once is not a fault that three replicas are for)."""

    name: str
    what: str
    hold_s: float
    touches: frozenset[str]
    needs: frozenset[str]
    begin: Callable[[Town, random.Random], AbstractContextManager[str]]

    def why_not(self) -> str | None:
        """Why it cannot be injected on this machine; None when it can."""
        if "namespaces" in self.needs and not isolation.inside():
            return isolation.why_not() or "needs network and mount namespaces"
        if "faketime" in self.needs and isolation.faketime() is None:
            return "needs libfaketime (Debian: apt install libfaketime)"
        if "strace" in self.needs and shutil.which("strace") is None:
            return "needs strace (Debian: apt install strace)"
        if "memory cgroup" in self.needs and not os.access(MEMORY_CGROUPS / "cgroup.procs", os.W_OK):
            return "needs a memory cgroup of version 1"
        return None


FAULTS: dict[str, Fault] = {}

# What the list of faults asks for and this harness does not inject, and why; printed with every report.
NOT_INJECTED = {
    "latency of links": "the kernel's netem is needed, which not every machine has; slowness is a bandwidth limit here",
    "a flipped bit in a backup": "not in a running town: tests/unit/test_backup_refused.py flips one in every chunk",
    "power loss": "SIGKILL leaves what was written with the kernel; only replication speaks for power loss",
}


def fault(
    hold_s: float, *, touches: tuple[str, ...] = (), needs: tuple[str, ...] = ()
) -> Callable[[Injected], Injected]:
    """Register a generator function under its name (`kill_sender` → `kill-sender`); it yields what it did."""

    def register(injected: Injected) -> Injected:
        name = injected.__name__.replace("_", "-")
        what = (injected.__doc__ or "").strip()
        FAULTS[name] = Fault(name, what, hold_s, frozenset(touches), frozenset(needs), contextmanager(injected))
        return injected

    return register
