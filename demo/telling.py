"""How the demo prints: the story with seconds since its beginning, and what the commands answer."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Told:
    """One telling."""

    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """One thing that happens now."""
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def show(self, text: str, lines_max: int = 60) -> None:
        """What a command answered."""
        lines = text.rstrip().splitlines()
        for line in lines[:lines_max]:
            print(f"          | {line}", flush=True)
        if len(lines) > lines_max:
            print(f"          | … {len(lines) - lines_max} lines more", flush=True)

    def table(self, head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
        """Columns: the first to the left, the others, numbers, to the right."""
        cells = [head, *(tuple(str(cell) for cell in row) for row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
        for row in cells:
            first = row[0].ljust(widths[0])
            print("          ", first, *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)), flush=True)
