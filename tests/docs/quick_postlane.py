"""`postlane` without its start-up: a server that has everything imported forks a process for each command.

The documentation's tests run some sixty commands; most of the time of each would be the imports. What runs is the same
`main`, in a process of its own, with the caller's folder, environment and streams.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

READY_TIMEOUT_S = 60
MESSAGE_MAX_BYTES = 262_144
CLIENT = """#!{python} -SE
import json, os, socket, struct, sys
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
body = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [struct.pack(">I", len(body))], [0, 1, 2])
server.sendall(body)
code = server.recv(4)
os._exit(struct.unpack(">i", code)[0] if len(code) == 4 else 70)
"""
MODULES = (
    "postlane.ops.doctor.domains",
    "postlane.ops.fleet",
    "postlane.ops.books_health",
    "postlane.ops.replay",
    "postlane.ops.backup.take",
    "postlane.eventlog.kafka",
    "postlane.publisher",
    "dns.asyncresolver",
)


@contextlib.contextmanager
def quick_postlane(folder: Path) -> Iterator[Path]:
    """A folder for the front of PATH with a `postlane` in it."""
    path = str(folder / "socket")
    client = folder / "postlane"
    client.write_text(CLIENT.format(python=sys.executable, path=path))
    client.chmod(0o755)
    server = subprocess.Popen([sys.executable, "-m", "tests.docs.quick_postlane", path], cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not Path(path).exists():
            assert server.poll() is None, "the server of the commands did not start"
            assert time.monotonic() < deadline, "the server of the commands did not start in time"
            time.sleep(0.05)
        yield folder
    finally:
        server.terminate()
        server.wait(30)


def serve(path: str) -> None:
    """Until SIGTERM."""
    from postlane.cli import main as cli

    for module in {home.module for home in cli._COMMANDS.values() if find_spec(home.module)} | set(MODULES):
        import_module(module)
    listener = socket.socket(socket.AF_UNIX)
    beside = f"{path}.new"
    listener.bind(beside)
    listener.listen(8)
    Path(beside).rename(path)  # there only once it listens
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        caller, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            _attend(caller)
        caller.close()


def _attend(caller: socket.socket) -> None:
    """One command: a child runs it, we tell how it ended. Never returns."""
    first, streams, _, _ = socket.recv_fds(caller, 4, 3)
    (size,) = struct.unpack(">I", first)
    body = b""
    while len(body) < size:
        body += caller.recv(MESSAGE_MAX_BYTES)
    arguments, folder, environment = json.loads(body)
    pid = os.fork()
    if pid == 0:
        caller.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        _run(arguments)
    for stream in streams:
        os.close(stream)
    for number in (0, 1, 2):
        os.close(number)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        caller.sendall(struct.pack(">i", code if code >= 0 else 128 - code))
    os._exit(0)


def _run(arguments: list[str]) -> None:
    from postlane.cli.main import main

    sys.argv = ["postlane", *arguments]
    code = 70
    try:
        main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
