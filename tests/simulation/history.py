"""What happened in a run: lines in order, their digest, and what first went wrong."""

from __future__ import annotations

import asyncio
from hashlib import sha256


class Broken(Exception):
    """An invariant does not hold. `oracle` names it, `about` is the delivery that it is about, if it is about one."""

    def __init__(self, oracle: str, text: str, about: str = "") -> None:
        super().__init__(f"{oracle}: {text}")
        self.oracle, self.text, self.about = oracle, text, about


class History:
    """Lines of a run."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.broken: Broken | None = None

    def say(self, who: str, what: str) -> None:
        """One line."""
        self.lines.append(f"{asyncio.get_running_loop().time():10.4f} {who:<12} {what}")

    def breaks(self, oracle: str, text: str, about: str = "") -> None:
        """An oracle speaks; the first one counts."""
        self.say("ORACLE", f"{oracle}: {text}")
        if self.broken is None:
            self.broken = Broken(oracle, text, about)

    def story(self, ident: str) -> list[str]:
        """The lines that name a delivery, and what befell processes meanwhile."""
        short = ident[:8]
        return [line for line in self.lines if short in line or " nemesis " in line or " ORACLE " in line]

    def digest(self) -> str:
        """SHA-256 of all lines: the same seed gives the same."""
        return sha256("\n".join(self.lines).encode()).hexdigest()
