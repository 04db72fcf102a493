"""What the kernel refuses a process: that its bytes are safe on the disk, and memory."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.faults_processes import until_in_sync
from tests.chaos.registry import MEMORY_CGROUPS, NotFelt, fault
from tests.chaos.town import BROKERS, Town

_SYNC = "fsync,fdatasync"
_WRITE = f"{_SYNC},pwrite64"  # SQLite, which syncs only now and then
_TIMEOUT_S = 10.0


@contextlib.contextmanager
def _eio(pid: int, calls: str, record: Path) -> Iterator[None]:
    """These calls of the process fail while the block runs. Raises NotFelt when it made none."""
    inject = ("-e", f"trace={calls}", "-e", f"inject={calls}:error=EIO")
    command = ["strace", "-f", "-qq", "-p", str(pid), "-o", str(record), *inject]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until_attached(pid, tracer)
        yield
    finally:
        tracer.terminate()  # it lets go of the process, which goes on
        try:
            tracer.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            tracer.kill()
            tracer.wait(_TIMEOUT_S)
    if "(INJECTED)" not in record.read_text(errors="replace"):
        raise NotFelt(f"the process called none of {calls} meanwhile")


def _until_attached(pid: int, tracer: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
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
        with _eio(pid, _SYNC, town.folder / f"eio-broker-{i}"):
            yield f"broker {i}"
        town.kafka.stop_broker(i, grace_s=5.0)
    town.until_up(i)
    until_in_sync(town)


@fault(12.0, touches=("ledger",), needs=("namespaces", "strace"))
def eio_at_the_ledger(town: Town, dice: random.Random) -> Iterator[str]:
    """each write and fsync of the ledger's database fails (EIO) for 12 s"""
    (name,) = town.of("ledger")
    with _eio(_ready(town, name), _WRITE, town.folder / "eio-ledger"):
        yield name


@fault(0.0, touches=("router",), needs=("namespaces", "strace"))
def eio_on_fsync_at_a_router(town: Town, dice: random.Random) -> Iterator[str]:
    """a router told to end while each fsync of its store fails (EIO), and started again"""
    name = dice.choice(town.of("router"))
    with town.held_down(name):
        with _eio(_ready(town, name), _SYNC, town.folder / "eio-router"):
            town.stack.stop(name, grace_s=45)
        yield name
    town.until_up(name)


@fault(12.0, touches=("sender",), needs=("namespaces", "memory cgroup"))
def memory_pressure_at_a_sender(town: Town, dice: random.Random) -> Iterator[str]:
    """a sender left four fifths of the memory that its heap had, for 12 s: the kernel ends it, again and again"""
    yield from _pressed(town, dice.choice(town.of("sender")))


@fault(12.0, touches=("router",), needs=("namespaces", "memory cgroup"))
def memory_pressure_at_a_router(town: Town, dice: random.Random) -> Iterator[str]:
    """a router left four fifths of the memory that its heap had, for 12 s: the kernel ends it, again and again"""
    yield from _pressed(town, dice.choice(town.of("router")))


def _pressed(town: Town, name: str) -> Iterator[str]:
    group = MEMORY_CGROUPS / f"postlane-chaos-{town.names.prefix}{name}"  # the machine's, not the namespace's
    limit = _heap_bytes(_ready(town, name)) * 4 // 5
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit))
        town.variables(name, CHAOS_CGROUP=str(group))
        town.kill(name)
        yield f"{name}, {limit >> 20} MB"
        refused = int((group / "memory.failcnt").read_text())
    finally:
        town.variables(name)
        _dissolve(group)
    town.until_up(name)
    if refused == 0:
        raise NotFelt(f"{name} never wanted more than it had")


def _heap_bytes(pid: int) -> int:
    """What of its memory is no file's."""
    (kilobytes,) = (
        line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "RssAnon" in line
    )
    return int(kilobytes) << 10


def _dissolve(group: Path) -> None:
    (group / "memory.limit_in_bytes").write_text("-1")
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            for pid in (group / "cgroup.procs").read_text().split():
                (MEMORY_CGROUPS / "cgroup.procs").write_text(pid)
            group.rmdir()
            return
        except OSError:  # one is ending, or beginning
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _ready(town: Town, name: str) -> int:
    """The process of a service that another fault may just have ended, once it works."""
    town.until_ready(name)
    pid = town.stack.pid(name)
    if pid is None:
        raise RuntimeError(f"{name} is not running")
    return pid
