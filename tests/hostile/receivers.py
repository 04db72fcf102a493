"""SMTP servers that share no code with the sender, and what they took: two strict ones, one that may be smuggled to."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aiosmtpd.controller import Controller

from postlane.local import ports
from postlane.local.practice import PracticeProcess


@dataclass(frozen=True, slots=True)
class Received:
    """A mail as the server read it; `digest` where the server keeps no bytes."""

    recipients: tuple[str, ...]
    body: bytes | None
    digest: str | None = None


class Receiver(Protocol):
    """A server that runs."""

    port: int

    def mails(self) -> list[Received]: ...


@dataclass(slots=True)
class Practice:
    """`postlane.local.practice`, in a process of its own; it keeps digests."""

    process: PracticeProcess
    port: int = 0

    def mails(self) -> list[Received]:
        return [Received(entry.rcpts, None, entry.sha256) for entry in self.process.control.ledger()]


@dataclass(slots=True)
class Aiosmtpd:
    """aiosmtpd 1.4.6 and newer: bare line ends do not end a mail."""

    taken: list[Received] = field(default_factory=list)
    port: int = 0

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.taken.append(Received(tuple(envelope.rcpt_tos), envelope.original_content))
        return "250 2.0.0 ok"

    def mails(self) -> list[Received]:
        return list(self.taken)


@dataclass(slots=True)
class SmtpSink:
    """Postfix's test receiver."""

    folder: Path
    port: int = 0

    def mails(self) -> list[Received]:
        found = []
        for path in sorted(self.folder.glob("mail.*")):
            # Its own fields, then the message with LF ends, then one more LF.
            head, _, body = path.read_bytes().partition(b" (UTC)\n")
            recipients = re.findall(r"^X-Rcpt-Args: <(.*?)>", head.decode(), re.M)
            found.append(Received(tuple(recipients), body.removesuffix(b"\n").replace(b"\n", b"\r\n")))
        return found


@dataclass(slots=True)
class Lax:
    """What was wrong in 2023: LF or CR alone end lines, so a dot between them ends a mail (CVE-2023-51764 and kin)."""

    taken: list[Received] = field(default_factory=list)
    port: int = 0

    def mails(self) -> list[Received]:
        return list(self.taken)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 lax\r\n")
        rest, recipients, body = b"", [], None
        while data := await reader.read(65536):
            rest += data
            while (end := re.search(rb"\r\n|\n|\r(?=[^\n])", rest)) is not None:
                line, rest = rest[: end.start()], rest[end.end() :]
                if body is not None:
                    if line == b".":
                        self.taken.append(Received(tuple(recipients), b"".join(body)))
                        recipients, body = [], None
                        writer.write(b"250 ok\r\n")
                    else:
                        body.append(line.removeprefix(b".") + b"\r\n")
                    continue
                verb = line[:4].upper()
                if verb == b"RCPT":
                    recipients.append(line.partition(b"<")[2].partition(b">")[0].decode())
                elif verb == b"DATA":
                    body = []
                writer.write(b"354 go\r\n" if verb == b"DATA" else b"250 ok\r\n")
        writer.close()


@asynccontextmanager
async def practice(folder: Path) -> AsyncIterator[Receiver]:
    with PracticeProcess(folder) as process:
        yield Practice(process, process.smtp_port)


@asynccontextmanager
async def aiosmtpd(folder: Path) -> AsyncIterator[Receiver]:
    made = Aiosmtpd(port=ports.free_port())
    controller = Controller(made, hostname=ports.HOST, port=made.port, enable_SMTPUTF8=True)
    controller.start()
    try:
        yield made
    finally:
        controller.stop()


@asynccontextmanager
async def lax(folder: Path) -> AsyncIterator[Receiver]:
    made = Lax()
    server = await asyncio.start_server(made.serve, ports.HOST, 0)
    made.port = server.sockets[0].getsockname()[1]
    async with server:
        yield made


def smtp_sink_program() -> str | None:
    """Where Postfix's smtp-sink is, None where it is not installed."""
    return shutil.which("smtp-sink") or shutil.which("smtp-sink", path="/usr/sbin:/usr/local/sbin")


def _sink_child(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Returns when it listens. It does not run as root, so root gives it to nobody, with a folder to write to."""
    program = smtp_sink_program()
    assert program is not None
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    child = subprocess.Popen([program, *user, "-d", "mail.", f"{ports.HOST}:{port}", "64"], cwd=folder)
    deadline = time.monotonic() + 10
    while ports.is_free(port):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return child


@asynccontextmanager
async def smtp_sink(folder: Path) -> AsyncIterator[Receiver]:
    made = SmtpSink(folder, ports.free_port())
    child = _sink_child(folder, made.port)
    try:
        yield made
    finally:
        child.terminate()
        child.wait(10)
