"""A Postfix relay with a configuration and a queue of its own; the machine's Postfix is not touched."""

from __future__ import annotations

import os
import shutil
import signal
import smtplib
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from postlane.local import ports
from postlane.local.practice import PracticeProcess
from tests.chaos.compare.programs import children_of, gone
from tests.chaos.compare.trial import CONNECTIONS

_MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = relay.invalid
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_client_connection_count_limit = 0
relayhost = [127.0.0.1]:{smtp}
smtp_host_lookup = native
smtp_destination_recipient_limit = 1
smtp_destination_concurrency_limit = {connections}
initial_destination_concurrency = {connections}
queue_run_delay = 2s
minimal_backoff_time = 2s
maximal_backoff_time = 4s
maillog_file = {folder}/postfix.log
maillog_file_prefixes = {folder}
{more}"""

_MASTER = """\
127.0.0.1:{port} inet n - n - 20 smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
flush unix n - n 1000 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - {connections} smtp
relay unix - - n - {connections} smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""
_WAITING = ("maildrop", "incoming", "active", "deferred")


def missing() -> str | None:
    """Why it cannot be tried on this machine; None when it can."""
    if shutil.which("postfix") is None or not Path("/usr/lib/postfix/sbin/master").exists():
        return "postfix is not installed (Debian: apt install postfix)"
    return None if os.geteuid() == 0 else "postfix starts as root only"


class PostfixRelay:
    name = "Postfix relay"
    killed = "master and every daemon"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._practice = PracticeProcess(folder / "practice")
        self._port = ports.free_port()

    def __enter__(self) -> PostfixRelay:
        self._practice.start()
        for name in ("conf", "queue", "data"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        shutil.chown(self._folder / "data", "postfix")
        self._configure("defer_transports = smtp")
        master = _MASTER.format(port=self._port, connections=CONNECTIONS)
        (self._folder / "conf" / "master.cf").write_text(master)
        self._postfix("start")
        return self

    def __exit__(self, *args: object) -> None:
        self._postfix("stop", check=False)
        self._practice.stop()

    @property
    def practice(self) -> PracticeProcess:
        return self._practice

    def accept(self, recipients: Sequence[str]) -> None:
        """Into the deferred queue; then everything is due at once."""
        with smtplib.SMTP("127.0.0.1", self._port, timeout=30) as smtp:
            for r in recipients:
                body = f"From: shop@example.org\r\nTo: {r}\r\nSubject: Hello\r\n\r\nHello\r\n"
                smtp.sendmail("shop@example.org", [r], body)
        self._postfix("stop")
        self._configure("")

    def start(self) -> None:
        self._postfix("start")
        subprocess.run(["postqueue", "-c", str(self._folder / "conf"), "-f"], timeout=30, check=True)

    def kill(self) -> None:
        master = int((self._folder / "queue/pid/master.pid").read_text())
        daemons = children_of(master)
        for pid in (master, *daemons):
            os.kill(pid, signal.SIGKILL)
        gone([master, *daemons])

    def pending(self) -> int | None:
        queue = self._folder / "queue"
        return sum(len(files) for name in _WAITING for _, _, files in os.walk(queue / name))

    def uncertain(self) -> frozenset[str]:
        return frozenset()

    def note(self) -> str:
        return "back-off of 2 to 4 s"

    def _configure(self, more: str) -> None:
        text = _MAIN.format(
            folder=self._folder, smtp=self._practice.smtp_port, connections=CONNECTIONS, more=more + "\n"
        )
        (self._folder / "conf" / "main.cf").write_text(text)

    def _postfix(self, verb: str, *, check: bool = True) -> None:
        command = ["postfix", "-c", str(self._folder / "conf"), verb]
        deadline = time.monotonic() + 15
        while True:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            if done.returncode == 0 or not check:
                return
            assert time.monotonic() < deadline, f"{' '.join(command)}: {done.stderr}"
            time.sleep(0.5)
