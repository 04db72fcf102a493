"""Cuts, losses and slowness on the loopback of the run's own network namespace.

Who a packet is from is known by the group id of its socket; a connection of a pair that is cut is marked by conntrack,
so that both directions are dropped silently, as on a real network: nobody gets a reset.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from collections.abc import Iterator, Sequence

_marks = itertools.count(0x100)


@contextlib.contextmanager
def cut(gid: int, ports: Sequence[int]) -> Iterator[None]:
    """Whatever runs under `gid` and whoever listens on `ports` do not hear of each other while the block runs."""
    mark = hex(next(_marks))
    chosen = ",".join(str(port) for port in ports)
    whose = ["-o", "lo", "-m", "owner", "--gid-owner", str(gid), "-p", "tcp", "-m", "multiport", "--dports", chosen]
    rules = [
        ["-t", "mangle", "OUTPUT", *whose, "-j", "CONNMARK", "--set-mark", mark],
        ["-t", "filter", "OUTPUT", "-o", "lo", "-m", "connmark", "--mark", mark, "-j", "DROP"],
    ]
    with _rules(rules):
        yield


@contextlib.contextmanager
def lossy(ports: Sequence[int], share: float) -> Iterator[None]:
    """Of all packets to and from `ports`, this share is lost."""
    chosen = ",".join(str(port) for port in ports)
    dice = ["-m", "statistic", "--mode", "random", "--probability", f"{share:.3f}", "-j", "DROP"]
    rules = [
        ["-t", "filter", "OUTPUT", "-o", "lo", "-p", "tcp", "-m", "multiport", side, chosen, *dice]
        for side in ("--dports", "--sports")
    ]
    with _rules(rules):
        yield


@contextlib.contextmanager
def slow(megabits_per_s: int) -> Iterator[None]:
    """Everything on the loopback shares this bandwidth, and queues up to 400 ms for it."""
    limit = ["rate", f"{megabits_per_s}mbit", "burst", "128kb", "latency", "400ms"]
    _run("tc", "qdisc", "replace", "dev", "lo", "root", "tbf", *limit)
    try:
        yield
    finally:
        _run("tc", "qdisc", "del", "dev", "lo", "root")


@contextlib.contextmanager
def _rules(rules: Sequence[Sequence[str]]) -> Iterator[None]:
    with contextlib.ExitStack() as undo:
        for flag, table, chain, *rest in rules:
            _run("iptables", "-w", "5", flag, table, "-A", chain, *rest)
            undo.callback(_run, "iptables", "-w", "5", flag, table, "-D", chain, *rest)
        yield


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
