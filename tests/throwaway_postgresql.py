"""A PostgreSQL cluster for one test session: in a temporary folder, on a free port of 127.0.0.1, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

BINARIES = ("/usr/lib/postgresql/17/bin", "/usr/lib/postgresql/16/bin", "/usr/lib/postgresql/15/bin")
TIMEOUT_S = 60


class NoPostgreSQL(Exception):
    """There is no PostgreSQL on this machine, or it does not start; the message says why."""


class ThrowawayPostgreSQL:
    """initdb, start, and a new empty database for whoever asks."""

    def __init__(self) -> None:
        self._bin = self._find()
        self._user = self._unprivileged()
        self.folder = Path(tempfile.mkdtemp(prefix="postlane-pg-"))
        self._made = 0
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    @staticmethod
    def _find() -> Path:
        on_path = shutil.which("initdb")
        folders = [Path(on_path).resolve().parent] if on_path else []
        for folder in [*folders, *map(Path, BINARIES)]:
            if (folder / "initdb").exists() and (folder / "pg_ctl").exists():
                return folder
        raise NoPostgreSQL("initdb and pg_ctl are neither in PATH nor in /usr/lib/postgresql")

    @staticmethod
    def _unprivileged() -> str | None:
        """PostgreSQL refuses to run as root."""
        if os.geteuid() != 0:
            return None
        for name in ("postgres", "nobody"):
            try:
                return pwd.getpwnam(name).pw_name
            except KeyError:
                continue
        raise NoPostgreSQL("running as root, and there is neither a user postgres nor nobody")

    def _run(self, tool: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / tool), *arguments],
            user=self._user,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=(log := (self.folder / f"{tool}.out").open("a+")),
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S,
        )
        with log:
            if done.returncode:
                log.seek(0)
                raise NoPostgreSQL(f"{tool} ended with {done.returncode}: {log.read()[-1000:]}")

    def start(self) -> None:
        """Make the cluster if need be, and start it."""
        if not (self.folder / "data").exists():
            self._run("initdb", "-D", "data", "-A", "trust", "-U", "postlane", "--no-sync", "-E", "UTF8", "--locale=C")
        settings = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=40"
        self._run("pg_ctl", "-D", "data", "-l", "log", "-w", "-t", str(TIMEOUT_S), "-o", settings, "start")

    def stop(self) -> None:
        """Stop at once, as after a crash; the folder stays."""
        self._run("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")

    def remove(self) -> None:
        """Stop and delete everything."""
        try:
            self.stop()
        except NoPostgreSQL:
            pass
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_database(self) -> str:
        """The URL of an empty database."""
        import psycopg

        self._made += 1
        name = f"ledger{self._made}"
        at = f"postgresql://postlane@127.0.0.1:{self.port}"
        with psycopg.connect(f"{at}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"{at}/{name}"
