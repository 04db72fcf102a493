"""What the kernel refuses a process: that its bytes are safe on the disk, and memory."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.faults_processes import until_in_sync
from tests.chaos.registry import MEMORY_CGROUPS, fault
from tests.chaos.town import BROKERS, Town

_EIO = ("-e", "trace=fsync,fdatasync,sync_file_range", "-e", "inject=fsync,fdatasync,sync_file_range:error=EIO")
_ATTACHED_TIMEOUT_S = 10.0
_STEP_BYTES = 1 << 20


@contextlib.contextmanager
def _no_fsync(pid: int, record: Path) -> Iterator[None]:
    """Every fsync of the process fails while the block runs. Raises RuntimeError when it asked for none."""
    command = ["strace", "-f", "-qq", "-p", str(pid), "-o", str(record), *_EIO]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until_attached(pid, tracer)
        yield
    finally:
        tracer.terminate()  # it lets go of the process, which goes on
        tracer.wait(_ATTACHED_TIMEOUT_S)
    if "(INJECTED)" not in record.read_text(errors="replace"):
        raise RuntimeError("the process asked for no fsync meanwhile: nothing was injected")


def _until_attached(pid: int, tracer: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _ATTACHED_TIMEOUT_S
    while f"TracerPid:\t{tracer.pid}\n" not in Path(f"/proc/{pid}/status").read_text():
        if tracer.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("strace could not attach (ptrace may be forbidden on this machine)")
        time.sleep(0.05)


@fault(12.0, touches=("broker",), needs=("namespaces", "strace"))
def eio_on_fsync_at_a_broker(town: Town, dice: random.Random) -> Iterator[str]:
    """each fsync of a broker fails (EIO) for 12 s; it gives its disk up and ends, and is started again afterwards"""
    i = dice.randrange(BROKERS)
    pid = town.kafka.pid(i)
    if pid is None:
        raise RuntimeError(f"broker {i} is not running")
    with town.held_down(i):
        with _no_fsync(pid, town.folder / f"fsync-broker-{i}"):
            yield f"broker {i}"
        town.kafka.stop_broker(i, grace_s=5.0)
    town.until_up(i)
    until_in_sync(town)


@fault(12.0, touches=("ledger",), needs=("namespaces", "strace"))
def eio_on_fsync_at_the_ledger(town: Town, dice: random.Random) -> Iterator[str]:
    """each fsync of the ledger's database fails (EIO) for 12 s"""
    (name,) = town.of("ledger")
    with _no_fsync(_pid(town, name), town.folder / "fsync-ledger"):
        yield name


@fault(12.0, touches=("router",), needs=("namespaces", "strace"))
def eio_on_fsync_at_a_router(town: Town, dice: random.Random) -> Iterator[str]:
    """a router told to end while each fsync of its store fails (EIO), and started again"""
    name = dice.choice(town.of("router"))
    with _no_fsync(_pid(town, name), town.folder / "fsync-router"):
        town.stack.stop(name, grace_s=10)
        yield name
    town.until_up(name)


@fault(12.0, touches=("sender",), needs=("namespaces", "memory cgroup"))
def memory_pressure_at_a_sender(town: Town, dice: random.Random) -> Iterator[str]:
    """a sender without memory for 12 s: what it maps is taken from it page by page, until the kernel ends it"""
    yield from _pressed(town, dice.choice(town.of("sender")))


@fault(12.0, touches=("router",), needs=("namespaces", "memory cgroup"))
def memory_pressure_at_a_router(town: Town, dice: random.Random) -> Iterator[str]:
    """a router without memory for 12 s: what it maps is taken from it page by page, until the kernel ends it"""
    yield from _pressed(town, dice.choice(town.of("router")))


def _pressed(town: Town, name: str) -> Iterator[str]:
    group = MEMORY_CGROUPS / f"postlane-chaos-{os.getpid()}-{name}"
    pid = _pid(town, name)
    group.mkdir()
    try:
        (group / "memory.move_charge_at_immigrate").write_text("3")  # what it has already counts
        (group / "cgroup.procs").write_text(str(pid))
        left = _squeeze(group)
        yield f"{name}, {left >> 20} MB left to it"
        if int((group / "memory.failcnt").read_text()) == 0:
            raise RuntimeError(f"{name} never wanted more than it had")
    finally:
        _dissolve(group)
    town.until_up(name)


def _squeeze(group: Path) -> int:
    """Lower the limit until the kernel finds nothing more to take; what it is then, in bytes."""
    limit = int((group / "memory.usage_in_bytes").read_text())
    try:
        while limit > _STEP_BYTES:
            (group / "memory.limit_in_bytes").write_text(str(limit))
            limit -= _STEP_BYTES
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
    return limit + _STEP_BYTES


def _dissolve(group: Path) -> None:
    (group / "memory.limit_in_bytes").write_text("-1")
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            (MEMORY_CGROUPS / "cgroup.procs").write_text(pid)
    group.rmdir()


def _pid(town: Town, name: str) -> int:
    pid = town.stack.pid(name)
    if pid is None:
        raise RuntimeError(f"{name} is not running")
    return pid
