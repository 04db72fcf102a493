"""Namespaces of its own for a run: network, mounts and processes end with it, and nothing of the machine is touched.

As root on Linux the harness starts itself again inside them. Elsewhere it runs without, and the faults that need them
say so in the report instead of being left out silently.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from postlane.local.jars import ensure_jars
from postlane.local.java import find_java

_INSIDE = "POSTLANE_CHAOS_INSIDE"
_FAKETIME = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
)
_TOOLS = ("unshare", "ip", "iptables", "setpriv", "mount", "tc")


def enter(module: str, argv: Sequence[str]) -> None:
    """Start `module` again inside namespaces; returns only where that is not to be had, or is done already."""
    if os.environ.get(_INSIDE) == "1":
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=10)
        return
    if why_not() is not None:
        return
    ensure_jars(os.environ, find_java(os.environ))  # there is no network inside
    os.environ[_INSIDE] = "1"
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    os.execvp(command[0], [*command, sys.executable, "-m", module, *argv])


def inside() -> bool:
    return os.environ.get(_INSIDE) == "1"


def why_not() -> str | None:
    """Why namespaces are not to be had; None when they are."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux (network and mount namespaces)"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)} (Debian: iproute2, iptables, util-linux)"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "this machine does not allow new namespaces"


def faketime() -> str | None:
    """The library that steps one process's clock; None where it is not installed."""
    named = ctypes.util.find_library("faketimeMT")
    return next((path for path in (*_FAKETIME, named or "") if path and Path(path).exists()), None)
