"""A Postfix that takes every mail, finds out later that an address does not exist, and tells the envelope sender."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.chaos.compare.postfix_relay import _MASTER, missing

from postlane.local import ports

__all__ = ["BouncingPostfix", "missing"]

_MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.relay.example
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
smtp_host_lookup = native
transport_maps = inline:{{ {routes} }}
queue_run_delay = 1s
minimal_backoff_time = 1s
maximal_backoff_time = 2s
maillog_file = {folder}/postfix.log
maillog_file_prefixes = {folder}
"""


class BouncingPostfix:
    """`with BouncingPostfix(folder).to({domain: port}) as mx:` — takes mail at `mx.port`, brings it to those ports."""

    def __init__(self, folder: Path) -> None:
        self.port = ports.free_port()
        self._folder = folder
        self._routes = ""

    def to(self, routes: Mapping[str, int]) -> BouncingPostfix:
        self._routes = ", ".join(f"{{ {domain} = smtp:[127.0.0.1]:{port} }}" for domain, port in routes.items())
        return self

    def __enter__(self) -> BouncingPostfix:
        for name in ("conf", "queue", "data"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        shutil.chown(self._folder / "data", "postfix")
        for path in (self._folder, *self._folder.parents):  # its daemons are another user
            if path.stat().st_uid == os.geteuid() and path != Path("/tmp") and path.is_relative_to("/tmp"):
                path.chmod(path.stat().st_mode | 0o011)
        (self._folder / "conf/main.cf").write_text(_MAIN.format(folder=self._folder, routes=self._routes))
        (self._folder / "conf/master.cf").write_text(_MASTER.format(port=self.port, connections=10))
        self._postfix("start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._postfix("stop")

    def log(self) -> str:
        return (self._folder / "postfix.log").read_text()

    def until_logged(self, text: str, timeout_s: float = 60.0) -> None:
        """Returns when Postfix has said this; AssertionError with what it says after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while text not in self.log():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def _postfix(self, verb: str) -> None:
        command = ["postfix", "-c", str(self._folder / "conf"), verb]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
