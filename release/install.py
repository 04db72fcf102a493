"""Install the wheel into an empty virtual environment, with the core dependencies only, and start the command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from release.build import BuildError
from release.sbom import LOCK, pins

INSTALL_TIMEOUT_S = 600
NOT_CORE = ("sqlalchemy", "rocksdict", "aiosmtplib", "minijinja", "opentelemetry", "prometheus_client", "faust", "dns")


def check_install(wheel: Path) -> str:
    """The version that it says. Raises BuildError."""
    with TemporaryDirectory() as folder:
        home = Path(folder) / "venv"
        _run([sys.executable, "-m", "venv", str(home)])
        constraints = Path(folder) / "constraints.txt"  # the lock's versions, without its hashes: the wheel has none
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in sorted(pins(LOCK))))
        python = str(home / "bin" / "python")
        _run([python, "-m", "pip", "install", "--quiet", "--no-input", "-c", str(constraints), str(wheel)])
        listed = _run([python, "-m", "pip", "list", "--format=freeze"]).lower()
        extra = [name for name in NOT_CORE if re.search(rf"^{name.replace('_', '[-_]')}", listed, re.MULTILINE)]
        if extra:
            raise BuildError(f"{wheel.name}: {extra[0]} came along, though only an extra wants it")
        command = str(home / "bin" / "postlane")
        if "Commands:" not in _run([command, "--help"]):
            raise BuildError("postlane --help does not name its commands")
        _run([python, "-c", "import postlane; postlane.Publisher, postlane.AsyncPublisher, postlane.Mail"])
        return _run([command, "--version"]).strip()


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False, cwd="/")
    if done.returncode:
        raise BuildError(f"{' '.join(command[:4])}: {done.stderr.strip()[-500:]}")
    return done.stdout
