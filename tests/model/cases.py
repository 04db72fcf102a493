"""What a case is: one configuration of a model and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .explorer import Model, Result

Expected = Literal["holds", "breaks"]


@dataclass(frozen=True, slots=True)
class Case:
    """`expected` holds: must exhaust with nothing broken; breaks: must give a counterexample.

    A case that holds although a rule is off names in `because` what backs that rule up. `size` long is left out of
    the short form.
    """

    name: str
    about: str
    build: Callable[[], Model]
    expected: Expected = "holds"
    because: str = ""
    size: Literal["short", "long"] = "short"

    def as_expected(self, result: Result) -> bool:
        if self.expected == "breaks":
            return result.broken is not None
        return result.broken is None and result.exhausted
