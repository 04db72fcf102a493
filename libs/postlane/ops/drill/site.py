"""What a drill is played on, as scenarios see it: a throwaway stack, or a staging stack that said it may be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from postlane.eventlog.topics import TopicNames
from postlane.local.practice.client import PracticeControl
from postlane.ops.drill.prometheus import Prometheus

FAULT_ID = "drill-"  # what every rule's id at the witness begins with, so that a later process can take it away


class Refused(Exception):
    """A guard does not allow it; exit code 4."""

    exit_code = 4


class Unusable(Exception):
    """The description of a staging stack is wrong; exit code 2."""

    exit_code = 2


class Site(Protocol):
    """An installation. `abilities` names what may be done to it: `witness`, `kill:sender`, `relay`, …"""

    @property
    def name(self) -> str: ...

    @property
    def bootstrap(self) -> str: ...

    @property
    def names(self) -> TopicNames: ...

    @property
    def lanes(self) -> tuple[str, ...]: ...

    @property
    def options(self) -> Mapping[str, str]: ...

    @property
    def witness(self) -> PracticeControl: ...

    @property
    def listeners(self) -> tuple[str, ...]: ...

    @property
    def database_url(self) -> str | None: ...

    @property
    def prometheus(self) -> Prometheus | None: ...

    @property
    def abilities(self) -> frozenset[str]: ...

    @property
    def recipients_domain(self) -> str: ...

    @property
    def sender(self) -> str: ...

    @property
    def restarts(self) -> int:
        """How often a service that had ended by itself was started again; 0 where the platform does that unseen."""

    def of(self, service: str) -> list[str]:
        """The processes of a service that may be touched, e.g. sender-1 and sender-2."""

    def kill(self, name: str) -> None:
        """SIGKILL, or what comes nearest to it."""

    def launch(self, name: str) -> None:
        """Start it again; does not wait."""

    def is_ready(self, name: str) -> bool:
        """Whether it says that it can do its work."""
